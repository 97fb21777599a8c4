import { openLog } from '../../services/runtime/log.ts'
import { openWake } from '../../services/runtime/wake.ts'
import { bodyOf, makeSteps, modelOf, type Step } from './changes.ts'
import { dueToApplied } from './latency.ts'
import { measuredBetween, takeReading } from './measure.ts'
import { faultsOf } from './oracles.ts'
import { drain, everythingApplied, firstAckToLastOutcome, lastSeqId, playAtRate, WAKE_CHANNEL } from './pipeline.ts'
import { openPlace, type Bench, type Place } from './place.ts'
import { fillOutbox, openIntake } from './prefill.ts'
import type { Measured, RatioRule } from './result.ts'

const BYTES = 100
const BASE = 'drain a small one'

export const BACKLOG_RATIOS: readonly RatioRule[] = ['statistics of an empty table', 'analysed'].map((variant) => (
  { name: `backlog, ${variant}, to a small one`, of: `backlog: ${variant}`, to: `backlog: ${BASE}`, target: 0.9 }))

/** `--backlog` changes wait, as after a weekend without a relay: how fast they leave, and the latency when they have left. */
export async function backlog(bench: Bench, keep: (run: Measured) => void): Promise<void> {
  const { events, repeats } = bench.options
  for (let repeat = 1; repeat <= repeats; repeat += 1) {
    keep({ ...await drain(bench, { variant: BASE, bytes: BYTES, repeat }, makeSteps(events)), scenario: 'backlog' })
    for (const analysed of [false, true]) keep(await drainBacklog(bench, repeat, analysed))
  }
}

async function drainBacklog(bench: Bench, repeat: number, analysed: boolean): Promise<Measured> {
  const { events, rate, seconds: liveSeconds } = bench.options
  const place = await openPlace(bench)
  const wake = openWake({ url: place.databaseUrl, channel: WAKE_CHANNEL, name: 'bench', log: openLog('bench', 'warn') })
  const intake = openIntake(place, { inOrder: false, ring: wake.ring })
  try {
    bench.tell(`backlog: ${bench.options.backlog} changes, ${analysed ? 'analysed' : 'statistics of an empty table'}, run ${repeat}`)
    const steps = makeSteps(events + rate * liveSeconds)
    // No autovacuum until the relay begins, or it would analyse what is to be met as it is.
    for (const table of ['outbox.event', 'auditlog.producer_log_000000']) await place.sql.unsafe(`alter table ${table} set (autovacuum_enabled = false)`)
    const changes = await fillBacklog(bench, place, steps.slice(0, events))
    if (analysed) await place.sql.unsafe('vacuum analyze outbox.event, auditlog.producer_log')
    for (const table of ['outbox.event', 'auditlog.producer_log_000000']) await place.sql.unsafe(`alter table ${table} reset (autovacuum_enabled)`)
    await place.start('consumer')
    const before = await takeReading(place)
    await place.start('relay')
    await everythingApplied(bench, place, changes)
    const after = await takeReading(place)
    const seconds = await firstAckToLastOutcome(place, 0n)
    const above = await lastSeqId(place)
    const live = steps.slice(events)
    await playAtRate(bench, live, rate, (step, micros) => intake.take(bodyOf(step, micros, BYTES)))
    await everythingApplied(bench, place, changes + live.length)
    const faults = await faultsOf(place.sql, { changes: changes + live.length, model: modelOf(steps), bytes: BYTES, published: true })
    const latency = await dueToApplied(place.sql, above)
    return measuredBetween(place, before, after, {
      scenario: 'backlog', variant: analysed ? 'analysed' : 'statistics of an empty table', repeat, changes, seconds, faults, latency,
    })
  } finally {
    await Promise.all([intake.close(), wake.close()])
    await place.drop()
  }
}

/**
 * Some changes through the intake, and then the same ones again and again in SQL, each time with later numbers and TIMEs, so
 * that they apply anew and end in the same rows. Returns how many there are.
 */
async function fillBacklog(bench: Bench, place: Place, steps: readonly Step[]): Promise<number> {
  await fillOutbox(bench, place, steps, { bytes: BYTES })
  const copies = Math.max(1, Math.ceil(bench.options.backlog / steps.length))
  for (let copy = 1; copy < copies; copy += 1) {
    bench.signal.throwIfAborted()
    const shift = copy * steps.length
    await place.sql.begin(async (sql) => {
      await sql`select setval('outbox.position', ${shift + steps.length})`
      await sql`select auditlog.add_partitions()`
      await sql`
        insert into auditlog.producer_log (seq_id, origin, topicname, source, schema_name, table_name, operation, producer_payload, clean_payload,
          raw, dialect, row_key, source_time, epoch, traceparent, received_at)
        select seq_id + ${shift}, origin, topicname, source, schema_name, table_name, operation, producer_payload, clean_payload,
          raw, dialect, row_key, source_time + ${copy}::integer * interval '1 s', epoch, traceparent, received_at
        from auditlog.producer_log where seq_id <= ${steps.length}`
      await sql`
        insert into outbox.event (lane, position, seq_id, attempt, kind, bytes)
        select lane, position + ${shift}, seq_id + ${shift}, attempt, kind, bytes from outbox.event where position <= ${steps.length} order by position`
    })
  }
  return copies * steps.length
}
