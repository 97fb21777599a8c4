import { readFileSync, writeFileSync } from 'node:fs'

import { DeltapostError } from '../../outbox/errors.ts'
import { seeded } from '../demo/random.ts'

/** One fault of a schedule: begun `after` milliseconds after the one before was mended, with random numbers of its own. */
export type Planned = { after: number; fault: string; seed: number }

/** All of a run that chance decides, but for the interleaving of processes. Written before it runs, and replayed from the file. */
export type Plan = {
  seed: number
  minutes: number
  /** Changes after which nothing more is posted. */
  events: number
  rate: number
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

/** Deals the faults like cards: each of them once, in random order, before any comes again. */
export function makePlan(options: Omit<Plan, 'schedule'> & { faults: readonly string[] }): Plan {
  const { faults, ...plan } = options
  const random = seeded(plan.seed)
  const schedule: Planned[] = []
  let cards: string[] = []
  while (faults.length > 0 && schedule.length < plan.minutes * A_MINUTE) {
    if (cards.length === 0) cards = [...faults]
    const [fault = ''] = cards.splice(random.below(cards.length), 1)
    schedule.push({ after: LEAST_GAP + random.below(MOST_GAP - LEAST_GAP), fault, seed: random.below(2 ** 31) })
  }
  return { ...plan, schedule }
}

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
