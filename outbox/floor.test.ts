import test from 'ava'
import { freshDatabase } from '../test/support/database.ts'
import { outboxConnection, writeEvents } from '../test/support/events.ts'
import { until } from '../test/support/until.ts'
import { ack } from './ack.ts'
import { claimLanes } from './claim.ts'
import type { Claim } from './claim.ts'
import { advanceSettled, lastPosition, openFloor, raiseFloors, takeTransactionId } from './floor.ts'
import type { Floor } from './floor.ts'
import { nextEvents } from './pending.ts'
import { publishAgain, refuse } from './refused.ts'
import type { Sql } from './sql.ts'

type Given = { sql: Sql; other: Sql; third: Sql; claims: Claim[]; floor: Floor }

async function given(t: { teardown: (end: () => Promise<void>) => void }): Promise<Given> {
  const { url, drop } = await freshDatabase()
  const [sql, other, third] = [outboxConnection(url), outboxConnection(url), outboxConnection(url)]
  t.teardown(async () => {
    await Promise.all([sql, other, third].map((one) => one.end({ timeout: 1 })))
    await drop()
  })
  const claims = await claimLanes(sql, 'a', 72, 60_000)
  return { sql, other, third, claims, floor: openFloor((work) => Promise.resolve(work(sql))) }
}

async function ackAll(sql: Sql, claims: Claim[]): Promise<void> {
  const events = await sql<{ lane: number; position: string }[]>`select e.lane, e.position from outbox.event e`
  await ack(sql, 'a', claims, events.map((event) => ({ ...event, partition: 0, offset: '0' })))
}

/** Transactions of other tests on the same server hold a fence too, so raising is tried until something moves. */
async function raise(floor: Floor, claims: Claim[]): Promise<{ lane: number; floor: string }[]> {
  return until(async () => {
    const moved = await floor.raise('a', claims)
    return moved.length > 0 ? moved : undefined
  }, { within: 30_000, what: 'a floor that moves' })
}

async function floors(sql: Sql): Promise<string[]> {
  return (await sql<{ floor: string }[]>`select distinct l.floor from outbox.lane l order by l.floor`).map(({ floor }) => floor)
}

/** As the intake does: the transaction id first, then the number; the row is written later. */
async function handOut(sql: Sql): Promise<string> {
  const [row] = await sql<{ position: string }[]>`
    with xid as materialized (select pg_current_xact_id()) select nextval('outbox.position') as position from xid`
  return row!.position
}

async function insertAt(sql: Sql, position: string): Promise<void> {
  await sql`insert into outbox.event (lane, position, seq_id, bytes) values (7, ${position}, ${position}, 10)`
}

test('the floor rises to the last position when everything is published', async (t) => {
  const { sql, claims, floor } = await given(t)
  const seqIds = await writeEvents(sql, Array.from({ length: 100 }, (_, key) => ({ key: String(key) })))
  await ackAll(sql, claims)
  t.is((await raise(floor, claims)).length, 72)
  t.deepEqual(await floors(sql), [seqIds.at(-1)])
})

test('a sequence that was never asked does not raise a floor over its first number', async (t) => {
  const { sql } = await given(t)
  t.is(await lastPosition(sql), '0')
  const [first] = await writeEvents(sql, [{ key: '1' }])
  t.is(first, '1')
  t.is(await lastPosition(sql), '1')
})

test('the floor stays below the lowest pending position of the lane, in flight or not due', async (t) => {
  const { sql, claims, floor } = await given(t)
  const [, waiting] = await writeEvents(sql, [{ key: '1' }, { key: '2', dueIn: '1 hour' }, { key: '3' }])
  const [{ lane }] = await sql<{ lane: number }[]>`select e.lane from outbox.event e where e.position = ${waiting!}` as unknown as [{ lane: number }]
  await sql`delete from outbox.event where position <> ${waiting!}`
  const raised = await raise(floor, claims)
  t.is(raised.find((one) => one.lane === lane)?.floor, String(BigInt(waiting!) - 1n))
  t.true(raised.filter((one) => one.lane !== lane).every((one) => one.floor === '3'))
})

for (const newest of [false, true]) {
  test(`I3 the floor does not pass a position handed out and not committed, whose transaction is ${newest ? 'the newest of all' : 'older than others that ended'}`, async (t) => {
    const { sql, other, third, claims, floor } = await given(t)
    if (newest) await writeEvents(third, [{ key: '1' }])
    await other`begin`
    const position = await handOut(other)
    if (!newest) await writeEvents(third, [{ key: '1' }])
    await ackAll(sql, claims)
    for (let round = 0; round < 3; round++) t.deepEqual(await floor.raise('a', claims), [])
    await insertAt(other, position)
    await other`commit`
    const pending = await nextEvents(sql, (await sql<{ lane: number; floor: string }[]>`select l.lane, l.floor from outbox.lane l`).map((lane) => ({ ...lane, inflight: new Set() })), { rows: 10, bytes: 1_000 })
    t.deepEqual(pending.map((event) => event.position), [position])
    await raise(floor, claims)
    const [{ floor: raised }] = await sql`select l.floor from outbox.lane l where l.lane = 7` as unknown as [{ floor: string }]
    t.is(raised, String(BigInt(position) - 1n))
  })
}

test('the order of the steps is what holds the floor: with the position read last it passes an open transaction', async (t) => {
  const { sql, other, third, claims } = await given(t)
  const xid = await takeTransactionId(sql)
  await other`begin`
  const position = await handOut(other)
  await writeEvents(third, [{ key: '1' }])
  await ackAll(sql, claims)
  const tooLate = await lastPosition(sql)
  const raised = await until(() => raiseFloors(sql, 'a', claims, tooLate, xid), { within: 30_000 })
  t.true(BigInt(raised.find(({ lane }) => lane === 7)?.floor ?? 0) >= BigInt(position), 'the fault this rule is against')
  await other`rollback`
})

test('a fence held by a transaction is passed when that ends, and a rolled back number does not hold the floor', async (t) => {
  const { sql, other, third, claims, floor } = await given(t)
  await other`begin`
  await handOut(other)
  await writeEvents(third, [{ key: '1' }])
  await ackAll(sql, claims)
  t.deepEqual(await floor.raise('a', claims), [])
  await other`rollback`
  t.is((await raise(floor, claims)).length, 72)
})

test('I5 only the holder of the claim moves a floor', async (t) => {
  const { sql, claims, floor } = await given(t)
  await writeEvents(sql, [{ key: '1' }])
  await ackAll(sql, claims)
  await sql`update outbox.lane set term = term + 1, holder = 'b' where lane <> 7`
  t.deepEqual(await raise(floor, claims), [{ lane: 7, floor: '1' }])
})

test('settled moves over what is published and has an outcome, and stops below the first that is on its way', async (t) => {
  const { sql, claims, floor } = await given(t)
  const seqIds = await writeEvents(sql, Array.from({ length: 10 }, (_, key) => ({ key: String(key) })))
  t.is(await advanceSettled(sql), '0')
  await ackAll(sql, claims)
  await raise(floor, claims)
  t.is(await advanceSettled(sql), '0')
  const outcome = (seqId = ""): Promise<unknown> => sql`
    insert into inbox.applied (origin, seq_id, status, statement, partition, "offset") values (1, ${seqId}, 'APPLIED', 1, 0, 0)`
  for (const seqId of seqIds.filter((_, n) => n !== 6)) await outcome(seqId)
  t.is(await advanceSettled(sql), seqIds[5]!)
  await outcome(seqIds[6] ?? '')
  t.is(await advanceSettled(sql), seqIds[9]!)
  t.is(await advanceSettled(sql), seqIds[9]!)
})

/** Refuses everything that waits, without a further try. */
async function refuseAll(sql: Sql, claims: readonly Claim[]): Promise<void> {
  const waiting = await sql<{ lane: number; position: string }[]>`select lane, position from outbox.event where kind <> 'error'`
  const refused = waiting.map((event) => ({ ...event, code: 'MESSAGE_TOO_LARGE', message: 'no' }))
  await refuse(sql, 'a', claims, refused, { maxRetries: 0, backoff: 1, errorTopic: 'errors', recipients: [] })
}

test('I9 I12 a change whose publishing FAILED holds up neither the watermark nor the pending view, and the audit shows it once, below and above', async (t) => {
  const { sql, claims, floor } = await given(t)
  const [bad] = await writeEvents(sql, [{ key: '1' }])
  await refuseAll(sql, claims)
  const [next] = await writeEvents(sql, [{ key: '2' }])
  await ackAll(sql, claims)
  await raise(floor, claims)
  const audit = async (): Promise<unknown[]> => [...await sql`
    select seq_id, producer_publish_status as publish, producer_failure_log as failure, consumer_deploy_status as deploy from auditlog.audit_log order by seq_id`]
  const failed = { seq_id: bad!, publish: 'FAILED', failure: 'MESSAGE_TOO_LARGE: no', deploy: null }
  const onItsWay = { seq_id: next!, publish: 'PUBLISHED', failure: null, deploy: 'PENDING' }
  t.deepEqual(await audit(), [failed, onItsWay])
  t.deepEqual((await sql<{ seq_id: string }[]>`select seq_id from auditlog.pending`).map(({ seq_id: id }) => id), [next!])
  t.is(await advanceSettled(sql), String(BigInt(next!) - 1n))
  t.deepEqual(await audit(), [failed, onItsWay])

  await sql`insert into inbox.applied (origin, seq_id, status, statement, partition, "offset") values (1, ${next!}, 'APPLIED', 1, 0, 0)`
  t.true(BigInt(await advanceSettled(sql)) >= BigInt(next!))
  t.deepEqual(await audit(), [failed, { ...onItsWay, deploy: 'APPLIED' }])
  t.is((await sql`select from auditlog.pending`).length, 0)

  // Written all the same, by a send that nobody answered.
  await sql`insert into inbox.applied (origin, seq_id, status, statement, partition, "offset") values (1, ${bad!}, 'APPLIED', 1, 0, 1)`
  t.deepEqual(await audit(), [{ ...failed, deploy: 'APPLIED' }, { ...onItsWay, deploy: 'APPLIED' }])
})

test('I12 the watermark does not pass a failed change that is put back while it is moved', async (t) => {
  for (const first of ['put back', 'moved'] as const) {
    const { sql, other, third, claims, floor } = await given(t)
    const [bad] = await writeEvents(sql, [{ key: '1' }])
    await refuseAll(sql, claims)
    await sql`delete from outbox.event`
    await raise(floor, claims)
    const putBack = (by: Sql) => publishAgain(by, [bad!])
    const [one, two] = first === 'moved' ? [advanceSettled, putBack] : [putBack, advanceSettled]
    await other`begin`
    await one(other)
    const waiting = two(sql)
    await until(async () => (await third`select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`).length > 0)
    await other`commit`
    await waiting
    const [shown] = await sql`select seq_id, producer_publish_status as publish from auditlog.audit_log`
    t.deepEqual({ ...shown }, { seq_id: bad!, publish: 'PENDING' }, first)
    t.is(await advanceSettled(sql), String(BigInt(bad!) - 1n), first)
  }
})

test('settled does not pass a change that another origin of the same number had applied', async (t) => {
  const { sql, claims, floor } = await given(t)
  const [seqId] = await writeEvents(sql, [{ key: '1' }])
  await ackAll(sql, claims)
  await raise(floor, claims)
  await sql`insert into inbox.applied (origin, seq_id, status, statement, partition, "offset") values (2, ${seqId!}, 'APPLIED', 1, 0, 0)`
  t.is(await advanceSettled(sql), '0')
})

test('I3 a floor above the last number, as after a restore, begins anew', async (t) => {
  const { sql, claims, floor } = await given(t)
  await sql`update outbox.lane set floor = 1000`
  const above = claims.map((claim) => ({ ...claim, floor: '1000' }))
  await writeEvents(sql, [{ key: '1' }])
  const lowered = await floor.raise('a', above)
  t.is(lowered.length, 72)
  t.deepEqual(await floors(sql), ['0'])
})

test('I12 the watermark does not pass changes that a rebuild takes back while it waits', async (t) => {
  const { sql, other, third } = await given(t)
  const seqIds = await writeEvents(sql, Array.from({ length: 6 }, (_, key) => ({ key: String(key) })))
  await sql`insert into auditlog.publish_log (position, seq_id, producer_publish_status) select seq_id, seq_id, 'PUBLISHED' from auditlog.producer_log`
  await sql`insert into inbox.applied (origin, seq_id, status, statement, partition, "offset") select 1, seq_id, 'APPLIED', 1, 0, seq_id from auditlog.producer_log`
  await sql`delete from outbox.event`
  await sql`update outbox.lane set floor = ${seqIds.at(-1)!}`
  // Its only connection, so a transaction without reserve(), which never answers on a connection not yet made.
  const rebuild = other
  await rebuild`begin`
  await rebuild`delete from inbox.applied where seq_id > ${seqIds[2]!}`
  await rebuild`update auditlog.settled set up_to = least(up_to, ${seqIds[2]!}::bigint)`
  const advancing = advanceSettled(sql)
  await until(async () => (await third`select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`).length > 0)
  await rebuild`commit`
  await advancing
  t.is(await advanceSettled(sql), seqIds[2]!)
})
