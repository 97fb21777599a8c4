import { setTimeout as pause } from 'node:timers/promises'
import postgres, { type Sql } from 'postgres'

import { openLog } from '../../services/runtime/log.ts'
import { openWake } from '../../services/runtime/wake.ts'
import type { RoleProcess } from '../commands/role-process.ts'
import { now } from '../demo/sender.ts'
import { bareUpserts } from './bare.ts'
import { bodyOf, makeSteps, MIX, modelOf, type Step } from './changes.ts'
import { dueToApplied, receivedToApplied } from './latency.ts'
import { measuredBetween, takeReading, topicBytes } from './measure.ts'
import { faultsOf } from './oracles.ts'
import { openPlace, type Bench, type Place } from './place.ts'
import { fillOutbox, openIntake } from './prefill.ts'
import type { Measured, RatioRule } from './result.ts'
import { reach } from './wait.ts'

const SIZES = [100, 1_000] as const
/** Rows that get nine of ten updates, where there are hot ones. */
const HOT_ROWS = 10
/** The relay's channel, which the listener rings. */
export const WAKE_CHANNEL = 'deltapost_wake'
/** Changes in front of a run at a rate, which are not counted: both programs are compiled while they run. */
export const WARM_UP_SECONDS = 3
const WARM_UP_ROWS = 15_000

/** Changes of one transaction of the source, which are due at the same moment and come in one post. */
const TOGETHER = [10, 1_000] as const

/** Of the same bench, repeat by repeat. */
export const PIPELINE_RATIOS: readonly RatioRule[] = [
  { name: 'hot rows to the usual mix', of: 'pipeline: drain hot rows', to: 'pipeline: drain 100 B', target: 1 },
  { name: 'with an old snapshot to without', of: 'pipeline: drain with an old snapshot', to: 'pipeline: drain 100 B', target: 0.95 },
]

/** Outbox, Kafka and target at once: a full outbox emptied, and a fixed rate with its latency. */
export async function pipeline(bench: Bench, keep: (run: Measured) => void): Promise<void> {
  const { events, rate, seconds, repeats } = bench.options
  for (let repeat = 1; repeat <= repeats; repeat += 1) {
    keep(await bareUpserts(bench, 'pipeline', repeat))
    for (const bytes of SIZES) keep(await drain(bench, { variant: `drain ${bytes} B`, bytes, repeat }, makeSteps(events)))
    keep(await drain(bench, { variant: 'drain hot rows', bytes: 100, repeat }, makeSteps(events, MIX, 1, HOT_ROWS)))
    keep(await drain(bench, { variant: 'drain with an old snapshot', bytes: 100, repeat, oldSnapshot: true }, makeSteps(events)))
  }
  for (let repeat = 1; repeat <= repeats; repeat += 1) {
    for (const bytes of SIZES) keep(await atRate(bench, { bytes, repeat, rate, seconds }))
    for (const together of TOGETHER) keep(await atRate(bench, { bytes: 100, repeat, rate, seconds, together }))
  }
}

/** `processes`: so many relays and consumers each; one where nothing is said. */
type Drain = { variant: string; bytes: number; repeat: number; oldSnapshot?: boolean; processes?: number }

/**
 * The clock is the database's, from the first ack to the last outcome. All that runs is warm: some changes went through
 * before, as peers on a JVM have a minute of them; then the relay stands still while the outbox is filled.
 */
export async function drain(bench: Bench, how: Drain, steps: readonly Step[]): Promise<Measured> {
  const { variant, bytes, repeat } = how
  const place = await openPlace(bench)
  let snapshot: Sql | undefined
  let thaw = (): void => undefined
  try {
    bench.tell(`pipeline: ${variant}, run ${repeat}`)
    const each = Array.from({ length: how.processes ?? 1 })
    await Promise.all(each.map(() => place.start('consumer')))
    await Promise.all(each.map(() => place.start('relay')))
    const warm = await warmUp(bench, place, bytes)
    const above = await lastSeqId(place)
    thaw = freeze(place.roles.filter(({ role }) => role === 'relay'))
    await fillOutbox(bench, place, steps, { bytes })
    if (how.oldSnapshot === true) snapshot = await holdSnapshot(place)
    const before = await takeReading(place)
    const onTopic = topicBytes(bench.kafkaData, place.topic)
    thaw()
    await everythingApplied(bench, place, warm + steps.length)
    const after = await takeReading(place)
    const seconds = await firstAckToLastOutcome(place, above)
    const faults = await faultsOf(place.sql, { changes: warm + steps.length, model: modelOf(steps), bytes, published: true })
    const kafkaBytes = topicBytes(bench.kafkaData, place.topic)
    return measuredBetween(place, before, after, {
      scenario: 'pipeline', variant, repeat, changes: steps.length, seconds, faults,
      ...(kafkaBytes === undefined || onTopic === undefined ? {} : { kafkaBytes: kafkaBytes - onTopic }),
    })
  } finally {
    thaw() // or it would not hear that it is to end
    await snapshot?.end({ timeout: 5 })
    await place.drop()
  }
}

/** Seconds, by the clock of the database. */
export async function firstAckToLastOutcome(place: Place, aboveSeqId: bigint): Promise<number> {
  const [row] = await place.sql<{ seconds: number }[]>`
    select extract(epoch from (select max(applied_at) from inbox.applied)
      - (select min(producer_publish_time) from auditlog.publish_log where seq_id > ${aboveSeqId.toString()}))::float8 as seconds`
  return row?.seconds ?? NaN
}

/** Stops the processes where they stand; what it returns lets them go on, once. */
function freeze(roles: readonly RoleProcess[]): () => void {
  const frozen = [...roles]
  for (const { pid } of frozen) process.kill(pid, 'SIGSTOP')
  return () => {
    for (const { pid } of frozen.splice(0)) process.kill(pid, 'SIGCONT')
  }
}

/** So many inserts of rows that nothing else has, and as many deletes: the table is empty again. Returns how many changes. */
async function warmUp(bench: Bench, place: Place, bytes: number): Promise<number> {
  const rows = Array.from({ length: WARM_UP_ROWS }, (_, at): Step => ({ id: 1_000_000_000 + at, before: 0, after: 1, marked: false }))
  const steps = [...rows, ...rows.map(({ id }): Step => ({ id, before: 1, after: 0, marked: false }))]
  await fillOutbox(bench, place, steps, { bytes })
  await everythingApplied(bench, place, steps.length)
  return steps.length
}

/** A transaction as a forgotten psql has it: nothing that is deleted from now on can be cleaned up. */
async function holdSnapshot(place: Place): Promise<Sql> {
  const sql = postgres(place.databaseUrl, { max: 1, onnotice: () => {} })
  await sql.unsafe('begin isolation level repeatable read; select count(*) from outbox.event')
  return sql
}

/** Every change has an outcome and has left the outbox. Asked seldom: the count reads all of inbox.applied. */
export async function everythingApplied(bench: Bench, place: Place, changes: number): Promise<void> {
  await reach({
    what: 'records read', goal: changes, everyMs: 50, signal: bench.signal,
    ask: async () => (await place.sql<{ count: number }[]>`
      select coalesce(sum(next_offset), 0)::integer as count from inbox.position where topic = ${place.topic}`)[0] ?? { count: 0 },
  })
  await reach({
    what: 'outcomes', goal: changes, everyMs: 200, signal: bench.signal,
    ask: async () => (await place.sql<{ count: number }[]>`
      select (select count(*) from inbox.applied)::integer - (select count(*) from outbox.event)::integer as count`)[0] ?? { count: 0 },
  })
}

/** `together`: so many changes are due at the same moment, and come in one post. */
type AtRate = { bytes: number; repeat: number; rate: number; seconds: number; together?: number }

/**
 * An open loop: each change is put into the outbox when it is due, whether earlier ones are through or not, and its TIME
 * is when it was due, so that whatever delays it counts.
 */
export async function atRate(bench: Bench, how: AtRate): Promise<Measured> {
  const { bytes, repeat, rate, seconds, together = 1 } = how
  const place = await openPlace(bench)
  const log = openLog('bench', 'warn')
  const wake = openWake({ url: place.databaseUrl, channel: WAKE_CHANNEL, name: 'bench', log })
  const intake = openIntake(place, { inOrder: false, ring: wake.ring })
  const play = (steps: readonly Step[]): Promise<void> => playAtRate(bench, transactionsOf(steps, together), rate / together,
    (some, micros) => intake.take(some.map((step, at) => bodyOf(step, micros + at, bytes)).join('\n')))
  try {
    const variant = `${rate}/s ${bytes} B${together === 1 ? '' : `, ${together} a transaction`}`
    bench.tell(`pipeline: ${variant}, run ${repeat}`)
    const warm = rate * WARM_UP_SECONDS
    const steps = makeSteps(warm + rate * seconds)
    await place.start('consumer')
    await place.start('relay')
    await play(steps.slice(0, warm))
    await everythingApplied(bench, place, warm)
    const above = await lastSeqId(place)
    const before = await takeReading(place)
    const begun = performance.now()
    await play(steps.slice(warm))
    await everythingApplied(bench, place, steps.length)
    const taken = (performance.now() - begun) / 1_000
    const after = await takeReading(place)
    const [latency, received] = [await dueToApplied(place.sql, above), await receivedToApplied(place.sql, above)]
    const faults = await faultsOf(place.sql, { changes: steps.length, model: modelOf(steps), bytes, published: true })
    return measuredBetween(place, before, after, {
      scenario: 'pipeline', variant, repeat, changes: steps.length - warm, seconds: taken, faults, latency,
      more: { 'received-applied p50 ms': received.p50, 'received-applied p99 ms': received.p99 },
    })
  } finally {
    await Promise.all([intake.close(), wake.close()])
    await place.drop()
  }
}

function transactionsOf(steps: readonly Step[], size: number): Step[][] {
  return Array.from({ length: Math.ceil(steps.length / size) }, (_, at) => steps.slice(at * size, (at + 1) * size))
}

/** Hands out each item at its due time, microseconds since 1970; those that are late go at once, with the time they were due. */
export async function playAtRate<T>(bench: Bench, steps: readonly T[], rate: number, take: (step: T, micros: number) => Promise<void>): Promise<void> {
  const begin = now()
  const busy = new Set<Promise<void>>()
  let failure: Error | undefined
  for (let at = 0; at < steps.length;) {
    const due = Math.min(steps.length, Math.ceil((now() - begin) * rate / 1_000))
    for (; at < due; at += 1) {
      const taking = take(steps[at] as T, Math.floor((begin + at * 1_000 / rate) * 1_000))
        .catch((error: unknown) => { failure ??= error instanceof Error ? error : new Error(String(error)) })
        .finally(() => busy.delete(taking))
      busy.add(taking)
    }
    if (failure !== undefined) throw failure
    await pause(1, undefined, { signal: bench.signal })
  }
  await Promise.all(busy)
  if (failure !== undefined) throw failure
}

export async function lastSeqId(place: Place): Promise<bigint> {
  const [row] = await place.sql<{ last: string | null }[]>`select max(seq_id)::text as last from auditlog.producer_log`
  return BigInt(row?.last ?? 0)
}
