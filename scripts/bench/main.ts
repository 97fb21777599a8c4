import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import postgres from 'postgres'

import { DeltapostError } from '../../outbox/errors.ts'
import { processEnvironment } from '../../services/runtime/config.ts'
import type { BenchOptions } from '../commands/bench.ts'
import { interruption } from '../interruption.ts'
import { startStack, type Stack } from '../stack/stack.ts'
import { apply } from './apply.ts'
import { backlog, BACKLOG_RATIOS } from './backlog.ts'
import { BARE_RATIOS } from './bare.ts'
import { readEarlier, showComparison } from './compare.ts'
import { conditionsOf } from './conditions.ts'
import { endToEnd } from './end-to-end.ts'
import { idle } from './idle.ts'
import { naive, NAIVE_RATIOS } from './naive.ts'
import { BENCH_SETTINGS, PEER_SETTINGS } from './peers/pair.ts'
import { measurePeers, type NotRun, peerRatios } from './peers/peers.ts'
import { showPeers } from './peers/table.ts'
import { pipeline, PIPELINE_RATIOS } from './pipeline.ts'
import type { Bench } from './place.ts'
import { post, POST_RATIOS } from './post.ts'
import { refusals, REFUSALS_RATIOS } from './refusals.ts'
import { relay } from './relay.ts'
import { restart } from './restart.ts'
import { scale, SCALE_RATIOS } from './scale.ts'
import { type Report, showReport } from './report.ts'
import { type Measured, nameOf, ratiosOf } from './result.ts'

type Run = (bench: Bench, keep: (run: Measured) => void) => Promise<void>

const RUNS: Readonly<Record<string, Run>> = { refusals, pipeline, naive, post, 'end-to-end': endToEnd, relay, apply, restart, idle, backlog, scale }
const RATIOS = [...REFUSALS_RATIOS, ...NAIVE_RATIOS, ...POST_RATIOS, ...PIPELINE_RATIOS, ...BARE_RATIOS, ...BACKLOG_RATIOS, ...SCALE_RATIOS]

/** Measures the scenarios on servers of its own, or those of the environment; gives the exit code. */
export async function bench(scenarios: readonly string[], options: BenchOptions): Promise<number> {
  const earlier = options.compare === undefined ? undefined : readEarlier(options.compare)
  // Now and not after an hour of measuring.
  for (const file of [options.log, options.json]) if (file !== undefined) mkdirSync(dirname(file), { recursive: true })
  const signal = interruption()
  const directory = mkdtempSync(join(tmpdir(), 'deltapost-bench-'))
  // PostgreSQL runs under another account where we are root.
  chmodSync(directory, 0o755)
  const stack = await startStack({
    directory, fresh: true, environment: processEnvironment(), log: tell,
    // Peers need settings of their own and processes whose CPU time can be read; ours is measured with the same.
    ...(options.peers === undefined ? { postgresSettings: BENCH_SETTINGS } : { way: 'embedded' as const, postgresSettings: PEER_SETTINGS }),
  })
  try {
    const { report, notRun } = await measureAll(scenarios, options, stack, directory, signal)
    showReport(report)
    if (options.peers !== undefined) showPeers(report.runs, options.rate, notRun)
    if (options.json !== undefined) writeFileSync(options.json, `${JSON.stringify(report, null, 2)}\n`)
    const dropped = earlier === undefined ? false : showComparison(report, earlier)
    return dropped || report.runs.some(({ faults }) => faults.length > 0) ? 3 : 0
  } catch (error) {
    if (!signal.aborted) throw error
    throw new DeltapostError('INTERRUPTED', 'interrupted; nothing is left running', 'npm run bench', { cause: error })
  } finally {
    await stack.stop()
    rmSync(directory, { recursive: true, force: true })
  }
}

async function measureAll(scenarios: readonly string[], options: BenchOptions, stack: Stack, directory: string, signal: AbortSignal): Promise<{ report: Report; notRun: NotRun[] }> {
  const sql = postgres(stack.databaseUrl, { max: 1, onnotice: () => {} })
  const runs: Measured[] = []
  try {
    const conditions = await conditionsOf(sql, stack.way, directory)
    const parts: Bench = {
      stack, signal, tell, options: { ...options, repeats: options.repeat },
      environment: processEnvironment(),
      logFile: options.log,
      kafkaData: stack.way === 'embedded' ? join(directory, 'embedded', 'kafka', 'data') : undefined,
    }
    writeFileSync(parts.logFile, '')
    const keep = (run: Measured): void => {
      runs.push(run)
      tell(`  ${Math.round(run.perSecond)} changes/s${run.faults.length === 0 ? '' : `, worth nothing: ${run.faults[0]}`} (${nameOf(run)})`)
    }
    for (const name of scenarios) await RUNS[name]?.(parts, keep)
    const notRun = options.peers === undefined ? [] : await measurePeers(parts, options.peers, directory, keep)
    const rules = [...RATIOS, ...(options.peers === undefined ? [] : peerRatios(options.rate))]
    return { report: { conditions, runs, ratios: ratiosOf(runs, rules) }, notRun }
  } finally {
    await sql.end({ timeout: 5 })
  }
}

/** Progress goes to stderr: stdout has the report and nothing else. */
function tell(line: string): void {
  process.stderr.write(`${line}\n`)
}
