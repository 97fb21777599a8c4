import { openKafka } from '../../services/runtime/kafka.ts'
import { openLog } from '../../services/runtime/log.ts'
import { bodyOf, makeSteps, modelOf, rowOf, type Step } from './changes.ts'
import { measuredBetween, takeReading } from './measure.ts'
import { NAIVE_TABLE, runNaive, type NaiveChange } from './peers/naive.ts'
import { openPlace, type Bench, type Place } from './place.ts'
import type { Measured, RatioRule } from './result.ts'

/** What it did best with on the reference box; 1 and 32 were slower. */
const AT_ONCE = 8
const MOST_CHANGES = 5_000

export const NAIVE_RATIOS: readonly RatioRule[] = [
  { name: 'pipeline drain to naive', of: 'pipeline: drain 100 B', to: 'naive: 100 B, 8 at once', target: 40 },
]

/** The naive audit pipeline on the same servers. Its changes are few, because they are slow. */
export async function naive(bench: Bench, keep: (run: Measured) => void): Promise<void> {
  const steps = makeSteps(Math.min(MOST_CHANGES, bench.options.events))
  for (let repeat = 1; repeat <= bench.options.repeats; repeat += 1) {
    const place = await openPlace(bench)
    try {
      bench.tell(`naive: run ${repeat}`)
      const before = await takeReading(place)
      const seconds = await runNaive({
        databaseUrl: place.databaseUrl, kafka: openKafka(bench.stack.kafkaBrokers.split(','), openLog('bench', 'silent')), topic: place.topic,
        atOnce: AT_ONCE, changes: steps.map(changeOf), signal: bench.signal,
      })
      const after = await takeReading(place)
      const run = measuredBetween(place, before, after, {
        scenario: 'naive', variant: `100 B, ${AT_ONCE} at once`, repeat, changes: steps.length, seconds, faults: await wrongRows(place, steps),
      })
      // It runs in the bench's own process, which does nothing else meanwhile.
      const { bench: own, ...cpu } = run.cpu
      keep({ ...run, cpu: { ...cpu, ...(own === undefined ? {} : { peer: own }) } })
    } finally {
      await place.drop()
    }
  }
}

function changeOf(step: Step, at: number): NaiveChange {
  const micros = Math.floor(Date.now() * 1_000) - 3_600_000_000 + at
  return { id: step.id, row: step.after === 0 ? null : rowOf(step.id, step.after, 100), payload: bodyOf(step, micros, 100) }
}

async function wrongRows(place: Place, steps: readonly Step[]): Promise<string[]> {
  const model = modelOf(steps)
  const rows = await place.sql<{ id: string; n: string; note: string }[]>`select id::text, n::text, note from ${place.sql(NAIVE_TABLE)}`
  const wrong = rows.filter(({ id, n, note }) => {
    const version = model.get(Number(id))
    const right = version === undefined ? undefined : rowOf(Number(id), version, 100)
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
