import { now } from '../demo/sender.ts'
import { bodyOf, INSERTS, makeSteps, type Step } from './changes.ts'
import { openLine } from './http-load.ts'
import { latencyOf } from './latency.ts'
import { measuredBetween, takeReading } from './measure.ts'
import { faultsOf } from './oracles.ts'
import { openPlace, type Bench } from './place.ts'
import type { Measured, RatioRule } from './result.ts'

type Way = { name: string; connections: number; alive: boolean; batch: number }

const WAYS: readonly Way[] = [
  { name: 'keep-alive, 64 connections', connections: 64, alive: true, batch: 1 },
  { name: 'a connection each, 64 at once', connections: 64, alive: false, batch: 1 },
  { name: 'batches of 100, 4 connections', connections: 4, alive: true, batch: 100 },
]
const WARM_UP_SECONDS = 2
/** Prepared before the clock runs: making bodies would be charged to the listener. Reused in a circle with a new TIME. */
const PREPARED = 20_000

export const POST_RATIOS: readonly RatioRule[] = [
  { name: 'batches of 100 to single posts', of: 'post: batches of 100, 4 connections', to: 'post: keep-alive, 64 connections', target: 4 },
  { name: 'a connection each to keep-alive', of: 'post: a connection each, 64 at once', to: 'post: keep-alive, 64 connections' },
]

/** HTTP to commit: each connection posts again as soon as it has its answer. */
export async function post(bench: Bench, keep: (run: Measured) => void): Promise<void> {
  const steps = makeSteps(PREPARED, INSERTS)
  for (let repeat = 1; repeat <= bench.options.repeats; repeat += 1) {
    for (const way of WAYS) keep(await postOnce(bench, steps, way, repeat))
  }
}

async function postOnce(bench: Bench, steps: readonly Step[], way: Way, repeat: number): Promise<Measured> {
  const place = await openPlace(bench)
  try {
    bench.tell(`post: ${way.name}, run ${repeat}`)
    const url = await place.start('listener')
    const source = openBodies(steps, way.batch)
    const warm = await load(bench, url, way, source, WARM_UP_SECONDS)
    const before = await takeReading(place)
    const run = await load(bench, url, way, source, bench.options.seconds)
    const after = await takeReading(place)
    const changes = run.times.length * way.batch
    const faults = [
      ...run.faults, ...warm.faults,
      ...await faultsOf(place.sql, { changes: changes + warm.times.length * way.batch, model: undefined, bytes: 100, published: false }),
    ]
    return measuredBetween(place, before, after, {
      scenario: 'post', variant: way.name, repeat, changes, seconds: run.seconds, faults, latency: latencyOf(run.times),
    })
  } finally {
    await place.drop()
  }
}

/** A body for each post, no two the same: TIME goes on by a microsecond a change. */
function openBodies(steps: readonly Step[], batch: number): () => string {
  const mark = bodyOf(steps[0]!, 0, 100).indexOf('Z"') + 1
  const prepared = steps.map((step) => bodyOf(step, 0, 100).slice(mark))
  let micros = Math.floor(now() * 1_000) - 3_600_000_000
  let at = 0
  const one = (): string => {
    micros += 1
    at = (at + 1) % prepared.length
    const second = Math.floor(micros / 1_000_000)
    if (second !== known) {
      known = second
      text = new Date(second * 1_000).toISOString().slice(0, 19)
    }
    return `{"TIME": "${text}.${micros % 1_000_000}Z${prepared[at]}`
  }
  let known = 0
  let text = ''
  return () => (batch === 1 ? one() : Array.from({ length: batch }, one).join('\n'))
}

async function load(bench: Bench, url: string, way: Way, body: () => string, seconds: number): Promise<{ times: number[]; faults: string[]; seconds: number }> {
  const times: number[] = []
  const faults = new Set<string>()
  const begun = performance.now()
  const end = begun + seconds * 1_000
  await Promise.all(Array.from({ length: way.connections }, async () => {
    let line = way.alive ? await openLine(url, true) : undefined
    while (performance.now() < end && !bench.signal.aborted) {
      const since = now()
      line ??= await openLine(url, false)
      const reply = await line.post(body())
      times.push(now() - since)
      const kept = reply.body.split('"seq_id"').length - 1
      if (reply.status !== 200 || kept !== way.batch) faults.add(`a post was answered ${reply.status} with ${kept} of ${way.batch} changes taken`)
      if (way.alive) continue
      line.close()
      line = undefined
    }
    line?.close()
  }))
  bench.signal.throwIfAborted()
  return { times, faults: [...faults], seconds: (performance.now() - begun) / 1_000 }
}
