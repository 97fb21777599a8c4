import test from 'ava'
import type { ExecutionContext } from 'ava'
import fc from 'fast-check'
import { freshDatabase } from '../test/support/database.ts'
import { outboxConnection } from '../test/support/events.ts'
import { until } from '../test/support/until.ts'
import { becomeSecond, comparePair, dropReceipts, readReceipts, readStatementTexts, standingOf, tellOutcomes, tellStatements, waitingReceipts } from './receipt.ts'
import type { Receipt } from './receipt.ts'
import type { Sql } from './sql.ts'

type Pair = { first: Sql; target: Sql; urls: { first: string; target: string } }

/** A first and a second database; `outcome` writes into applied of the second as an apply does. */
async function pair(t: ExecutionContext): Promise<Pair> {
  const [a, b] = [await freshDatabase(), await freshDatabase()]
  const [first, target] = [outboxConnection(a.url), outboxConnection(b.url)]
  t.teardown(async () => {
    await Promise.all([first.end({ timeout: 5 }), target.end({ timeout: 5 })])
    await Promise.all([a.drop(), b.drop()])
  })
  await becomeSecond(target, 1)
  return { first, target, urls: { first: a.url, target: b.url } }
}

async function statement(sql: Sql, text = 'insert into app.t', table = 't', key: string[] | null = null): Promise<number> {
  await sql`select from outbox.meet('INFORMIX', 'app', ${table})`
  if (key !== null) await sql`update outbox.relation set key_columns = ${key}::text[] where source_table = ${table}`
  const [row] = await sql<{ id: number }[]>`
    insert into inbox.statement (relation, revision, topicname, destination, schema_name, table_name, keyed, consumer_query, guard, leave)
    select r.id, 1, 'topic', 'POSTGRESQL', 'app', ${table}, true, ${text}, 'guard', 'leave' from outbox.relation r where r.source_table = ${table}
    returning id`
  return row!.id
}

async function outcome(sql: Sql, seqId: number, status: string, { origin = 1, attempt = 0, failure = null as string | null, statement = 1 } = {}): Promise<void> {
  await sql`
    insert into inbox.applied (origin, seq_id, status, attempt, statement, partition, "offset", failure)
    values (${origin}, ${seqId}, ${status}, ${attempt}, ${statement}, 0, ${seqId}, ${failure})
    on conflict (origin, seq_id) do update set status = excluded.status, attempt = excluded.attempt, failure = excluded.failure, applied_at = clock_timestamp()`
}

const take = async (target: Sql, origins = [1], limit?: { rows: number; bytes: number }): Promise<Receipt[]> => [...await readReceipts(target, origins, 'me', limit) ?? []]

async function tell({ first, target }: Pair, receipts: readonly Receipt[]): Promise<void> {
  const texts = await readStatementTexts(target, receipts)
  await tellStatements(first, texts)
  await tellOutcomes(first, receipts, texts)
}

async function ship(two: Pair): Promise<void> {
  for (let receipts = await take(two.target); receipts.length > 0; receipts = await take(two.target)) {
    await tell(two, receipts)
    await dropReceipts(two.target, receipts)
  }
}

const outcomes = (sql: Sql): PromiseLike<{ seq_id: string; status: string; attempt: number; failure: string | null; applied_at: string }[]> =>
  sql`select seq_id, status, attempt, failure, applied_at from inbox.applied order by origin, seq_id`

test('I9 I12 every outcome in the second database leaves a receipt, and the first is told what consumer_log shows', async (t) => {
  const two = await pair(t)
  const { first, target } = two
  await first`select from outbox.meet('INFORMIX', 'app', 'other')` // so that relations have other numbers there
  await first`select from outbox.meet('INFORMIX', 'app', 't')`
  const [one, other] = [await statement(target, 'insert into app.t'), await statement(target, 'insert into app.other', 'other')]
  await statement(first, 'a statement of its own')
  await outcome(target, 1, 'APPLIED', { statement: one })
  await outcome(target, 2, 'RETRYING', { statement: other, attempt: 1, failure: '22001: too long' })
  await outcome(target, 3, 'SKIPPED', { statement: one, failure: 'skipped by an administrator' })
  await ship(two)
  const shown = (sql: Sql) => sql`select seq_id, origin, topicname, destination, schema_name, table_name, consumer_query, consumer_deploy_status,
    consumer_failure_log, consumer_update_time, attempt, partition, "offset" from auditlog.consumer_log order by seq_id`
  t.deepEqual([...await shown(first)], [...await shown(target)])
  t.is((await shown(first)).length, 3)
  t.deepEqual([...await first`select r.source_table, s.consumer_query from inbox.statement s join outbox.relation r on r.id = s.relation where guard = '' order by 1`],
    [{ source_table: 'other', consumer_query: 'insert into app.other' }, { source_table: 't', consumer_query: 'insert into app.t' }])
  t.like(await waitingReceipts(target), { count: 0, oldest_age_seconds: null })
})

test('a database that is not the second of two keeps no receipts', async (t) => {
  const { first } = await pair(t)
  await outcome(first, 1, 'APPLIED')
  await outcome(first, 1, 'PARKED')
  t.like(await waitingReceipts(first), { count: 0 })
})

test('a row of applied that is deleted and inserted in one transaction is told as it is in the end', async (t) => {
  const two = await pair(t)
  const { first, target } = two
  const id = await statement(target)
  await outcome(target, 7, 'PARKED', { statement: id, failure: 'WAITING' })
  await ship(two)
  await target.unsafe(`begin; delete from inbox.applied where seq_id = 7;
    insert into inbox.applied (origin, seq_id, status, statement, partition, "offset") values (1, 7, 'APPLIED', ${id}, 0, 7); commit`).simple()
  await ship(two)
  t.like((await outcomes(first))[0], { seq_id: '7', status: 'APPLIED', failure: null })
})

test('I12 outcomes told in any order and any number of times end in the newest state', async (t) => {
  const two = await pair(t)
  const { first, target } = two
  const id = await statement(target)
  const states = fc.constantFrom('APPLIED', 'PARKED', 'RETRYING', 'FAILED', 'SKIPPED', 'SUPERSEDED')
  const news = fc.record({ seqId: fc.integer({ min: 1, max: 4 }), status: states, attempt: fc.integer({ min: 0, max: 3 }), ship: fc.boolean() })
  await fc.assert(fc.asyncProperty(fc.array(news, { minLength: 2, maxLength: 12 }), fc.array(fc.nat(), { maxLength: 12 }), async (steps, again) => {
    await target`truncate inbox.applied, inbox.receipt`
    await first`truncate inbox.applied`
    const read: Receipt[][] = []
    for (const step of steps) {
      await outcome(target, step.seqId, step.status, { attempt: step.attempt, statement: id })
      if (step.ship) read.push(await take(target))
    }
    read.push(await take(target))
    // Each shipment as it was read, in a wrong order, some twice.
    const shipments = [...again.flatMap((n) => [read[n % read.length] ?? []]), ...read.toReversed()]
    for (const shipment of shipments) await tell(two, shipment)
    t.deepEqual([...await outcomes(first)], [...await outcomes(target)])
  }), { numRuns: 40 })
})

test('news that come while a receipt is told are told next, and dropping waits for no apply', async (t) => {
  const two = await pair(t)
  const { first, target, urls } = two
  const id = await statement(target)
  await outcome(target, 1, 'RETRYING', { statement: id })
  await outcome(target, 2, 'RETRYING', { statement: id })
  const receipts = await take(target)
  await tell(two, receipts)
  await outcome(target, 1, 'APPLIED', { statement: id })
  const apply = outboxConnection(urls.target)
  t.teardown(() => apply.end({ timeout: 5 }))
  await apply`begin`
  await outcome(apply, 2, 'FAILED', { statement: id })
  t.is(await dropReceipts(target, receipts), 0, 'the first is newer, the second is being written')
  await apply`commit`
  await ship(two)
  t.deepEqual((await outcomes(first)).map(({ status }) => status), ['APPLIED', 'FAILED'])
})

test('changes of other origins are not told, and those taken in under a former origin are', async (t) => {
  const two = await pair(t)
  const { first, target } = two
  const id = await statement(target)
  await first`insert into auditlog.producer_log (origin, topicname, source, schema_name, table_name, operation, producer_payload, dialect, source_time)
    values (1, 'topic', 'INFORMIX', 'app', 't', 'INSERT', '{}', 'v2', now())`
  await first`update outbox.database set origin = 5`
  t.deepEqual((await standingOf(first)).origins, [1, 5])
  for (const origin of [1, 2, 5, 9]) await outcome(target, 1, 'APPLIED', { origin, statement: id })
  const receipts = await take(target, [5, 1])
  t.deepEqual(receipts.map(({ origin }) => origin).toSorted(), [1, 5])
  await dropReceipts(target, receipts)
  t.deepEqual((await waitingReceipts(target)).origins, [9], 'its own changes leave none')
})

test('a shipment is bounded in rows and bytes, and begins with the lowest numbers', async (t) => {
  const { target } = await pair(t)
  for (let n = 9; n >= 1; n -= 1) await outcome(target, n, 'PARKED', { failure: 'x'.repeat(1_000) })
  t.deepEqual((await take(target, [1], { rows: 4, bytes: 1 << 20 })).map(({ seqId }) => seqId), ['1', '2', '3', '4'])
  t.deepEqual((await take(target, [1], { rows: 9, bytes: 2_500 })).map(({ seqId }) => seqId), ['1', '2', '3'])
  t.is((await take(target, [1], { rows: 9, bytes: 10 })).length, 1, 'one is always taken')
})

test('one consumer ships at a time, and another takes over when its lease has run out', async (t) => {
  const { target } = await pair(t)
  await outcome(target, 1, 'APPLIED')
  t.is((await readReceipts(target, [1], 'one'))?.length, 1)
  t.is(await readReceipts(target, [1], 'two'), undefined)
  t.is((await readReceipts(target, [8], 'two'))?.length, 0, 'receipts of another first database are another turn')
  await target`update inbox.shipper set held_until = clock_timestamp() - interval '1 ms'`
  t.is((await readReceipts(target, [1], 'two'))?.length, 1)
})

test('the first database learns a key that the second has, and keeps the one it knows', async (t) => {
  const two = await pair(t)
  const { first, target } = two
  await first`select from outbox.meet('INFORMIX', 'app', 't')`
  await first`select from outbox.meet('INFORMIX', 'app', 'u')`
  await first`update outbox.relation set key_columns = '{mine}', known_from = 'registered' where source_table = 'u'`
  await outcome(target, 1, 'APPLIED', { statement: await statement(target, 'insert into app.t', 't', ['a', 'b']) })
  await outcome(target, 2, 'APPLIED', { statement: await statement(target, 'insert into app.u', 'u', ['other']) })
  await ship(two)
  t.deepEqual([...await first`select source_table, key_columns, known_from from outbox.relation order by 1`],
    [{ source_table: 't', key_columns: ['a', 'b'], known_from: 'target' }, { source_table: 'u', key_columns: ['mine'], known_from: 'registered' }])
})

test('a second database that had applied before tells that too, and off and on tells everything anew', async (t) => {
  const two = await pair(t)
  const { first, target } = two
  const id = await statement(target)
  await target`select inbox.keep_receipts(false)`
  for (let n = 1; n <= 3; n += 1) await outcome(target, n, 'APPLIED', { statement: id })
  t.like(await waitingReceipts(target), { count: 0 })
  await target`select inbox.keep_receipts(true)`
  await ship(two)
  t.is((await outcomes(first)).length, 3)
  await first`truncate inbox.applied, inbox.statement`
  await target`select inbox.keep_receipts(false), inbox.keep_receipts(true)`
  await ship(two)
  t.is((await first`select from auditlog.consumer_log`).length, 3)
})

test('switching receipts on waits for applies under way and misses none of them', async (t) => {
  const { target, urls } = await pair(t)
  await target`select inbox.keep_receipts(false)`
  const apply = outboxConnection(urls.target)
  t.teardown(() => apply.end({ timeout: 5 }))
  await apply`begin`
  await outcome(apply, 1, 'APPLIED')
  const switched = target`select inbox.keep_receipts(true)`.execute()
  await until(async () => (await apply`select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()`).length > 0)
  await apply`commit`
  await switched
  t.like(await waitingReceipts(target), { count: 1 })
})

test('a fresh second database gets the next origin, one that handed out numbers keeps its own and is refused', async (t) => {
  const [a, b] = [await freshDatabase(), await freshDatabase()]
  const [first, target] = [outboxConnection(a.url), outboxConnection(b.url)]
  t.teardown(async () => {
    await Promise.all([first.end({ timeout: 5 }), target.end({ timeout: 5 })])
    await Promise.all([a.drop(), b.drop()])
  })
  t.throws(() => comparePair({ identity: 'a', origin: 1, origins: [1], keepsReceipts: false }, { identity: 'b', origin: 2, origins: [2], keepsReceipts: false }), { code: 'TARGET_NOT_SECOND' })
  await target`select nextval('outbox.position')`
  t.is(await becomeSecond(target, 1), 1)
  const refused = t.throws(() => comparePair({ identity: 'a', origin: 1, origins: [1], keepsReceipts: false }, { identity: 'b', origin: 1, origins: [1], keepsReceipts: true }), { code: 'ORIGIN_TAKEN' })
  t.like(refused, { remedy: 'in the database of TARGET_DATABASE_URL: update outbox.database set origin = 2' })
  await target`update outbox.database set origin = 2`
  t.is(comparePair(await standingOf(first), await standingOf(target)), 'two')
  t.is(comparePair(await standingOf(first), await standingOf(first)), 'same')
})

test('a key is not declared over changes that the database does not have: the table would be emptied and stay empty', async (t) => {
  const { target } = await pair(t)
  await target`create schema app`
  await target`create table app.t (a text)`
  await target`insert into app.t values ('kept')`
  await statement(target)
  await target`update outbox.relation set created = true, columns = '{a}'`
  await t.throwsAsync(async () => target`select outbox.declare_key('INFORMIX', 'app', 't', '{a}')`, { code: 'P0001' })
  t.is((await target`select from app.t`).length, 1)
})
