import { readFileSync } from 'node:fs'
import test from 'ava'
import { dumpSchema } from '../scripts/schema-dump.ts'
import { openSlot } from '../services/runtime/slot.ts'
import { addressOf, connect, freshDatabase } from './support/database.ts'

// Other versions word views and constraints differently; only servers of somebody else's can be another one.
const on18 = await versionOfServer() === 18 ? test : test.skip

on18('the committed schema is that of the migrations', async (t) => {
  const database = await freshDatabase()
  const slot = openSlot({ url: database.url, name: 'schema' })
  t.teardown(async () => {
    await slot.close()
    await database.drop()
  })
  t.is(await slot.run(dumpSchema), readFileSync('docs/schema.sql', 'utf8'))
})

test('the number sequence hands out numbers one by one, or a later change could get the smaller one', async (t) => {
  const database = await freshDatabase()
  const sql = connect(database.url, { max: 1 })
  t.teardown(async () => {
    await sql.end({ timeout: 5 })
    await database.drop()
  })
  const [row] = await sql`select cache_size from pg_sequences where schemaname = 'outbox' and sequencename = 'position'`
  t.is(row?.['cache_size'], '1')
})

async function versionOfServer(): Promise<number> {
  const sql = connect(addressOf(), { max: 1 })
  const [row] = await sql<{ version: number }[]>`select current_setting('server_version_num')::int / 10000 as version`
  await sql.end({ timeout: 5 })
  return row?.version ?? 0
}
