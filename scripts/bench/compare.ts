import { readFileSync } from 'node:fs'

import { DeltapostError } from '../../outbox/errors.ts'
import { say, sayTable } from '../commands/print.ts'
import type { Report } from './report.ts'
import { nameOf, spreadOf } from './result.ts'

/** A ratio may be this much lower than before; less is noise of a machine that others use. */
const MOST_DROP = 0.2

/** An earlier `--json`. Read before anything is measured, so that a wrong name costs no hour. */
export function readEarlier(file: string): Report {
  const unreadable = (cause: unknown): DeltapostError => (
    new DeltapostError('BENCH_COMPARE', `${file} is no report of this bench`, 'npm run bench -- SCENARIO --json FILE makes one', { cause }))
  try {
    const report = JSON.parse(readFileSync(file, 'utf8')) as Partial<Report> // written by an earlier bench
    if (!Array.isArray(report.runs) || !Array.isArray(report.ratios)) throw new Error('without runs or ratios')
    return report as Report
  } catch (error) {
    throw unreadable(error)
  }
}

/** Prints what became of every figure that both have; true where a ratio dropped by more than 20 %. */
export function showComparison(now: Report, earlier: Report): boolean {
  const changed = now.ratios.flatMap(({ name, median }) => {
    const was = earlier.ratios.find((ratio) => ratio.name === name)?.median
    return was === undefined ? [] : [{ name, was, median, dropped: median < was * (1 - MOST_DROP) }]
  })
  say(`\nRatios against those of ${earlier.conditions['at'] ?? 'the earlier bench'}`)
  sayTable(changed.map(({ name, was, median, dropped }) => (
    { '': name, earlier: was.toFixed(2), now: median.toFixed(2), 'now/earlier': (median / was).toFixed(2), verdict: dropped ? 'DROPPED' : 'kept' })))
  const before = Map.groupBy(earlier.runs, nameOf)
  const rates = [...Map.groupBy(now.runs, nameOf)].flatMap(([name, runs]) => {
    const were = before.get(name)
    if (were === undefined) return []
    const [is, was] = [runs, were].map((all) => spreadOf(all.map(({ perSecond }) => perSecond)).median)
    return [{ '': name, earlier: Math.round(was ?? NaN), now: Math.round(is ?? NaN), 'now/earlier': ((is ?? NaN) / (was ?? NaN)).toFixed(2) }]
  })
  say('\nRates against the same (another machine, or another load on it, changes these; they fail nothing)')
  sayTable(rates)
  return changed.some(({ dropped }) => dropped)
}
