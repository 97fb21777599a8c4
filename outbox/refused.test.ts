import test from 'ava'
import { freshDatabase } from '../test/support/database.ts'
import { outboxConnection, writeEvents } from '../test/support/events.ts'
import { until } from '../test/support/until.ts'
import { ack } from './ack.ts'
import { claimLanes } from './claim.ts'
import type { Claim } from './claim.ts'
import { nextEvents } from './pending.ts'
import type { PendingEvent } from './pending.ts'
import { publishAgain, refuse } from './refused.ts'
import type { Course } from './refused.ts'
import type { Sql } from './sql.ts'

const COURSE: Course = { maxRetries: 2, backoff: 1, errorTopic: 'errors', recipients: ['admin@abc.com', 'b"c'] }

type Given = { sql: Sql; other: Sql; third: Sql; claims: Claim[]; read: () => Promise<PendingEvent[]>; refuseAll: (course?: Partial<Course>) => Promise<number> }

async function given(t: { teardown: (end: () => Promise<void>) => void }): Promise<Given> {
  const { url, drop } = await freshDatabase()
  const [sql, other, third] = [outboxConnection(url), outboxConnection(url), outboxConnection(url)]
  t.teardown(async () => {
    await Promise.all([sql, other, third].map((one) => one.end({ timeout: 1 })))
    await drop()
  })
  const claims = await claimLanes(sql, 'a', 72, 60_000)
  const read = (): Promise<PendingEvent[]> => nextEvents(sql, claims.map((claim) => ({ ...claim, inflight: new Set() })), { rows: 1_000, bytes: 1 << 24 })
  return {
    sql, other, third, claims, read,
    async refuseAll(course = {}) {
      const events = await until(async () => {
        const all = await read()
        return all.length > 0 ? all : undefined
      })
      const refused = events.map(({ lane, position }) => ({ lane, position, code: 'INVALID_RECORD', message: 'no "good"\n' }))
      return (await refuse(sql, 'a', claims, refused, { ...COURSE, ...course })).count
    },
  }
}

type LogLine = { status: string; attempt: number; failure: string | null; latest: boolean; kind: string | null }

async function logOf(sql: Sql): Promise<LogLine[]> {
  const rows = await sql<LogLine[]>`
    select producer_publish_status as status, attempt, producer_failure_log as failure, latest, kind from auditlog.publish_log order by position`
  return [...rows].map((row) => ({ ...row }))
}

const FAILURE = 'INVALID_RECORD: no "good"\n'

test('I3 I9 a refused change is tried again so often, in a lane of its own; then it is FAILED, and its failure is an event, in one statement', async (t) => {
  const { sql, read, refuseAll } = await given(t)
  const [seqId] = await writeEvents(sql, [{ key: '1', payload: '{"DATA":7}', topic: 'changes', traceparent: '00-ab-cd-01' }])
  for (const attempt of [1, 2]) {
    t.is(await refuseAll(), 1)
    const [event] = await sql<{ lane: number; attempt: number; kind: string; seq_id: string; position: string; due: boolean }[]>`
      select lane, attempt, kind, seq_id, position, due_at is not null as due from outbox.event`
    t.like(event, { attempt, kind: 'change', seq_id: seqId!, due: true })
    t.true(event!.lane >= 10_000 && event!.lane < 20_000)
    t.true(BigInt(event!.position) > BigInt(seqId!))
    const [again] = await until(async () => (await read()).length > 0 ? await read() : undefined)
    t.is(again!.id, `1:${seqId}:${attempt}`)
    t.is(again!.topicname, 'changes')
  }
  t.is(await refuseAll(), 1)
  t.deepEqual(await logOf(sql), [
    { status: 'RETRYING', attempt: 0, failure: FAILURE, latest: false, kind: null },
    { status: 'RETRYING', attempt: 1, failure: FAILURE, latest: false, kind: null },
    { status: 'FAILED', attempt: 2, failure: FAILURE, latest: true, kind: null },
  ])
  const [audit] = await sql`select producer_publish_status, producer_failure_log from auditlog.audit_log`
  t.deepEqual({ ...audit }, { producer_publish_status: 'FAILED', producer_failure_log: FAILURE })
  const [failure, ...rest] = await read()
  t.is(rest.length, 0)
  t.like(failure, { topicname: 'errors', traceparent: '00-ab-cd-01' })
  t.true(failure!.lane >= 20_000)
  const { RECEIVED_AT: _, ...value } = JSON.parse(failure!.value!) as Record<string, unknown>
  t.deepEqual(value, {
    recipients: ['admin@abc.com', 'b"c'], error: { code: 'INVALID_RECORD', message: 'no "good"\n', sqlstate: null, side: 'publish', attempts: 2 },
    SEQ_ID: seqId, TOPICNAME: 'changes', SOURCE: 'INFORMIX', DATA: 7,
  })
})

test('I3 the record of a failure that is refused too leaves after its tries, and breeds none', async (t) => {
  const { sql, refuseAll } = await given(t)
  await writeEvents(sql, [{ key: '1' }])
  // As the apply writes it: the attempt is the change's.
  await sql`
    update outbox.event set kind = 'error', lane = 20001, topic = 'errors', head = '"error":1', attempt = 9, position = nextval('outbox.position')`
  for (let n = 0; n < 3; n++) t.is(await refuseAll(), 1)
  t.is((await sql`select from outbox.event`).length, 0)
  t.deepEqual((await logOf(sql)).map(({ status, attempt, latest, kind }) => [status, attempt, latest, kind]), [
    ['RETRYING', 9, false, 'error'], ['RETRYING', 9, false, 'error'], ['FAILED', 9, false, 'error']])
})

test('I9 a retry that is refused keeps its attempt, and its change is FAILED in the inbox too', async (t) => {
  const { sql, read, refuseAll } = await given(t)
  await sql`
    insert into inbox.parked (origin, seq_id, relation, epoch, time, reason, message, attempts, topic, payload)
    values (1, 5, 1, 1, 1, 'REFUSED', 'no', 0, 'changes', '{"DATA":1}')`
  await sql`insert into inbox.applied (origin, seq_id, status, statement, partition, "offset", failure) values (1, 5, 'RETRYING', 1, 0, 0, 'REFUSED 22003: no')`
  await sql`insert into auditlog.publish_log (position, seq_id, producer_publish_status) values (5, 5, 'PUBLISHED')`
  await sql`select setval('outbox.position', 10)`
  await sql`insert into outbox.event (lane, position, seq_id, attempt, kind, bytes) values (10001, nextval('outbox.position'), 5, 1, 'retry', 10)`
  for (let n = 0; n < 3; n++) t.is(await refuseAll(), 1)
  const [failure] = await read()
  t.is(failure!.topicname, 'errors')
  t.is(failure!.id, '1:5:1')
  const [applied] = await sql`select status, failure from inbox.applied`
  t.deepEqual({ ...applied }, { status: 'FAILED', failure: 'REFUSED 22003: no; its retry could not be published: INVALID_RECORD' })
  t.deepEqual((await logOf(sql)).map(({ status, latest, kind }) => [status, latest, kind]), [
    ['PUBLISHED', true, null], ['RETRYING', false, 'retry'], ['RETRYING', false, 'retry'], ['FAILED', false, 'retry']], 'its publishing stays PUBLISHED')
})

test('I9 I12 with two databases a retry that cannot be published is FAILED in the second, and a receipt tells the first', async (t) => {
  const { sql, read, refuseAll } = await given(t)
  await sql`update outbox.database set origin = 2`
  await sql`select inbox.keep_receipts(true)`
  await sql`
    insert into inbox.parked (origin, seq_id, relation, epoch, time, reason, message, attempts, topic, payload)
    values (1, 5, 1, 1, 1, 'REFUSED', 'no', 0, 'changes', '{"DATA":1}')`
  await sql`insert into inbox.applied (origin, seq_id, status, statement, partition, "offset", failure) values (1, 5, 'RETRYING', 1, 0, 0, 'REFUSED 22003: no')`
  await sql`insert into outbox.event (lane, position, seq_id, attempt, kind, bytes, origin) values (10001, nextval('outbox.position') + 10, 5, 1, 'retry', 10, 1)`
  await sql`delete from inbox.receipt`
  for (let n = 0; n < 3; n++) t.is(await refuseAll(), 1)
  t.is((await read())[0]?.id, '1:5:1', 'the record of the failure has the number of the first')
  t.deepEqual([...await sql`select r.origin, r.seq_id, a.status from inbox.receipt r join inbox.applied a using (origin, seq_id)`], [{ origin: 1, seq_id: '5', status: 'FAILED' }])
  const log = await sql`select distinct origin, latest from auditlog.publish_log`
  t.deepEqual([...log], [{ origin: 1, latest: false }], 'nothing that could be taken for a change of the second')
})

test('I5 who lost the lane sets nothing aside', async (t) => {
  const { sql, other, refuseAll } = await given(t)
  await writeEvents(sql, [{ key: '1' }])
  await other`update outbox.lane set holder = 'b', term = term + 1`
  t.is(await refuseAll(), 0)
  t.is((await sql`select from outbox.event where attempt = 0 and due_at is null`).length, 1)
  t.deepEqual(await logOf(sql), [])
})

test('a refusal that is written twice, one beside the other, counts once', async (t) => {
  const { sql, other, third, claims, read } = await given(t)
  await writeEvents(sql, [{ key: '1' }])
  const refused = (await read()).map(({ lane, position }) => ({ lane, position, code: 'INVALID_RECORD', message: '' }))
  await sql`begin`
  t.is((await refuse(sql, 'a', claims, refused, { ...COURSE, maxRetries: 0 })).count, 1)
  const second = refuse(other, 'a', claims, refused, { ...COURSE, maxRetries: 0 })
  await until(async () => (await third`select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`).length > 0)
  await sql`commit`
  t.is((await second).count, 0)
  t.is((await sql`select from outbox.event where kind = 'error'`).length, 1)
})

test('a change whose publishing failed is put back once, with all its attempts, and the audit shows it as pending', async (t) => {
  const { sql, claims, read, refuseAll } = await given(t)
  const [good, bad] = await writeEvents(sql, [{ key: '1' }, { key: '2' }])
  const first = (await read()).filter(({ position }) => position === good)
  await ack(sql, 'a', claims, first.map(({ lane, position }) => ({ lane, position, partition: 0, offset: '0' })))
  await refuseAll({ maxRetries: 0 })
  await sql`update auditlog.settled set up_to = ${bad!}`
  t.deepEqual(await publishAgain(sql, [good!, bad!, '999']), [bad!])
  t.deepEqual(await publishAgain(sql, [good!, bad!, '999']), [])
  const [shown] = await sql`select producer_publish_status from auditlog.audit_log where seq_id = ${bad!}`
  t.is(shown!['producer_publish_status'], 'PENDING')
  const [event] = (await read()).filter(({ lane }) => lane < 64)
  t.is(event!.id, `1:${bad}:0`)
  await ack(sql, 'a', claims, [{ lane: event!.lane, position: event!.position, partition: 0, offset: '1' }])
  t.deepEqual((await logOf(sql)).map(({ status, latest }) => [status, latest]), [['PUBLISHED', true], ['FAILED', false], ['PUBLISHED', true]])
})
