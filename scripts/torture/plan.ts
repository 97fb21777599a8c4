import { readFileSync, writeFileSync } from 'node:fs'

import { DeltapostError } from '../../outbox/errors.ts'
import { type Random, seeded } from '../demo/random.ts'

/** One fault of a schedule: begun `after` milliseconds after the one before was mended, with random numbers of its own. */
export type Planned = { after: number; fault: string; seed: number }

/** All of a run that chance decides, but for the interleaving of processes. Written before it runs, and replayed from the file. */
export type Plan = {
  seed: number
  minutes: number
  /** Changes after which nothing more is posted. */
  events: number
  rate: number
  sessions: number
  brokers: number
  twoDatabases: boolean
  workloads: readonly string[]
  schedule: readonly Planned[]
}

/** Between two faults, in milliseconds: long enough that what one broke shows, short enough that some fall into the recovery of another. */
const LEAST_GAP = 500
const MOST_GAP = 3_000
/** More faults than fit into a minute, so that the time ends a run and not the schedule. */
const A_MINUTE = 40

/** A step with a kill takes about five seconds, of which a consumer's session is the most; never so long. */
const A_STEP_MINUTES = 0.5

/** Deals the faults like cards: each of them once, in random order, before any comes again; for as long as the time lasts. */
export function makePlan(options: Omit<Plan, 'schedule'> & { faults: readonly string[] }): Plan {
  const { faults, ...plan } = options
  return { ...plan, schedule: dealt(faults, plan.minutes * A_MINUTE, seeded(plan.seed)) }
}

/** Every step in its turn, and each fault once among them. It ends when all of it was done, whatever the minutes. */
export function makeStepPlan(options: Omit<Plan, 'schedule'> & { faults: readonly string[]; steps: readonly Planned[] }): Plan {
  const { faults, steps, ...plan } = options
  const between = dealt(faults, faults.length, seeded(plan.seed))
  const every = steps.length / (between.length + 1)
  const schedule = steps.flatMap((step, at) => [step, ...between.filter((_, nth) => Math.floor((nth + 1) * every) === at)])
  return { ...plan, minutes: schedule.length * A_STEP_MINUTES, schedule }
}

function dealt(faults: readonly string[], count: number, random: Random): Planned[] {
  const schedule: Planned[] = []
  let cards: string[] = []
  while (faults.length > 0 && schedule.length < count) {
    if (cards.length === 0) cards = [...faults]
    const [fault = ''] = cards.splice(random.below(cards.length), 1)
    schedule.push({ after: LEAST_GAP + random.below(MOST_GAP - LEAST_GAP), fault, seed: random.below(2 ** 31) })
  }
  return schedule
}

/** Kills at labelled steps are in it: then all of it is to be done. */
export function hasSteps({ schedule }: Pick<Plan, 'schedule'>): boolean {
  return schedule.some(({ fault }) => fault.startsWith(STEP))
}

/** What the name of a fault begins with that is a kill at a labelled step. */
export const STEP = 'failpoint:'

export function writePlan(file: string, plan: Plan): void {
  writeFileSync(file, `${JSON.stringify(plan, null, 1)}\n`)
}

/** A plan that an earlier run wrote. Throws DeltapostError where the file holds none. */
export function readPlan(file: string): Plan {
  try {
    const plan = JSON.parse(readFileSync(file, 'utf8')) as Plan // checked by the next line as far as a run needs it
    if (!Array.isArray(plan.schedule) || !Array.isArray(plan.workloads) || !Number.isInteger(plan.seed)) throw new Error('no plan is in it')
    return plan
  } catch (error) {
    throw new DeltapostError('PLAN_UNREADABLE', `${file} cannot be replayed: ${error instanceof Error ? error.message : String(error)}`,
      'give a file that npm run torture wrote (--plan)', { cause: error })
  }
}
