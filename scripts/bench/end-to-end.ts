import { bodyOf, makeSteps, modelOf, type Step } from './changes.ts'
import { openLines } from './http-load.ts'
import { dueToApplied, latencyOf } from './latency.ts'
import { measuredBetween, takeReading } from './measure.ts'
import { faultsOf } from './oracles.ts'
import { everythingApplied, lastSeqId, playAtRate } from './pipeline.ts'
import { openPlace, type Bench, type Place } from './place.ts'
import type { Measured } from './result.ts'

const CONNECTIONS = 64
const WARM_UP_SECONDS = 3

/** From a post to the row in the target, through all three roles, at a fixed rate; times count from when a post was due. */
export async function endToEnd(bench: Bench, keep: (run: Measured) => void): Promise<void> {
  const { rate, seconds, repeats } = bench.options
  for (let repeat = 1; repeat <= repeats; repeat += 1) {
    const place = await openPlace(bench)
    try {
      bench.tell(`end-to-end: ${rate}/s, run ${repeat}`)
      const url = await startAll(place)
      keep(await runOnce(bench, place, url, makeSteps(rate * (seconds + WARM_UP_SECONDS)), repeat))
    } finally {
      await place.drop()
    }
  }
}

/** All three roles; gives the listener's address. */
export async function startAll(place: Place): Promise<string> {
  const [url = ''] = await Promise.all([place.start('listener'), place.start('relay'), place.start('consumer')])
  return url
}

async function runOnce(bench: Bench, place: Place, url: string, steps: readonly Step[], repeat: number): Promise<Measured> {
  const { rate } = bench.options
  const lines = await openLines(url, CONNECTIONS)
  const refused = new Set<string>()
  const answered: number[] = []
  const take = async (step: Step, micros: number): Promise<void> => {
    const { status, ms } = await lines.post(bodyOf(step, micros, 100))
    answered.push(ms)
    if (status !== 200) refused.add(`a post was answered ${status}`)
  }
  try {
    const warm = rate * WARM_UP_SECONDS
    await playAtRate(bench, steps.slice(0, warm), rate, take)
    await everythingApplied(bench, place, warm)
    const above = await lastSeqId(place)
    answered.length = 0
    const before = await takeReading(place)
    const begun = performance.now()
    await playAtRate(bench, steps.slice(warm), rate, take)
    await everythingApplied(bench, place, steps.length)
    const seconds = (performance.now() - begun) / 1_000
    const after = await takeReading(place)
    const faults = [...refused, ...await faultsOf(place.sql, { changes: steps.length, model: modelOf(steps), bytes: 100, published: true })]
    const answers = latencyOf(answered)
    return measuredBetween(place, before, after, {
      scenario: 'end-to-end', variant: `${rate}/s 100 B`, repeat, changes: steps.length - warm, seconds, faults,
      latency: await dueToApplied(place.sql, above), more: { 'answer p50 ms': answers.p50, 'answer p99 ms': answers.p99 },
    })
  } finally {
    lines.close()
  }
}
