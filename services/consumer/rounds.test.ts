import test from 'ava'
import type { ExecutionContext } from 'ava'

import { arrival, consumerRig } from '../../test/support/arrivals.ts'
import type { Rig } from '../../test/support/arrivals.ts'
import { freshDatabase } from '../../test/support/database.ts'
import { until } from '../../test/support/until.ts'

async function place(t: ExecutionContext, ...ddl: string[]): Promise<Rig> {
  const database = await freshDatabase()
  const rig = await consumerRig(database.url, { joined: true })
  t.teardown(async () => {
    await rig.close()
    await database.drop()
  })
  for (const statement of ['create schema app', 'create table app.account (id integer primary key, name varchar(5))', ...ddl]) await rig.rows(statement)
  // Terms are raised, and the table met, before anything is handed over at the same time.
  for (const partition of [0, 1, 2]) await rig.apply(partition, arrival('account', 'INSERT', 1, { id: String(partition), name: 'first' }))
  return rig
}

const positions = 'select partition, next_offset from inbox.position order by partition'
/** The transactions that rows were written in. */
const transactions = async (rig: Rig, table: string): Promise<number> => new Set((await rig.rows(`select xmin::text as x from ${table}`)).map(({ x }) => x)).size

test('I6 what partitions hand over at once is applied in one transaction, with the position and the partition of each', async (t) => {
  const rig = await place(t, 'create table app.other (n integer)')
  await rig.rows('truncate app.account, inbox.applied')
  const outcomes = await Promise.all([
    rig.apply(0, arrival('account', 'INSERT', 10, { id: '10', name: 'a' }, 100)),
    rig.apply(1, arrival('account', 'INSERT', 11, { id: '11', name: 'b' }, 201), arrival('account', 'DELETE', 12, { id: '12', name: 'c' }, 202)),
    rig.apply(2, arrival('account', 'INSERT', 13, { id: '13', name: 'd' }, 300)),
  ])
  t.deepEqual(outcomes, ['OK', 'OK', 'OK'])
  t.is(await transactions(rig, 'app.account'), 1)
  t.is(await transactions(rig, 'inbox.position'), 1)
  t.deepEqual(await rig.rows('select seq_id, partition, "offset" from inbox.applied order by seq_id'), [
    { seq_id: '100', partition: 0, offset: '100' }, { seq_id: '201', partition: 1, offset: '201' }, { seq_id: '202', partition: 1, offset: '202' }, { seq_id: '300', partition: 2, offset: '300' }])
  t.deepEqual(await rig.rows(positions), [{ partition: 0, next_offset: '101' }, { partition: 1, next_offset: '203' }, { partition: 2, next_offset: '301' }])
  await Promise.all([0, 1].map((partition) => rig.apply(partition, arrival('other', 'INSERT', 20, { n: String(partition) }, 400 + partition))))
  t.deepEqual(await rig.rows('select n from app.other order by n'), [{ n: 0 }, { n: 1 }], 'a table without a key too')
  t.deepEqual(await rig.rows('select seq_id, partition from inbox.applied where seq_id >= 400 order by seq_id'), [{ seq_id: '400', partition: 0 }, { seq_id: '401', partition: 1 }])
})

test('I5 a partition that another consumer has taken is refused, and holds up none that was handed over with it', async (t) => {
  const rig = await place(t)
  await rig.rows(`update inbox.position set term = term + 1 where partition = 1`)
  t.deepEqual(await Promise.all([0, 1, 2].map((partition) => rig.apply(partition, arrival('account', 'INSERT', 10, { id: `1${partition}`, name: 'new' })))), ['OK', 'FENCED', 'OK'])
  t.deepEqual(await rig.rows('select id from app.account where id >= 10 order by id'), [{ id: 10 }, { id: 12 }])
})

test('I8 a change that is refused holds up its own row only, and what was handed over with it is applied once', async (t) => {
  const rig = await place(t)
  const outcomes = await Promise.all([
    rig.apply(0, arrival('account', 'INSERT', 10, { id: '10', name: 'fits' }, 100)),
    rig.apply(1, arrival('account', 'INSERT', 11, { id: '11', name: 'too long' }, 101), arrival('account', 'INSERT', 12, { id: '12', name: 'fits' }, 102)),
  ])
  t.deepEqual(outcomes, ['OK', 'OK'])
  t.deepEqual(await rig.rows('select id from app.account where id >= 10 order by id'), [{ id: 10 }, { id: 12 }])
  t.like(await rig.statuses(), { 100: 'APPLIED', 101: 'RETRYING', 102: 'APPLIED' })
  const behind = rig.apply(0, arrival('account', 'UPDATE', 20, { id: ['11', '11'], name: ['too long', 'long too'] }, 103))
  t.deepEqual(await Promise.all([behind, rig.apply(1, arrival('account', 'UPDATE', 21, { id: ['12', '12'], name: ['fits', 'new'] }, 104))]), ['OK', 'OK'])
  t.deepEqual(await rig.rows('select id, name from app.account where id >= 10 order by id'), [{ id: 10, name: 'fits' }, { id: 12, name: 'new' }])
})

test('I8 what its own partition would not apply as it is, a parked row or a TIME ahead, is not applied because of what it was handed over with', async (t) => {
  const rig = await place(t)
  await rig.rows(`update inbox.row_version set parked = true where key = '0'`)
  const ahead = 2_000_000_000_000_000
  const outcomes = await Promise.all([
    rig.apply(0, arrival('account', 'UPDATE', 10, { id: ['0', '0'], name: ['first', 'then'] }, 100)), rig.apply(1, arrival('account', 'INSERT', 11, { id: '11', name: 'b' }, 101)),
  ])
  t.deepEqual(outcomes, ['OK', 'OK'])
  t.like(await rig.statuses(), { 100: 'APPLIED', 101: 'APPLIED' }, 'one by one, for the row is parked')
  t.like(await rig.rows(positions), [{ next_offset: '101' }, { next_offset: '102' }])
  await until(async () => { // the partitions go together again
    const seqId = Number((await rig.rows('select max(seq_id)::text as last from inbox.applied'))[0]?.['last']) + 10
    await Promise.all([0, 1].map((n) => rig.apply(n, arrival('account', 'UPDATE', 20, { id: [`1${n}`, `1${n}`], name: ['b', `c${seqId}`] }, seqId + n))))
    return (await rig.rows(`select 1 from inbox.applied where seq_id >= ${seqId} group by xmin having count(*) = 2`)).length === 1
  })
  await Promise.all([
    rig.apply(0, arrival('account', 'INSERT', ahead, { id: '30', name: 'late' }, 90_000)), rig.apply(1, arrival('account', 'INSERT', 31, { id: '31', name: 'b' }, 90_001)),
  ])
  t.like(await rig.statuses(), { 90000: 'PARKED', 90001: 'APPLIED' })
})

test('I6 no position moves before all that was handed over with it is applied, of whatever tables it is', async (t) => {
  const rig = await place(t, 'create table app.other (id integer primary key)')
  await rig.apply(1, arrival('other', 'INSERT', 1, { id: '1' }))
  await rig.rows(`create function app.no_space() returns trigger language plpgsql as $$ begin raise exception using errcode = 'disk_full', message = 'no space left'; end $$`)
  await rig.rows('create trigger no_space before insert on app.other for each row execute function app.no_space()')
  const before = await rig.rows(positions)
  const outcomes = await Promise.allSettled([
    rig.apply(0, arrival('account', 'INSERT', 10, { id: '10', name: 'a' })), rig.apply(1, arrival('other', 'INSERT', 11, { id: '11' })),
  ])
  t.deepEqual(outcomes.map(({ status }) => status), ['rejected', 'rejected'])
  t.deepEqual(await rig.rows(positions), before)
})

test('I10 a table that is locked or missing stops its relation, and no change of another that was handed over with it waits for long', async (t) => {
  const rig = await place(t, 'create table app.other (id integer primary key)')
  await rig.apply(0, arrival('other', 'INSERT', 1, { id: '1' }))
  await rig.rows('alter table app.other rename to moved')
  t.deepEqual(await Promise.all([
    rig.apply(0, arrival('other', 'INSERT', 10, { id: '10' })), rig.apply(1, arrival('account', 'INSERT', 11, { id: '11', name: 'b' })),
  ]), ['OK', 'OK'])
  t.deepEqual(await rig.rows('select id from app.account where id >= 10'), [{ id: 11 }])
  t.deepEqual(await rig.rows(`select source_table, state from outbox.relation where state <> 'ACTIVE'`), [{ source_table: 'other', state: 'STOPPED' }])
})

test('I10 a call that waits for a lock of ours does not hold up what other partitions hand over later', async (t) => {
  const rig = await place(t)
  let stuck: Promise<unknown> | undefined
  await rig.slot.run(async (sql) => sql.unsafe(`begin; select * from inbox.row_version where key = '0' for update`))
  try {
    stuck = rig.apply(0, arrival('account', 'UPDATE', 10, { id: ['0', '0'], name: ['first', 'then'] }))
    await until(async () => rig.slot.run(async (sql) => (await sql`select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()`).length > 0))
    t.is(await rig.apply(1, arrival('account', 'UPDATE', 10, { id: ['1', '1'], name: ['first', 'then'] })), 'OK')
  } finally {
    await rig.slot.run(async (sql) => sql.unsafe('commit'))
  }
  t.is(await stuck, 'OK')
  await until(async () => (await rig.rows(`select 1 from app.account where name = 'then'`)).length === 2)
})
