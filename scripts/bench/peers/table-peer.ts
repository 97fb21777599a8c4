import { INSERTS, makeSteps, MIX, type Mix, type Step } from '../changes.ts'
import { measuredBetween, type Reading, takeReading } from '../measure.ts'
import { playAtRate, WARM_UP_SECONDS } from '../pipeline.ts'
import type { Measured } from '../result.ts'
import { arrival, dueToVisible, faultsOfRows } from './arrival.ts'
import { changeRow, openWriters, playBacklog } from './load.ts'
import { type Ground, openPair, type Pair } from './pair.ts'

/** What a run is for: emptying a backlog, or the least latency. A peer may have other settings for each. */
export type Purpose = 'drain' | 'rate'

/** A peer between two tables, being fed. */
export type Link = {
  /** Takes nothing from now on. */
  hold: () => Promise<void>
  /** Goes on; settles when the first of what waited moves. */
  release: () => Promise<void>
  /** What it says is wrong with it, in words. */
  trouble: () => Promise<string[]>
  /** Lets go of both databases. */
  close: () => Promise<void>
}

/** A peer that is ready to link pairs of tables. */
export type TablePeer = {
  name: string
  process?: { name: string; pid: number }
  link: (pair: Pair, purpose: Purpose) => Promise<Link>
  close: () => Promise<void>
}

/** The backlogs of a run with peers: both sizes, and inserts alone, which a sink that batches by kind of statement does best. */
export const BACKLOGS: readonly { variant: string; bytes: number; mix: Mix }[] = [{ variant: 'drain 100 B', bytes: 100, mix: MIX }, { variant: 'drain 1000 B', bytes: 1_000, mix: MIX }, { variant: 'drain 100 B inserts', bytes: 100, mix: INSERTS }]

/** A backlog of each kind emptied, and the rate with its latency. */
export async function measureTablePeer(ground: Ground, peer: TablePeer, repeat: number, keep: (run: Measured) => void): Promise<void> {
  const { events, rate, seconds } = ground.bench.options
  for (const { mix, ...how } of BACKLOGS) keep(await drain(ground, peer, { ...how, repeat, steps: makeSteps(events, mix) }))
  keep(await atRate(ground, peer, { bytes: 100, repeat, steps: makeSteps(rate * (WARM_UP_SECONDS + seconds)) }))
}

type Run = { bytes: number; repeat: number; steps: readonly Step[] }

/** From the first change that leaves the source to the last that is in the target; what comes before the first is not counted. */
async function drain(ground: Ground, peer: TablePeer, { variant, bytes, repeat, steps }: Run & { variant: string }): Promise<Measured> {
  const { bench } = ground
  bench.tell(`${peer.name}: ${variant}, run ${repeat}`)
  return linked(ground, peer, 'drain', async (pair, link) => {
    await link.hold()
    await playBacklog(bench, pair, steps, bytes)
    await link.release()
    const counted = pair.counted(peer.process)
    const before = await takeReading(counted)
    const late = await arrival(bench, pair.target.sql, steps, bytes)
    const after = await takeReading(counted)
    const faults = await faultsOf(pair, link, late, { bytes, steps })
    return measuredBetween(counted, before, after, { scenario: peer.name, variant, repeat, changes: steps.length, seconds: between(before, after), faults })
  })
}

/** An open loop of single changes, each a transaction; see `atRate` of the pipeline. */
async function atRate(ground: Ground, peer: TablePeer, { bytes, repeat, steps }: Run): Promise<Measured> {
  const { bench } = ground
  const { rate } = bench.options
  const variant = `${rate}/s ${bytes} B`
  bench.tell(`${peer.name}: ${variant}, run ${repeat}`)
  return linked(ground, peer, 'rate', async (pair, link) => {
    const writers = openWriters(pair, (sql, step, dueMicros) => changeRow(sql, step, { bytes, dueMicros }))
    try {
      const warm = rate * WARM_UP_SECONDS
      await playAtRate(bench, steps.slice(0, warm), rate, writers.take)
      await arrival(bench, pair.target.sql, steps.slice(0, warm), bytes)
      let since = Infinity
      const counted = pair.counted(peer.process)
      const before = await takeReading(counted)
      await playAtRate(bench, steps.slice(warm), rate, (step, micros) => {
        since = Math.min(since, micros)
        return writers.take(step, micros)
      })
      const late = await arrival(bench, pair.target.sql, steps, bytes)
      const after = await takeReading(counted)
      const faults = await faultsOf(pair, link, late, { bytes, steps })
      return measuredBetween(counted, before, after, {
        scenario: peer.name, variant, repeat, changes: steps.length - warm, seconds: between(before, after), faults,
        latency: await dueToVisible(pair.target.sql, since),
      })
    } finally {
      await writers.close()
    }
  })
}

/** With two databases and the peer between them, which has shown that it works by a row that came and went. */
export async function linked<T>(ground: Ground, peer: TablePeer, purpose: Purpose, run: (pair: Pair, link: Link) => Promise<T>): Promise<T> {
  const pair = await openPair(ground)
  try {
    const link = await peer.link(pair, purpose)
    try {
      await probe(ground, pair, link)
      return await run(pair, link)
    } finally {
      await link.close()
    }
  } finally {
    await pair.drop()
  }
}

async function probe({ bench }: Ground, pair: Pair, link: Link): Promise<void> {
  const steps: Step[] = [{ id: 1_000_000_000, before: 0, after: 1, marked: false }, { id: 1_000_000_000, before: 1, after: 0, marked: false }]
  for (const upTo of [1, 2]) {
    await playBacklog(bench, pair, steps.slice(upTo - 1, upTo), 100)
    const late = await arrival(bench, pair.target.sql, steps.slice(0, upTo), 100)
    if (late.length > 0) throw new Error([`not a single row arrives: ${late.join('; ')}`, ...await link.trouble()].join('; '))
  }
}

async function faultsOf(pair: Pair, link: Link, late: readonly string[], { steps, bytes }: Pick<Run, 'steps' | 'bytes'>): Promise<string[]> {
  return [...late, ...await faultsOfRows(pair.target.sql, steps, bytes), ...late.length > 0 ? await link.trouble() : []]
}

function between(before: Reading, after: Reading): number {
  return (after.at - before.at) / 1_000
}
