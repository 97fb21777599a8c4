import test, { type ExecutionContext } from 'ava'
import { freshDatabase } from '../test/support/database.ts'
import { outboxConnection } from '../test/support/events.ts'
import { advanceSettled } from './floor.ts'
import { prune, prunePair } from './retention.ts'
import type { Sql } from './sql.ts'

const DAY = 86_400_000
const OPTIONS = { horizon: 30 * DAY, grace: 0 }

type Given = { sql: Sql; other: Sql; run: <T>(work: (sql: Sql) => PromiseLike<T>) => Promise<T> }

async function given(t: ExecutionContext): Promise<Given> {
  const { url, drop } = await freshDatabase()
  const [sql, other] = [outboxConnection(url), outboxConnection(url)]
  t.teardown(async () => {
    await Promise.all([sql, other].map((one) => one.end({ timeout: 1 })))
    await drop()
  })
  await sql`insert into inbox.statement (relation, revision, topicname, destination, schema_name, table_name, keyed, consumer_query, guard, leave)
    values (1, 1, 'topic', 'POSTGRES', 'app', 'test', true, 'q', 'g', 'l')`
  return { sql, other, run: (work) => Promise.resolve(work(sql)) }
}

/** Changes with everything that one leaves behind, received so many days ago, the numbers following each other. */
async function changes(sql: Sql, count: number, daysAgo: number, status = 'APPLIED', origin = 1): Promise<void> {
  await sql`
    with given as materialized (
      select nextval('outbox.position') as seq_id, now() - ${daysAgo}::float8 * interval '1 day' + n * interval '1 us' as at from generate_series(1, ${count}) n
    ), seen as (
      insert into outbox.seen (event_key, seq_id) select md5('key' || seq_id)::uuid, seq_id from given
    ), published as (
      insert into auditlog.publish_log (position, seq_id, producer_publish_status, producer_publish_time) select seq_id, seq_id, 'PUBLISHED', at from given
    ), applied as (
      insert into inbox.applied (origin, seq_id, status, statement, partition, "offset", applied_at) select ${origin}::smallint, seq_id, ${status}, 1, 0, seq_id, at from given
    )
    insert into auditlog.producer_log (seq_id, origin, topicname, source, schema_name, table_name, operation, producer_payload, dialect, source_time, received_at)
    select seq_id, ${origin}::smallint, 'topic', 'INFORMIX', 'app', 'test', 'UPDATE', '{"DATA":1}', 'v2', at, at from given order by seq_id`
}

/** The next numbers are of the next partition, as after five million changes. */
async function fillPartition(sql: Sql): Promise<void> {
  await sql`select setval('outbox.position', (last_value / 5000000 + 1) * 5000000, false) from outbox.position`
  await sql`select auditlog.add_partitions()`
}

async function settle(sql: Sql): Promise<void> {
  await sql`update auditlog.settled set up_to = (select last_value from outbox.position)`
}

type Counts = { received: number; seen: number; published: number; applied: number; audited: number; pending: number; partitions: string[] }

async function countAll(sql: Sql): Promise<Counts> {
  const [row] = await sql<Counts[]>`
    select (select count(*)::int from auditlog.producer_log) as received, (select count(*)::int from outbox.seen) as seen,
      (select count(*)::int from auditlog.publish_log) as published, (select count(*)::int from inbox.applied) as applied,
      (select count(*)::int from auditlog.audit_log) as audited, (select count(*)::int from auditlog.pending) as pending,
      (select array_agg(name order by low) from auditlog.partition) as partitions`
  return row!
}

const all = (n: number): Partial<Counts> => ({ received: n, seen: n, published: n, applied: n, audited: n, pending: 0 })

test('I12 a partition leaves as a whole when all its changes are behind the horizon, and what it held leaves every log', async (t) => {
  const { sql, run } = await given(t)
  await changes(sql, 300, 40)
  await fillPartition(sql)
  await changes(sql, 50, 35)
  await changes(sql, 50, 1)
  await settle(sql)
  const pruned = await prune(run, OPTIONS)
  t.like(pruned, { partitions: ['producer_log_000000'], busy: false })
  t.like(await countAll(sql), { ...all(100), seen: 50, partitions: ['producer_log_000001', 'producer_log_000002', 'producer_log_000003'] })

  await sql`update auditlog.settled set up_to = 0`
  t.is((await countAll(sql)).pending, 0, 'also where the watermark goes back, as when a table is rebuilt')
  t.like(await prune(run, OPTIONS), { partitions: [], rows: { producer_log: 0, seen: 0, applied: 0, publish_log: 0 } })
})

test('I12 what is parked, failed or on its way again stays with all its rows, in a small partition of the same numbers', async (t) => {
  const { sql, run } = await given(t)
  await changes(sql, 20, 40)
  for (const status of ['PARKED', 'RETRYING', 'FAILED']) await changes(sql, 1, 40, status)
  await changes(sql, 20, 40)
  await fillPartition(sql)
  await changes(sql, 1, 1)
  await settle(sql)
  await sql`insert into outbox.event (lane, position, seq_id, bytes) values (1, nextval('outbox.position'), 3, 10)`
  await sql`insert into inbox.parked (origin, seq_id, relation, key, epoch, time, reason, message, topic, payload) values (1, 5, 1, '["5"]', 1, 0, 'SKIPPED', 'm', 't', '{}')`
  await sql`update inbox.applied set status = 'SKIPPED' where seq_id = 5`
  t.like(await prune(run, OPTIONS), { partitions: ['producer_log_000000'] })
  t.deepEqual((await sql<{ seq_id: string }[]>`select seq_id from auditlog.audit_log where seq_id < 5000000 order by seq_id`).map((row) => row.seq_id), ['3', '5', '21', '22', '23'])
  t.like(await countAll(sql), { received: 6, published: 6, applied: 6, pending: 0 })
  t.like(await prune(run, OPTIONS), { partitions: [] }, 'and it is left alone from then on')

  await sql`update inbox.applied set status = 'SUPERSEDED' where status in ('PARKED', 'RETRYING')`
  t.like(await prune(run, OPTIONS), { partitions: ['producer_log_000000'] }, 'until more of it is settled')
  t.like(await countAll(sql), { received: 4, published: 4, applied: 4, pending: 0 })
})

test('I12 where changes come slowly they leave their partition one by one, each with all its rows', async (t) => {
  const { sql, run } = await given(t)
  await changes(sql, 4_500, 61)
  await changes(sql, 1, 61, 'FAILED')
  await changes(sql, 10, 31)
  await changes(sql, 30, 2)
  await settle(sql)
  await sql`update auditlog.publish_log set latest = false where seq_id = 7`
  await sql`insert into auditlog.publish_log (position, seq_id, producer_publish_status, producer_publish_time) values (999999, 7, 'PUBLISHED', now() - interval '40 days')`
  t.like(await prune(run, OPTIONS), { partitions: [], rows: { producer_log: 4_510, publish_log: 1 } })
  t.like(await countAll(sql), { ...all(31), seen: 30 })
  await sql`update auditlog.settled set up_to = 0`
  t.is((await countAll(sql)).pending, 0)
})

test('where a partition is soon full nothing is deleted from it: it will go as a whole', async (t) => {
  const { sql, run } = await given(t)
  await changes(sql, 100, 40)
  await changes(sql, 100, 1)
  await settle(sql)
  t.like(await prune(run, OPTIONS), { rows: { producer_log: 0, applied: 0, publish_log: 0, seen: 100 } })
  t.like(await countAll(sql), { ...all(200), seen: 100 })
})

test('the horizon counts from the oldest change that is still on its way', async (t) => {
  const { sql, run } = await given(t)
  await changes(sql, 10, 70)
  await changes(sql, 10, 45)
  await settle(sql)
  await changes(sql, 1, 20)
  await sql`delete from inbox.applied where seq_id = 21`
  t.like(await prune(run, OPTIONS), { rows: { producer_log: 0, seen: 10 } }, 'those of 45 days ago stay: 20 + 30 are not over')
  await sql`insert into inbox.applied (origin, seq_id, status, statement, partition, "offset") values (1, 21, 'APPLIED', 1, 0, 1)`
  await settle(sql)
  t.like(await prune(run, OPTIONS), { rows: { producer_log: 20, seen: 10 } })
})

test('I7 a tombstone leaves when no change can come that it must stop', async (t) => {
  const { sql, run } = await given(t)
  await changes(sql, 2, 40)
  await changes(sql, 2, 1)
  await settle(sql)
  const micros = (days: number): string => String(BigInt(Math.round(Date.now() - days * DAY)) * 1_000n)
  const tombstone = (relation: number, key: string, time: string, seq: number, more: { deleted?: boolean; parked?: boolean; origin?: number } = {}) => sql`
    insert into inbox.row_version (relation, key, origin, epoch, time, seq, deleted, parked)
    values (${relation}, ${key}, ${more.origin ?? 1}, 1, ${time}, ${seq}, ${more.deleted ?? true}, ${more.parked ?? false})`
  await tombstone(1, 'old', micros(40), 1)
  await tombstone(1, 'young', micros(1), 3)
  await tombstone(1, 'alive', micros(40), 1, { deleted: false })
  await tombstone(1, 'parked', micros(40), 1, { parked: true })
  await tombstone(1, 'behind', micros(40), 1)
  await tombstone(1, 'old, applied lately', micros(40), 4)
  await tombstone(1, 'captured, old', '0', 2)
  await tombstone(1, 'captured, young', '0', 3)
  await tombstone(2, 'of a stopped relation', micros(40), 1)
  await tombstone(3, 'foreign, forgotten', micros(40), 77, { origin: 9 })
  await tombstone(3, 'foreign, captured', '0', 77, { origin: 9 })
  await sql`insert into inbox.parked (origin, seq_id, relation, key, epoch, time, reason, message, topic, payload)
    values (1, 9, 1, 'behind', 1, 0, 'BEHIND', 'm', 't', '{}'), (1, 10, 2, null, 1, 0, 'RELATION_STOPPED', 'm', 't', '{}')`
  t.like(await prune(run, OPTIONS), { rows: { row_version: 3 } })
  const left = (await sql<{ key: string }[]>`select key from inbox.row_version order by key`).map(({ key }) => key)
  t.deepEqual(left, ['alive', 'behind', 'captured, young', 'foreign, captured', 'of a stopped relation', 'old, applied lately', 'parked', 'young'])
})

test('outcomes of changes of another database leave by their time, unless a receipt or a person waits for them', async (t) => {
  const { sql, run } = await given(t)
  await sql`
    insert into inbox.applied (origin, seq_id, status, statement, partition, "offset", applied_at)
    select 7, n, case n when 3 then 'FAILED' else 'APPLIED' end, 1, 0, n, now() - case when n > 4 then 1 else 40 end * interval '1 day' from generate_series(1, 6) n`
  await sql`insert into inbox.receipt (origin, seq_id, number) values (7, 2, 1)`
  await prune(run, OPTIONS)
  t.deepEqual((await sql<{ seq_id: string }[]>`select seq_id from inbox.applied order by seq_id`).map((row) => row.seq_id), ['2', '3', '5', '6'])
})

test('of rejects only those that were retried leave', async (t) => {
  const { sql, run } = await given(t)
  await sql`
    insert into auditlog.rejected_request (received_at, path, headers, body, reason, state, retried_at)
    select now() - interval '90 days', '/events', '{}', '', 'json_syntax', case when n > 1 then 'RETRIED' else 'WAITING' end,
           case when n > 1 then now() - n * interval '20 days' end from generate_series(1, 3) n`
  await changes(sql, 1, 1)
  await prune(run, { ...OPTIONS, horizon: 50 * DAY })
  t.deepEqual((await sql<{ id: string }[]>`select id from auditlog.rejected_request order by id`).map(({ id }) => id), ['1', '2'])
})

test('of two databases the second keeps what a change on its way in the first may still need', async (t) => {
  const [first, target] = [await given(t), await given(t)]
  await changes(first.sql, 1, 20)
  await target.sql`insert into inbox.row_version (relation, key, origin, epoch, time, seq, deleted)
    values (1, 'k', 1, 1, (extract(epoch from now() - interval '45 days') * 1000000)::bigint, 5, true)`
  await prunePair(first.run, target.run, OPTIONS)
  t.is((await target.sql`select from inbox.row_version`).count, 1)
  await settle(first.sql)
  await prunePair(first.run, target.run, OPTIONS)
  t.is((await target.sql`select from inbox.row_version`).count, 0)
})

test('several processes may prune at once: one begins, and both at once delete each row once', async (t) => {
  const { sql, other, run } = await given(t)
  await changes(sql, 5_000, 70)
  await changes(sql, 5, 1)
  await settle(sql)
  const both = await Promise.all([prune(run, OPTIONS), prune((work) => Promise.resolve(work(other)), OPTIONS)])
  t.is(both.reduce((sum, one) => sum + (one?.rows.seen ?? 0), 0), 5_000)
  t.is(both.reduce((sum, one) => sum + (one?.rows.producer_log ?? 0), 0), 5_000)
  t.like(await countAll(sql), all(5))
  t.is(await prune(run, { ...OPTIONS, every: 60_000 }), undefined)
})

test('I1 a partition that somebody reads is left for later, and an insert goes through meanwhile', async (t) => {
  const { sql, other, run } = await given(t)
  await changes(sql, 10, 40)
  await fillPartition(sql)
  await settle(sql)
  await other`begin`
  await other`select count(*) from auditlog.producer_log`
  t.like(await prune(run, OPTIONS), { partitions: [], busy: true })
  await changes(sql, 1, 0)
  t.is((await countAll(sql)).received, 11)
  await other`commit`
  t.like(await prune(run, OPTIONS), { partitions: ['producer_log_000000'], busy: false })
})

test('a row that an apply has locked is skipped and not waited for', async (t) => {
  const { sql, other, run } = await given(t)
  await changes(sql, 2, 40)
  await settle(sql)
  for (const key of ['1', '2']) {
    await sql`insert into inbox.row_version (relation, key, origin, epoch, time, seq, deleted) values (1, ${key}, 1, 1, 1, 1, true)`
  }
  await other`begin`
  await other`select from inbox.row_version where key = '1' for update`
  t.like(await prune(run, OPTIONS), { rows: { row_version: 1 } })
  await other`rollback`
  t.like(await prune(run, OPTIONS), { rows: { row_version: 1 } })
})

test('a table is not rebuilt from a producer_log that has lost its beginning', async (t) => {
  const { sql, run } = await given(t)
  await changes(sql, 10, 70)
  await changes(sql, 10, 1)
  await settle(sql)
  await sql`create schema app`
  await sql`create table app.test (id text)`
  await sql`
    insert into outbox.relation (source, source_schema, source_table, target_schema, target_table, known_from, columns, created, met_at)
    values ('INFORMIX', 'app', 'test', 'app', 'test', 'payload', '{id}', true, now() - interval '70 days')`
  await prune(run, OPTIONS)
  await t.throwsAsync(sql`select outbox.declare_key('INFORMIX', 'app', 'test', '{id}')`, { message: /behind the horizon/ })
})

test('I12 a change whose publishing FAILED holds up no pruning, and stays in the audit, with its bytes, until somebody decides', async (t) => {
  const { sql, run } = await given(t)
  await changes(sql, 300, 40)
  await sql`update auditlog.publish_log set producer_publish_status = 'FAILED', producer_failure_log = 'INVALID_RECORD: no' where seq_id = 7`
  await sql`delete from inbox.applied where seq_id = 7`
  await fillPartition(sql)
  await changes(sql, 50, 1)
  await sql`update outbox.lane set floor = (select last_value from outbox.position)`
  // 100,000 numbers a call, and a partition has five million.
  let at = '0'
  for (let was = ''; was !== at; ) [was, at] = [at, await advanceSettled(sql)]
  t.deepEqual([...await sql`select last_value::text as at from outbox.position`], [{ at }])
  t.like(await prune(run, OPTIONS), { partitions: ['producer_log_000000'] })
  t.like(await countAll(sql), { received: 51, published: 51, applied: 50, audited: 51, pending: 0 })
  const [kept] = await sql`select seq_id, producer_publish_status as publish, consumer_deploy_status as deploy, producer_payload::text as payload
    from auditlog.audit_log join auditlog.producer_log using (seq_id, origin) where seq_id = 7`
  t.deepEqual({ ...kept }, { seq_id: '7', publish: 'FAILED', deploy: null, payload: '{"DATA":1}' })
})
