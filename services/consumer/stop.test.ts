import test from 'ava'
import type { ExecutionContext } from 'ava'
import { arrival, consumerRig } from '../../test/support/arrivals.ts'
import type { Rig } from '../../test/support/arrivals.ts'
import { connect, freshDatabase } from '../../test/support/database.ts'

async function rig(t: ExecutionContext): Promise<Rig & { url: string }> {
  const database = await freshDatabase()
  const made = await consumerRig(database.url)
  t.teardown(async () => {
    await made.close()
    await database.drop()
  })
  await made.rows('create schema app')
  await made.rows('create table app.account (id integer primary key, name varchar(10), photo text)')
  return { ...made, url: database.url }
}

const relations = 'select source_table as "table", state, stopped_by as by from outbox.relation order by 1'

test('I10 a relation whose table is gone stops, its changes queue without attempts, the others go on, and all is applied in order when it is back', async (t) => {
  const { apply, rows, statuses, tend } = await rig(t)
  await apply(0, arrival('account', 'INSERT', 1, { id: '1', name: 'a' }, 1), arrival('other', 'INSERT', 1, { id: '1' }, 2))
  await rows('alter table app.account rename to moved')
  for (let seq = 3; seq < 20; seq += 2) {
    await apply(seq % 3, arrival('account', 'UPDATE', seq, { id: ['1', '1'], name: ['x', `v${seq}`] }, seq), arrival('other', 'INSERT', seq, { id: String(seq) }, seq + 1))
  }
  t.deepEqual(await rows(relations), [{ table: 'account', state: 'STOPPED', by: 'failure' }, { table: 'other', state: 'ACTIVE', by: null }])
  t.deepEqual(await rows('select count(*)::int as n from app.other'), [{ n: 10 }])
  t.deepEqual(await rows('select reason, attempts, count(*)::int as n from inbox.parked group by 1, 2'), [{ reason: 'RELATION_STOPPED', attempts: 0, n: 9 }])
  await tend()
  t.deepEqual((await rows(relations))[0], { table: 'account', state: 'STOPPED', by: 'failure' }, 'still gone')
  await rows('alter table app.moved rename to account')
  await tend()
  t.deepEqual((await rows(relations))[0], { table: 'account', state: 'ACTIVE', by: null })
  t.deepEqual(await rows('select name from app.account'), [{ name: 'v19' }])
  t.deepEqual(await rows('select 1 from inbox.parked'), [])
  t.true(Object.values(await statuses()).every((status) => status === 'APPLIED' || status === 'SUPERSEDED'))
  await apply(0, arrival('account', 'UPDATE', 30, { id: ['1', '1'], name: ['v19', 'after'] }, 30))
  t.deepEqual(await rows('select name from app.account'), [{ name: 'after' }])
})

test('I10 a column that the target lacks, and a right that is missing, stop the relation and name the fault', async (t) => {
  const { apply, rows, tend } = await rig(t)
  await apply(0, arrival('account', 'INSERT', 1, { id: '1', name: 'a' }, 1))
  await apply(0, arrival('account', 'INSERT', 2, { id: '2', name: 'b', birth: '1970-01-01' }, 2))
  t.regex(String((await rows('select stop_reason from outbox.relation'))[0]?.['stop_reason']), /TARGET_COLUMN_MISSING.*birth/)
  await rows('alter table app.account add column birth date')
  await tend()
  t.deepEqual(await rows('select id, birth::text from app.account order by id'), [{ id: 1, birth: null }, { id: 2, birth: '1970-01-01' }])
})

test('I10 a locked table stops its relation only, and it goes on by itself', async (t) => {
  const { apply, rows, tend, url } = await rig(t)
  await apply(0, arrival('account', 'INSERT', 1, { id: '1', name: 'a' }, 1), arrival('other', 'INSERT', 1, { id: '1' }, 2))
  const sql = connect(url, { max: 1 })
  t.teardown(() => sql.end({ timeout: 1 }))
  await sql`begin`
  await sql`lock table app.account in access exclusive mode`
  await apply(0, arrival('account', 'INSERT', 3, { id: '2', name: 'b' }, 3), arrival('other', 'INSERT', 3, { id: '2' }, 4))
  t.deepEqual(await rows('select id from app.other order by id'), [{ id: '1' }, { id: '2' }])
  t.regex(String((await rows('select stop_reason from outbox.relation where state = \'STOPPED\''))[0]?.['stop_reason']), /55P03/)
  await sql`commit`
  await tend()
  t.deepEqual(await rows('select id from app.account order by id'), [{ id: 1 }, { id: 2 }])
})

test('what is refused while a queue is taken up is parked alone, and the rest of the queue is applied', async (t) => {
  const { apply, rows, statuses, tend } = await rig(t)
  await apply(0, arrival('account', 'INSERT', 1, { id: '1', name: 'a' }, 1))
  await rows(`update outbox.relation set state = 'STOPPED', stopped_by = 'operator', stop_reason = 'test'`)
  await apply(0, arrival('account', 'INSERT', 2, { id: '2', name: 'more than ten characters' }, 2), arrival('account', 'INSERT', 3, { id: '3', name: 'c' }, 3))
  await apply(1, arrival('account', 'DELETE', 4, { id: '1' }, 4))
  t.deepEqual(await rows('select id from app.account'), [{ id: 1 }])
  t.deepEqual(await rows('select inbox.resume(id, \'operator\') as resumed from outbox.relation'), [{ resumed: false }], 'not while something is queued')
  t.deepEqual(await rows('select inbox.resume(id, \'failure\') as resumed from outbox.relation'), [{ resumed: null }], 'an operator stopped it')
  await tend()
  t.deepEqual(await rows('select id from app.account'), [{ id: 3 }])
  t.deepEqual(await statuses(), { 1: 'APPLIED', 2: 'RETRYING', 3: 'APPLIED', 4: 'APPLIED' })
})
