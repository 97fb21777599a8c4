import { chmodSync, cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'

import { DeltapostError } from '../../outbox/errors.ts'
import type { TortureOptions } from '../commands/torture.ts'
import { interruption } from '../interruption.ts'
import { campaign, type CampaignOptions } from './campaign.ts'
import { FAILPOINTS, SQL_FAILPOINTS, SQL_WAITING } from './failpoints.ts'
import { FAULTS } from './faults/all.ts'
import { faultOf } from './happen.ts'
import { runMutants } from './mutant-run.ts'
import { hasSteps, makePlan, makeStepPlan, readPlan, type Plan, writePlan } from './plan.ts'
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
  const planFile = options.replay ?? options.plan
  if (options.replay === undefined && options.mutants === undefined) writePlan(planFile, plan)
  tell(`seed ${plan.seed}${options.mutants === undefined ? `; the plan is in ${planFile}` : ''}`)
  const servers = await startServers({ directory, brokers: plan.brokers, small: planned(plan, 'disk-full'), shifted: planned(plan, 'clock-postgres', 'clock-kafka'), log: tell })
  const parts = { servers, signal, progress: tell }
  try {
    if (options.mutants !== undefined) return await mutants(options, plan.seed, parts)
    const sqlPlants = [...SQL_FAILPOINTS, ...(hasSteps(plan) ? SQL_WAITING : [])]
    const result = await campaign({ ...parts, plan, name: 'torture', counts: COUNTS, patience: 60, plants: FAILPOINTS, sqlPlants })
    showResult(result)
    if (options.json !== undefined) writeFileSync(options.json, `${JSON.stringify(result, null, 1)}\n`)
    return isGreen(result) ? 0 : 3
  } catch (error) {
    if (!signal.aborted) throw error
    throw new DeltapostError('INTERRUPTED', 'interrupted; nothing is left running', options.mutants === undefined ? `npm run torture -- --replay ${planFile}` : 'npm run torture -- --mutants', { cause: error })
  } finally {
    await servers.stop()
    keepTraces(directory, options.keep)
    rmSync(directory, { recursive: true, force: true })
  }
}

async function mutants(options: TortureOptions, seed: number, parts: Pick<CampaignOptions, 'servers' | 'signal' | 'progress'>): Promise<number> {
  const verdicts = await runMutants(options.mutants === true ? undefined : options.mutants?.split(','), seed, parts)
  showMutants(verdicts)
  if (options.json !== undefined) writeFileSync(options.json, `${JSON.stringify(verdicts, null, 1)}\n`)
  return verdicts.every(({ caught }) => caught) ? 0 : 3
}

function planOf(options: TortureOptions): Plan {
  if (options.replay !== undefined) return known(readPlan(options.replay))
  const { minutes, events, rate, sessions, brokers, twoDatabases } = options
  const workloads = namesOf('workload', options.workloads, Object.keys(WORKLOADS), () => true)
  const usual = Object.keys(FAULTS).filter((name) => !ASKED_FOR.has(name) || (name === 'leader-move' && brokers === 3))
  const faults = options.faults === 'none' || (options.steps > 0 && options.faults === undefined) ? [] : namesOf('fault', options.faults, usual, (name) => faultOf(name) !== undefined)
  const base = { seed: options.seed ?? Math.floor(Math.random() * 2 ** 31), minutes, events, rate, sessions, brokers, twoDatabases, workloads, faults }
  return options.steps === 0 ? makePlan(base) : makeStepPlan({ ...base, steps: stepsFor(base, options.steps) })
}

function planned({ schedule }: Plan, ...faults: readonly string[]): boolean {
  return schedule.some(({ fault }) => faults.includes(fault))
}

/** The plan, if all that it names is here; it may be of another version. */
function known(plan: Plan): Plan {
  namesOf('workload', plan.workloads.join(), Object.keys(WORKLOADS), () => true)
  namesOf('fault', plan.schedule.length === 0 ? undefined : plan.schedule.map(({ fault }) => fault).join(), Object.keys(FAULTS), (name) => faultOf(name) !== undefined)
  return plan
}

function namesOf(what: string, asked: string | undefined, all: readonly string[], known: (name: string) => boolean): readonly string[] {
  if (asked === undefined) return all
  const names = asked.split(',').map((name) => name.trim()).filter((name) => name !== '')
  const unknown = names.filter((name) => !(all.includes(name) || (what === 'fault' && known(name))))
  if (unknown.length === 0 && names.length > 0) return names
  throw new DeltapostError('TORTURE_UNKNOWN', `there is no ${what} ${unknown.join(', ')}`, `give one or more of ${all.join(', ')}`)
}

/** Ledger and logs of the last run; the databases are gone. Nothing else in the folder is touched: it may be anyone's. */
function keepTraces(directory: string, folder: string): void {
  cpSync(directory, folder, { recursive: true, filter: (file) => file === directory || !/\/(postgres|kafka)(\/|$)/.test(file.slice(directory.length)) })
}

/** Progress goes to stderr: stdout has the report and nothing else. */
function tell(line: string): void {
  process.stderr.write(`${line}\n`)
}

