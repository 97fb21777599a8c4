import { chmodSync, cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'

import { DeltapostError } from '../../outbox/errors.ts'
import type { TortureOptions } from '../commands/torture.ts'
import { interruption } from '../interruption.ts'
import { campaign, type CampaignOptions, type Result } from './campaign.ts'
import { FAILPOINTS, SQL_FAILPOINTS, SQL_WAITING } from './failpoints.ts'
import { FAULTS } from './faults/all.ts'
import { faultOf } from './happen.ts'
import { runMutants } from './mutant-run.ts'
import { makePlan, readPlan, type Plan, writePlan } from './plan.ts'
import { isGreen, showMutants, showResult } from './report.ts'
import { startServers } from './servers.ts'
import { stepsFor } from './step.ts'
import { WORKLOADS } from './workloads/all.ts'

const COUNTS = { listener: 2, relay: 2, consumer: 2 }
/** A full disk needs a file system of its own; three brokers need the memory; both are asked for by name. */
const ASKED_FOR = new Set(['disk-full', 'leader-move'])

/** Runs what the command line asks for; gives the exit code. */
export async function torture(options: TortureOptions): Promise<number> {
  const plan = planOf(options)
  const signal = interruption()
  const directory = mkdtempSync(join(tmpdir(), 'deltapost-torture-'))
  chmodSync(directory, 0o755) // PostgreSQL runs under another account where we are root
  for (const file of [options.plan, options.json]) if (file !== undefined) mkdirSync(dirname(file), { recursive: true })
  if (options.plan !== undefined && options.replay === undefined) writePlan(options.plan, plan)
  tell(`seed ${plan.seed}; the plan is in ${options.replay ?? options.plan}`)
  const servers = await startServers({ directory, brokers: plan.brokers, small: plan.schedule.some(({ fault }) => fault === 'disk-full'), log: tell })
  const parts = { servers, signal, progress: tell }
  try {
    if (options.mutants !== undefined) return await mutants(options, parts)
    const result = await campaign({ ...parts, plan, name: 'torture', counts: COUNTS, sessions: options.sessions, patience: 60, plants: FAILPOINTS, sqlPlants: [...SQL_FAILPOINTS, ...(options.steps > 0 ? SQL_WAITING : [])] })
    showResult(result)
    if (options.json !== undefined) writeFileSync(options.json, `${JSON.stringify(result, null, 1)}\n`)
    return isGreen(result) ? 0 : 3
  } catch (error) {
    if (!signal.aborted) throw error
    throw new DeltapostError('INTERRUPTED', 'interrupted; nothing is left running', `npm run torture -- --replay ${options.plan}`, { cause: error })
  } finally {
    await servers.stop()
    keepTraces(directory, options.keep)
    rmSync(directory, { recursive: true, force: true })
  }
}

async function mutants(options: TortureOptions, parts: Pick<CampaignOptions, 'servers' | 'signal' | 'progress'>): Promise<number> {
  const verdicts = await runMutants(options.mutants === true ? undefined : options.mutants?.split(','), options.seed ?? 1, parts)
  showMutants(verdicts)
  if (options.json !== undefined) writeFileSync(options.json, `${JSON.stringify(verdicts, null, 1)}\n`)
  return verdicts.every(({ caught }) => caught) ? 0 : 3
}

function planOf(options: TortureOptions): Plan {
  if (options.replay !== undefined) return readPlan(options.replay)
  const { minutes, events, rate, brokers, twoDatabases } = options
  const workloads = namesOf('workload', options.workloads, Object.keys(WORKLOADS), () => true)
  const usual = Object.keys(FAULTS).filter((name) => !ASKED_FOR.has(name) || (name === 'leader-move' && brokers === 3))
  const faults = options.faults === 'none' || (options.steps > 0 && options.faults === undefined) ? [] : namesOf('fault', options.faults, usual, (name) => faultOf(name) !== undefined)
  const base = { seed: options.seed ?? Math.floor(Math.random() * 2 ** 31), minutes, events, rate, brokers, twoDatabases, workloads }
  const plan = makePlan({ ...base, faults })
  return { ...plan, schedule: [...stepsFor(base, options.steps), ...plan.schedule] }
}

function namesOf(what: string, asked: string | undefined, all: readonly string[], known: (name: string) => boolean): readonly string[] {
  if (asked === undefined) return all
  const names = asked.split(',').map((name) => name.trim()).filter((name) => name !== '')
  const unknown = names.filter((name) => !(all.includes(name) || (what === 'fault' && known(name))))
  if (unknown.length === 0 && names.length > 0) return names
  throw new DeltapostError('TORTURE_UNKNOWN', `there is no ${what} ${unknown.join(', ')}`, `give one or more of ${all.join(', ')}`)
}

/** Ledger and logs of the last run; the databases are gone. */
function keepTraces(directory: string, folder: string): void {
  rmSync(folder, { recursive: true, force: true })
  cpSync(directory, folder, { recursive: true, filter: (file) => file === directory || !/\/(postgres|kafka)(\/|$)/.test(file.slice(directory.length)) })
}

/** Progress goes to stderr: stdout has the report and nothing else. */
function tell(line: string): void {
  process.stderr.write(`${line}\n`)
}

export type { Result }
