import { openKafka } from '../../services/runtime/kafka.ts'
import { openLog } from '../../services/runtime/log.ts'
import { bodyOf, makeSteps, modelOf, rowOf, type Step } from './changes.ts'
import { latencyOf } from './latency.ts'
import { measuredBetween, takeReading } from './measure.ts'
import { NAIVE_TABLE, runNaive, type NaiveChange } from './peers/naive.ts'
import { openPlace, type Bench, type Place } from './place.ts'
import type { Measured, RatioRule } from './result.ts'

/** What it did best with on the reference box; 1 and 32 were slower. */
const AT_ONCE = 8
const MOST_CHANGES = 5_000

export const NAIVE_RATIOS: readonly RatioRule[] = [
  { name: 'pipeline drain to naive', of: 'pipeline: drain 100 B', to: 'naive: drain 100 B', target: 40 },
]

/** The naive audit pipeline on the same servers. Its changes are few, because they are slow. */
export async function naive(bench: Bench, keep: (run: Measured) => void): Promise<void> {
  for (let repeat = 1; repeat <= bench.options.repeats; repeat += 1) keep(await naiveRun(bench, { bytes: 100, repeat }))
}

/** One run of it: as fast as it can, or with each change when it is due at a `rate`, which it may not hold. */
export async function naiveRun(bench: Bench, { bytes, repeat, rate }: { bytes: number; repeat: number; rate?: number }): Promise<Measured> {
  const wanted = rate === undefined ? bench.options.events : rate * bench.options.seconds
  const steps = makeSteps(Math.min(MOST_CHANGES * (rate === undefined ? 1 : 4), wanted))
  const variant = rate === undefined ? `drain ${bytes} B` : `${rate}/s ${bytes} B`
  const place = await openPlace(bench)
  try {
    bench.tell(`naive: ${variant}, ${AT_ONCE} at once, run ${repeat}`)
    const before = await takeReading(place)
    const { seconds, latencies } = await runNaive({
      databaseUrl: place.databaseUrl, kafka: openKafka(bench.stack.kafkaBrokers.split(','), openLog('bench', 'silent')), topic: place.topic,
      atOnce: AT_ONCE, changes: steps.map((step, at) => changeOf(step, { at, bytes, rate })), signal: bench.signal,
    })
    const after = await takeReading(place)
    const run = measuredBetween(place, before, after, {
      scenario: 'naive', variant, repeat, changes: steps.length, seconds, faults: await wrongRows(place, steps, bytes),
      ...(rate === undefined ? {} : { latency: latencyOf(latencies) }),
    })
    // It runs in the bench's own process, which does nothing else meanwhile.
    const { bench: own, ...cpu } = run.cpu
    return { ...run, cpu: { ...cpu, ...(own === undefined ? {} : { peer: own }) } }
  } finally {
    await place.drop()
  }
}

function changeOf(step: Step, how: { at: number; bytes: number; rate: number | undefined }): NaiveChange {
  const micros = Math.floor(Date.now() * 1_000) - 3_600_000_000 + how.at
  return {
    id: step.id, row: step.after === 0 ? null : rowOf(step.id, step.after, how.bytes), payload: bodyOf(step, micros, how.bytes),
    ...(how.rate === undefined ? {} : { dueMs: how.at * 1_000 / how.rate }),
  }
}

async function wrongRows(place: Place, steps: readonly Step[], bytes: number): Promise<string[]> {
  const model = modelOf(steps)
  const rows = await place.sql<{ id: string; n: string; note: string }[]>`select id::text, n::text, note from ${place.sql(NAIVE_TABLE)}`
  const wrong = rows.filter(({ id, n, note }) => {
    const version = model.get(Number(id))
    const right = version === undefined ? undefined : rowOf(Number(id), version, bytes)
    return right === undefined || right.n !== n || right.note !== note
  })
  const [logged] = await place.sql<{ n: number }[]>`
    select count(*)::integer as n from naive.producer_log p join naive.publish_log u using (seq_id) join naive.consumer_log c using (seq_id)
    where u.status = 'PUBLISHED' and c.status = 'DEPLOYED'`
  return [
    ...(wrong.length === 0 && rows.length === model.size ? [] : [`${wrong.length} wrong rows, ${rows.length} of ${model.size} there`]),
    ...(logged?.n === steps.length ? [] : [`changes in all three logs: ${logged?.n}, expected ${steps.length}`]),
  ]
}
