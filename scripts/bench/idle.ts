import { setTimeout as pause } from 'node:timers/promises'

import { now } from '../demo/sender.ts'
import { bodyOf, INSERTS, makeSteps, modelOf } from './changes.ts'
import { startAll } from './end-to-end.ts'
import { openLine } from './http-load.ts'
import { dueToApplied } from './latency.ts'
import { measuredBetween, takeReading } from './measure.ts'
import { faultsOf } from './oracles.ts'
import { everythingApplied, lastSeqId } from './pipeline.ts'
import { openPlace, type Bench } from './place.ts'
import type { Measured } from './result.ts'

const IDLE_SECONDS = 30
/** What runs after a start (first rebalance, partitions, statistics) is over by then. */
const SETTLE_SECONDS = 5

/** What the roles cost while nothing comes, and how soon the first change after that is visible. */
export async function idle(bench: Bench, keep: (run: Measured) => void): Promise<void> {
  const steps = makeSteps(2, INSERTS)
  for (let repeat = 1; repeat <= bench.options.repeats; repeat += 1) {
    const place = await openPlace(bench)
    try {
      bench.tell(`idle: ${IDLE_SECONDS} s, run ${repeat}`)
      const url = await startAll(place)
      const line = await openLine(url, false)
      await line.post(bodyOf(steps[0]!, Math.floor(now() * 1_000), 100)) // the table is known and every statement made
      await everythingApplied(bench, place, 1)
      await pause(SETTLE_SECONDS * 1_000, undefined, { signal: bench.signal })
      const before = await takeReading(place)
      await pause(IDLE_SECONDS * 1_000, undefined, { signal: bench.signal })
      const after = await takeReading(place)
      const above = await lastSeqId(place)
      const first = await openLine(url, false)
      await first.post(bodyOf(steps[1]!, Math.floor(now() * 1_000), 100))
      await everythingApplied(bench, place, 2)
      const busy = Object.entries(after.cpu).map(([group, seconds]) => (
        [`${group}, % of a core`, (seconds - (Object.entries(before.cpu).find(([name]) => name === group)?.[1] ?? 0)) * 100 / IDLE_SECONDS] as const))
      const run = measuredBetween(place, before, after, {
        scenario: 'idle', variant: `${IDLE_SECONDS} s`, repeat, changes: 1, seconds: IDLE_SECONDS, latency: await dueToApplied(place.sql, above),
        faults: await faultsOf(place.sql, { changes: 2, model: modelOf(steps), bytes: 100, published: true }), more: Object.fromEntries(busy),
      })
      const { walBytes = 0, ...rest } = run
      // Per change means nothing where there is none.
      keep({ ...rest, cpu: {}, more: { ...run.more, 'WAL, B/s': walBytes / IDLE_SECONDS } })
    } finally {
      await place.drop()
    }
  }
}
