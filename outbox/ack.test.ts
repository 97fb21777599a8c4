import test from 'ava'
import { freshDatabase } from '../test/support/database.ts'
import { outboxConnection, writeEvents } from '../test/support/events.ts'
import { until } from '../test/support/until.ts'
import { ack, discard } from './ack.ts'
import type { Published } from './ack.ts'
import { claimLanes } from './claim.ts'
import type { Claim } from './claim.ts'
import { nextEvents } from './pending.ts'
import type { Sql } from './sql.ts'

const LIMITS = { rows: 1_000, bytes: 1 << 20 }

async function given(t: { teardown: (end: () => Promise<void>) => void }): Promise<{ one: Sql; two: Sql }> {
  const { url, drop } = await freshDatabase()
  const [one, two] = [outboxConnection(url), outboxConnection(url)]
  t.teardown(async () => {
    await Promise.all([one, two].map((sql) => sql.end({ timeout: 1 })))
    await drop()
  })
  return { one, two }
}

async function read(sql: Sql, claims: readonly Claim[]): Promise<Published[]> {
  const events = await nextEvents(sql, claims.map((claim) => ({ ...claim, inflight: new Set() })), LIMITS)
  return events.map(({ lane, position }, at) => ({ lane, position, partition: lane % 12, offset: String(at) }))
}

test('I3 an acked event leaves the outbox and is in publish_log, in one statement; others stay', async (t) => {
  const { one } = await given(t)
  const seqIds = await writeEvents(one, [{ key: '1' }, { key: '1' }, { key: '2' }])
  const claims = await claimLanes(one, 'a', 72, 60_000)
  const all = await read(one, claims)
  const first = all.filter(({ position }) => position !== seqIds[1])
  const { held, count } = await ack(one, 'a', claims, first)
  t.is(held.length, 72)
  t.is(count, 2)
  t.deepEqual((await read(one, claims)).map(({ position }) => position), [seqIds[1]])
  const log = await one<{ position: string; status: string; latest: boolean; partition: number; offset: string }[]>`select position, producer_publish_status as status, partition, "offset", latest from auditlog.publish_log order by position`
  t.deepEqual(log.map(({ position, status, latest }) => ({ position, status, latest })), [seqIds[0], seqIds[2]].map((position) => ({ position, status: 'PUBLISHED', latest: true })))
  t.deepEqual(log.map((row) => [row.partition, row.offset]), first.toSorted((x, y) => Number(x.position) - Number(y.position)).map((row) => [row.partition, row.offset]))
})

test('an ack that is repeated removes nothing more and fences nobody', async (t) => {
  const { one } = await given(t)
  await writeEvents(one, [{ key: '1' }, { key: '2' }])
  const claims = await claimLanes(one, 'a', 72, 60_000)
  const events = await read(one, claims)
  t.is((await ack(one, 'a', claims, events)).count, 2)
  const again = await ack(one, 'a', claims, events)
  t.is(again.count, 0)
  t.is(again.held.length, 72)
})

test('I5 a relay that slept through its lease cannot ack; its successor can', async (t) => {
  const { one, two } = await given(t)
  await writeEvents(one, [{ key: '1' }])
  const slept = await claimLanes(one, 'sleeper', 72, 0)
  const events = await read(one, slept)
  await until(async () => (await one`select from outbox.lane where held_until < now()`).length === 72)
  const successor = await claimLanes(two, 'successor', 72, 60_000)
  t.deepEqual(await ack(one, 'sleeper', slept, events), { held: [], count: 0 })
  t.is((await one`select from outbox.event`).length, 1)
  t.is((await ack(two, 'successor', successor, events)).count, 1)
})

test('I5 a fenced lane does not stop the ack of the others', async (t) => {
  const { one, two } = await given(t)
  await writeEvents(one, Array.from({ length: 50 }, (_, key) => ({ key: String(key) })))
  const claims = await claimLanes(one, 'a', 72, 60_000)
  const events = await read(one, claims)
  const lost = events[0]!.lane
  await two`update outbox.lane set holder = 'b', term = term + 1 where lane = ${lost}`
  const { held, count } = await ack(one, 'a', claims, events)
  t.false(held.includes(lost))
  t.is(held.length, 71)
  t.is(count, events.filter(({ lane }) => lane !== lost).length)
})

test('I5 while an ack is under way its lanes cannot be claimed, though the lease ran out', async (t) => {
  const { one, two } = await given(t)
  await writeEvents(one, [{ key: '1' }])
  const claims = await claimLanes(one, 'a', 72, 0)
  const events = await read(one, claims)
  const mine = claims.filter(({ lane }) => lane === events[0]!.lane)
  await until(async () => (await one`select from outbox.lane where held_until < now()`).length === 72)
  await one`begin`
  t.is((await ack(one, 'a', mine, events)).count, 1)
  const others = await claimLanes(two, 'b', 72, 60_000)
  t.is(others.length, 71)
  t.false(others.some(({ lane }) => lane === events[0]!.lane))
  await one`commit`
  t.is((await claimLanes(two, 'b', 72, 60_000)).length, 1)
  t.is((await two`select from outbox.event`).length, 0)
})

test('a change published again has one latest row, and its ack does not fail', async (t) => {
  const { one } = await given(t)
  const [seqId] = await writeEvents(one, [{ key: '1' }])
  const claims = await claimLanes(one, 'a', 72, 60_000)
  const events = await read(one, claims)
  await ack(one, 'a', claims, events)
  const [again] = await one<{ position: string }[]>`
    insert into outbox.event (lane, position, seq_id, attempt, bytes)
    values (${events[0]!.lane}, nextval('outbox.position'), ${seqId!}, 1, 10) returning position`
  t.is((await ack(one, 'a', claims, await read(one, claims))).count, 1)
  const log = await one`select position, attempt, latest from auditlog.publish_log order by position`
  t.deepEqual([...log].map((row) => ({ ...row })), [
    { position: seqId!, attempt: 0, latest: false },
    { position: again!.position, attempt: 1, latest: true },
  ])
})

test('I3 I12 two publications of one change are acked in any order, together or apart, and the newest is the latest', async (t) => {
  for (const order of [[0, 1], [1, 0]]) {
    for (const together of [true, false]) {
      const { one } = await given(t)
      const [seqId] = await writeEvents(one, [{ key: '1' }])
      await one`insert into outbox.event (lane, position, seq_id, bytes) select lane, nextval('outbox.position'), seq_id, bytes from outbox.event`
      const claims = await claimLanes(one, 'a', 72, 60_000)
      const events = await read(one, claims)
      const ordered = order.map((at) => events[at]!)
      if (together) await ack(one, 'a', claims, ordered)
      else for (const event of ordered) await ack(one, 'a', claims, [event])
      t.is((await one`select from outbox.event`).length, 0)
      const log = await one<{ position: string; latest: boolean }[]>`select position, latest from auditlog.publish_log where seq_id = ${seqId!} order by position`
      t.deepEqual(log.map(({ latest }) => latest), [false, true], `${order.join()} ${together}`)
    }
  }
})

test('a retry becomes the latest publication of an own change; of a foreign one, and the record of a failure, it does not', async (t) => {
  const { one } = await given(t)
  const [own] = await writeEvents(one, [{ key: '1' }])
  const claims = await claimLanes(one, 'a', 72, 60_000)
  await ack(one, 'a', claims, await read(one, claims))
  await one`
    insert into inbox.parked (origin, seq_id, relation, epoch, time, reason, message, topic, payload)
    select n, ${own!}, 1, 1, 1, 'REFUSED', 'no', 'topic', '{"DATA":1}' from generate_series(1, 2) n`
  const insert = (kind: string, origin: number | null): PromiseLike<unknown> => one`
    insert into outbox.event (lane, position, seq_id, attempt, kind, bytes, origin, topic, head)
    values (outbox.side_lane(${kind}, ${own!}), nextval('outbox.position'), ${own!}, 1, ${kind}, 10, ${origin}, 'errors', '"error":1')`
  await insert('retry', null)
  await insert('retry', 1)
  await insert('retry', 2)
  await insert('error', null)
  t.is((await ack(one, 'a', claims, await read(one, claims))).count, 4)
  const log = await one`select kind, origin, attempt, latest from auditlog.publish_log where seq_id = ${own!} order by position`
  t.deepEqual([...log].map((row) => ({ ...row })), [
    { kind: null, origin: null, attempt: 0, latest: false },
    { kind: 'retry', origin: null, attempt: 1, latest: false },
    { kind: 'retry', origin: null, attempt: 1, latest: true },
    { kind: 'retry', origin: 2, attempt: 1, latest: false },
    { kind: 'error', origin: null, attempt: 1, latest: false },
  ])
})

test('I5 what is obsolete leaves without a trace, and only by the hand of who holds its lane', async (t) => {
  const { one, two } = await given(t)
  await one`insert into outbox.event (lane, position, seq_id, attempt, kind, bytes) values (10001, nextval('outbox.position'), 1, 1, 'retry', 10)`
  const claims = await claimLanes(one, 'a', 72, 60_000)
  const events = await read(one, claims)
  t.is(events.length, 1)
  await two`update outbox.lane set holder = 'b', term = term + 1 where lane = 10001`
  t.is((await discard(one, 'a', claims, events)).count, 0)
  const [now] = await two<Claim[]>`select lane, term, floor from outbox.lane where lane = 10001`
  t.deepEqual(await discard(two, 'b', [now!], events), { held: [10001], count: 1 })
  t.is((await one`select from auditlog.publish_log`).length, 0)
})
