import type { Kafka } from 'kafkajs'
import type { Sql } from 'postgres'

import type { Played } from '../driver.ts'
import type { Source } from '../rig.ts'
import type { Growth } from '../watch.ts'
import type { Workload } from '../workload.ts'

/** What oracles look at, when nothing is on its way any more. */
export type Evidence = {
  played: Played
  workloads: readonly Workload[]
  /** Where changes were received: the first source's database and, where there is one, the second's. */
  sources: readonly Pick<Source, 'origin' | 'sql'>[]
  /** Where they were applied, which may be the first one too. */
  target: Sql
  kafka: Kafka
  topic: string
  errorTopic: string
  maxRetries: number
  /** What happened to the roles on the way that may not: one that ended by itself, or did not come back. */
  incidents: readonly string[]
  growth: Growth
  /** Undefined where the backlog was gone in time. */
  notDrained: string | undefined
}

/** `figure` is what was looked at; `faults` is empty where all of it is right. */
export type Finding = { oracle: string; figure: string; faults: string[] }

export type Oracle = { name: string; judge: (evidence: Evidence) => Promise<Omit<Finding, 'oracle'>> }

const SHOWN = 5

/** The first of many, and how many there are. */
export function few(what: string, all: readonly string[]): string[] {
  return all.length === 0 ? [] : [`${all.length} ${what}: ${all.slice(0, SHOWN).join('; ')}${all.length > SHOWN ? '; …' : ''}`]
}

export function unequal(what: string, found: number, expected: number): string[] {
  return found === expected ? [] : [`${what}: ${found}, expected ${expected}`]
}
