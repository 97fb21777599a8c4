import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import test from 'ava'
import { connect, freshDatabase } from '../../test/support/database.ts'
import { until } from '../../test/support/until.ts'
import { openSlot, SlotLost } from './slot.ts'

const database = await freshDatabase()
const sql = connect(database.url)

test.after.always(async () => {
  await sql.end({ timeout: 5 })
  await database.drop()
})

test('arrays go in and come out as they are: text of any kind, numbers, keys, nothing at all', async (t) => {
  const slot = openSlot({ url: database.url, name: 'arrays' })
  t.teardown(() => slot.close())
  const texts = ['a', '', 'null', 'NULL', 'say "yes"', 'back\\slash', '{}', 'a,b', ' ', 'ü\n']
  const uuid = '4b2f6a0e-0000-4000-8000-00000000000a'
  const [row] = await slot.run((tx) => tx`select ${texts}::text[] as texts, ${[]}::text[] as none, ${['9223372036854775807']}::bigint[] as bigints,
    ${[1, -2]}::int[] as ints, ${'{7,8}'}::int[] as written, ${[uuid]}::uuid[] as uuids, array[1, 2]::smallint[] as smallints, array['2026-01-01 00:00:00.123456+00']::timestamptz[] as times`)
  t.deepEqual(row, { texts, none: [], bigints: ['9223372036854775807'], ints: [1, -2], written: [7, 8], uuids: [uuid], smallints: [1, 2], times: ['2026-01-01 00:00:00.123456+00'] })
})

test('I1 a connection ended as soon as it appears is a lost statement and nothing else', async (t) => {
  let killing = true
  const killer = (async () => {
    while (killing) await sql`select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'deltapost early' and datname = current_database()`
  })()
  t.teardown(async () => {
    killing = false
    await killer
  })
  let lost = 0
  for (let at = 0; at < 60; at += 1) {
    const slot = openSlot({ url: database.url, name: 'early' })
    try {
      await slot.run((tx) => tx`select ${['x']}::text[]`)
    } catch (error) {
      t.true(error instanceof SlotLost, String(error))
      lost += 1
    }
    await slot.close()
  }
  t.true(lost > 0)
})

test('a slot does not keep what was read: a relay that runs for weeks would hold all it ever published', async (t) => {
  setFlagsFromString('--expose-gc')
  const collect = runInNewContext('gc') as () => void
  const slot = openSlot({ url: database.url, name: 'reads' })
  t.teardown(() => slot.close())
  const read = new WeakRef(await slot.run((sql) => sql`select repeat('x', 1000000) as text`))
  await slot.run((sql) => sql`select 1`) // the driver keeps its last query
  await until(async () => {
    collect()
    return read.deref() === undefined
  })
  t.pass()
})
