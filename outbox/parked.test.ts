import test from 'ava'
import type { ExecutionContext } from 'ava'
import { arrival, consumerRig, type Rig } from '../test/support/arrivals.ts'
import { connect, freshDatabase } from '../test/support/database.ts'
import { until } from '../test/support/until.ts'
import { editParked, FROM_START, parkedPage, skipParked } from './parked.ts'

/** One refused insert, with an image of it that waits behind. */
async function given(t: ExecutionContext): Promise<Rig & { url: string }> {
  const database = await freshDatabase()
  const rig = await consumerRig(database.url)
  t.teardown(async () => {
    await rig.close()
    await database.drop()
  })
  for (const statement of ['create schema app', 'create table app.account (id integer primary key, name varchar(5), n integer)']) await rig.rows(statement)
  await rig.apply(0, arrival('account', 'INSERT', 10, { id: '1', name: 'too long', n: '1' }, 1))
  await rig.apply(0, arrival('account', 'UPDATE', 20, { id: ['1', '1'], n: ['1', '2'] }, 2))
  return { ...rig, url: database.url }
}

test('a skip waits for whoever has the row, and gives nothing up that was applied meanwhile', async (t) => {
  const { slot, rows, url } = await given(t)
  const sql = connect(url, { max: 1 })
  t.teardown(() => sql.end({ timeout: 1 }))
  await sql`begin`
  await sql`select from inbox.row_version for update`
  const skipping = slot.run((one) => skipParked(one, 'me', [{ origin: 1, seqId: '1' }], 'why'))
  const watch = connect(url, { max: 1 })
  t.teardown(() => watch.end({ timeout: 1 }))
  await until(async () => (await watch`select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()`).length > 0)
  await sql`delete from inbox.parked where seq_id = 1`
  await sql`update inbox.applied set status = 'APPLIED' where seq_id = 1`
  await sql`commit`
  t.deepEqual([...await skipping].map((row) => ({ ...row })), [{ origin: 1, seq_id: '1', was: null }])
  t.deepEqual(await rows('select status from inbox.applied where seq_id = 1'), [{ status: 'APPLIED' }])
  t.deepEqual(await rows('select id from auditlog.action'), [], 'what did not happen is not in the audit')
})

test('an edit of a record that was edited meanwhile changes nothing', async (t) => {
  const { slot, rows } = await given(t)
  const [was] = await rows('select payload from inbox.parked where seq_id = 1')
  const entry = { origin: 1, seq_id: '1', payload: String(was!['payload']) }
  t.true(await slot.run((sql) => editParked(sql, 'me', entry, '{"first":1}', null)))
  t.false(await slot.run((sql) => editParked(sql, 'you', entry, '{"second":1}', null)))
  t.deepEqual(await rows('select payload from inbox.parked where seq_id = 1'), [{ payload: '{"first":1}' }])
  t.deepEqual(await rows('select actor, before = $1 as kept from auditlog.action', [entry.payload]), [{ actor: 'me', kept: true }])
})

test('a number that two origins gave is found twice, and once with its origin', async (t) => {
  const { slot, rows } = await given(t)
  for (const table of ['inbox.applied', 'inbox.parked']) {
    await rows(`insert into ${table} select (jsonb_populate_record(p, '{"origin": 2}')).* from ${table} p where p.seq_id = 1`)
  }
  const origins = async (origin: number | null): Promise<number[]> =>
    (await slot.run((sql) => parkedPage(sql, { ids: [{ origin, seqId: '1' }] }, FROM_START, 10))).map((entry) => entry.origin)
  t.deepEqual(await origins(null), [1, 2])
  t.deepEqual(await origins(2), [2])
})
