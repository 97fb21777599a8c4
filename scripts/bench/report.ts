import { say, sayFields, sayTable, size } from '../commands/print.ts'
import type { Conditions } from './conditions.ts'
import type { Latency } from './latency.ts'
import { type Measured, nameOf, type Ratio, spreadOf } from './result.ts'

/** All of a bench, as `--json` writes it and `--compare` reads it. */
export type Report = { conditions: Conditions; runs: Measured[]; ratios: Ratio[] }

/** The figures of every variant below each other: medians of its runs, the rate with the least and the most. */
export function showReport({ conditions, runs, ratios }: Report): void {
  const variants = [...Map.groupBy(runs, nameOf)]
  say('\nRates, and CPU seconds per million changes by process group')
  sayTable(variants.map(([name, all]) => ({ '': name, ...ratesOf(all) })))
  const timed = variants.filter(([, all]) => all.some(({ latency }) => latency !== undefined))
  if (timed.length > 0) {
    say('\nLatency in milliseconds from the moment a change was due (medians of the runs)')
    sayTable(timed.map(([name, all]) => ({ '': name, ...latencies(all) })))
  }
  const extra = variants.flatMap(([name, all]) => Object.keys(all[0]?.more ?? {}).map((what) => ({ '': name, what, value: middle(all.map(({ more }) => more?.[what])) })))
  if (extra.length > 0) {
    say('\nBesides')
    sayTable(extra)
  }
  if (ratios.length > 0) {
    say('\nRatios within this bench, repeat by repeat')
    sayTable(ratios.map(({ name, median, min, max, pairs, target }) => ({
      '': name, median: median.toFixed(2), min: min.toFixed(2), max: max.toFixed(2), pairs,
      target: target === undefined ? '-' : `${target} ${median >= target ? 'met' : 'MISSED'}`,
    })))
  }
  say('\nConditions')
  sayFields(conditions)
  const faults = runs.flatMap((run) => run.faults.map((fault) => `${nameOf(run)}, run ${run.repeat}: ${fault}`))
  say(faults.length === 0 ? '\nEvery count adds up and every row is right.' : `\nWORTH NOTHING, because:\n${faults.map((fault) => `  ${fault}`).join('\n')}`)
}

function ratesOf(all: readonly Measured[]): Record<string, string> {
  const rate = spreadOf(all.map(({ perSecond }) => perSecond))
  const per = (group: 'postgres' | 'kafka' | 'ours' | 'peer' | 'bench'): string => middle(all.map(({ cpu }) => cpu[group]))
  const names = [...new Set(all.flatMap(({ peak }) => Object.keys(peak)))]
  return {
    runs: String(all.length),
    'changes/s': whole(rate.median),
    'min-max': `${whole(rate.min)}-${whole(rate.max)}`,
    postgres: per('postgres'), kafka: per('kafka'), ours: per('ours'), peer: per('peer'), bench: per('bench'),
    'WAL B': middle(all.map(({ walBytes }) => walBytes)), 'Kafka B': middle(all.map(({ kafkaBytes }) => kafkaBytes)),
    'peak RSS': names.map((name) => `${name} ${size(Math.max(...all.map(({ peak }) => peak[name] ?? 0)))}`).join(', '),
    load: middle(all.map(({ load }) => load)),
  }
}

function latencies(all: readonly Measured[]): Record<string, string> {
  const of = (name: keyof Latency): string => middle(all.map(({ latency }) => latency?.[name]))
  return { p50: of('p50'), p95: of('p95'), p99: of('p99'), 'p99.9': of('p999'), max: of('max') }
}

function middle(values: readonly (number | undefined)[]): string {
  const there = values.filter((value) => value !== undefined)
  if (there.length === 0) return '-'
  const { median } = spreadOf(there)
  return median >= 100 ? whole(median) : median.toFixed(median >= 10 ? 1 : 2)
}

function whole(value: number): string {
  return Number.isFinite(value) ? Math.round(value).toLocaleString('en-US') : '-'
}
