import type { Peer } from '../../commands/bench.ts'
import { say, sayTable, size } from '../../commands/print.ts'
import { type Measured, nameOf, spreadOf } from '../result.ts'
import type { NotRun } from './peers.ts'

/** What a reader must know of each row. */
const WHAT: Readonly<Record<'pipeline' | Peer, string>> = {
  pipeline: 'deltapost',
  naive: 'naive (row by row, 8 at once, fed live)',
  native: 'native (logical replication, no Kafka)',
  debezium: 'debezium (unwrap; no before image)',
  'debezium-json': 'debezium-json (envelope with schemas)',
  'pg-transactional-outbox': 'pg-transactional-outbox (to Kafka only)',
}

/** Whoever is through so much later than the last change was due was overrun: its latency is that of a queue that grows. */
const HELD = 0.9

/** One row for ours and each peer: medians of the runs, and how many times ours is faster, or theirs slower. */
export function showPeers(runs: readonly Measured[], rate: number, notRun: readonly NotRun[]): void {
  const there = Object.entries(WHAT).filter(([name]) => runs.some(({ scenario }) => scenario === name))
  const figures = (name: string): Figures => figuresOf(runs.filter(({ scenario }) => scenario === name), rate)
  const ours = figures('pipeline')
  say(`\nPeers in this run. CPU: seconds per million changes, Postgres / Kafka / the peer's own processes. x: ours to theirs in changes/s, theirs to ours in p99`)
  sayTable(there.map(([name, what]) => {
    const theirs = figures(name)
    return {
      '': what,
      '100 B/s': whole(theirs.small), x: times(ours.small, theirs.small), 'CPU ': theirs.drainCpu,
      '1 KB/s': whole(theirs.large), 'x ': times(ours.large, theirs.large),
      [`p50/p95/p99 ms at ${rate}/s`]: theirs.latency, ' x': times(theirs.p99, ours.p99), CPU: theirs.rateCpu,
      'peak RSS': theirs.peak, 'table': theirs.faults,
    }
  }))
  for (const { peer, why } of notRun) say(`  ${peer} was not run to its end: ${why}`)
}

type Figures = { small: number; large: number; p99: number; drainCpu: string; rateCpu: string; latency: string; peak: string; faults: string }

function figuresOf(runs: readonly Measured[], rate: number): Figures {
  const of = (variant: string): Measured[] => runs.filter((run) => run.variant === variant)
  const [small, large, timed] = [of('drain 100 B'), of('drain 1000 B'), of(`${rate}/s 100 B`)]
  const own = runs.flatMap(({ peak }) => Object.entries(peak).filter(([name]) => name !== 'kafka'))
  const names = [...new Set(own.map(([name]) => name))]
  // Relay and consumer together are what a worker of Connect is: each at its highest.
  const bytes = names.reduce((sum, name) => sum + Math.max(...own.filter(([of]) => of === name).map(([, value]) => value)), 0)
  const wrong = runs.filter(({ faults }) => faults.length > 0)
  const held = middle(timed.map(({ perSecond }) => perSecond))
  const ms = (which: 'p50' | 'p95' | 'p99'): number => middle(timed.map(({ latency }) => latency?.[which]))
  return {
    small: middle(small.map(({ perSecond }) => perSecond)), large: middle(large.map(({ perSecond }) => perSecond)), p99: ms('p99'),
    drainCpu: cpuOf(small), rateCpu: cpuOf(timed),
    latency: timed.length === 0 ? '-' : `${[ms('p50'), ms('p95'), ms('p99')].map(short).join(' / ')}${held < rate * HELD ? ` (holds ${whole(held)}/s only)` : ''}`,
    peak: bytes === 0 ? '-' : size(bytes),
    faults: wrong.length === 0 ? 'right' : `WRONG in ${wrong.map(nameOf).join(', ')}`,
  }
}

function cpuOf(runs: readonly Measured[]): string {
  const group = (name: 'postgres' | 'kafka' | 'ours' | 'peer'): number => middle(runs.map(({ cpu }) => cpu[name]))
  const own = group('ours')
  return runs.length === 0 ? '-' : [group('postgres'), group('kafka'), Number.isNaN(own) ? group('peer') : own].map(short).join(' / ')
}

function middle(values: readonly (number | undefined)[]): number {
  return spreadOf(values.filter((value) => value !== undefined)).median
}

function times(above: number, below: number): string {
  const ratio = above / below
  return Number.isFinite(ratio) ? ratio.toFixed(2) : '-'
}

function whole(value: number): string {
  return Number.isFinite(value) ? Math.round(value).toLocaleString('en-US') : '-'
}

function short(value: number): string {
  return Number.isFinite(value) ? value.toFixed(value >= 100 ? 0 : 1) : '-'
}
