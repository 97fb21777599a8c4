import { setTimeout as pause } from 'node:timers/promises'
import type { Admin } from 'kafkajs'
import type { Sql } from 'postgres'
import type { Random } from '../../demo/random.ts'
import type { EmbeddedKafka } from '../../stack/embedded-kafka.ts'
import type { EmbeddedPostgres } from '../../stack/embedded-postgres.ts'
import type { Proxy } from '../proxy.ts'
import type { Armed } from '../role.ts'
import type { ServerClock } from '../server-clock.ts'

/** The relay of a target that is no source: it has retries and failures to publish, and no changes. */
export const TARGETS_RELAY = 'relay target'

/** One process of a campaign: 'listener 0', 'relay 1'. */
export type RigRole = {
  name: string
  /** It is of the second source, which posts little: garbage, bodies of megabytes and refused rows are the first's. */
  second?: boolean
  /** SIGKILL, then started again; resolves when it is ready. */
  kill: () => Promise<void>
  /** SIGTERM, which it must follow with code 0 in time, then started again; resolves when it is ready. */
  term: () => Promise<void>
  /** SIGSTOP, until `thaw`. */
  freeze: () => void
  thaw: () => void
  /** Ended and started again with these variables besides its own; resolves when it is ready. */
  startWith: (environment: Record<string, string>) => Promise<void>
  /**
   * Lets the process kill or stop itself when it passes a step for the nth time from now. Resolves with true when it did
   * and runs again, with false where that was not within `withinMs`.
   */
  hit: (label: string, signal: Armed['signal'], nth: number, withinMs: number) => Promise<boolean>
}

/** What one role reaches one server through. */
export type Edge = { from: string; to: 'postgres' | 'kafka'; proxy: Proxy }

/** What a fault may touch. */
export type Rig = {
  random: Random
  log: (line: string) => void
  roles: readonly RigRole[]
  edges: readonly Edge[]
  /** Connections of the superuser, not through a proxy. */
  sql: Sql
  postgres: EmbeddedPostgres
  kafka: readonly Pick<EmbeddedKafka, 'kill' | 'start' | 'stop'>[]
  /** Undefined where the servers have no time of day of their own. */
  clocks: Readonly<Record<'postgres' | 'kafka', Pick<ServerClock, 'shift'>>> | undefined
  admin: (task: (admin: Admin) => Promise<unknown>) => Promise<void>
  topic: string
  errorTopic: string
  group: string
  databaseUrl: string
  /** Aborted when the campaign is given up: every wait ends, every fault mends. */
  signal: AbortSignal
  /** Counts something of which the oracles or the report must know. */
  noted: (what: string) => void
  /** From now on this workload gets some of the transactions of the others; undefined ends it. */
  want: (workload: string | undefined) => void
}

export type Fault = {
  name: string
  kind: 'kill' | 'freeze' | 'cut' | 'server' | 'kafka' | 'target' | 'other'
  /** Injures, waits as long as it must, mends; resolves when mended. */
  happen: (rig: Rig) => Promise<void>
}

/** Listener, relay or consumer: what the name of a role begins with. */
export type Kind = 'listener' | 'relay' | 'consumer'

export const KINDS: readonly Kind[] = ['listener', 'relay', 'consumer']

/** Any one of the roles of a kind. */
export function anyOf(rig: Rig, kind: Kind): RigRole {
  return rig.random.pick(rig.roles.filter(({ name }) => name.startsWith(kind)))
}

/** A whole number from `least` to below `most`. */
export function between({ random }: Pick<Rig, 'random'>, least: number, most: number): number {
  return least + random.below(most - least)
}

/** Rejects at the end of the campaign. */
export async function wait({ signal }: Pick<Rig, 'signal'>, ms: number): Promise<void> {
  await pause(ms, undefined, { signal })
}

const AGAIN_MS = 200
/** A broker takes a minute to start on a machine that has too much to do, and may have to try twice. */
const MEND_MS = 150_000
const MEND_ABORTED_MS = 5_000

/** Does it again until it succeeds: servers may be coming back from the fault before. Rejects at the end of the campaign. */
export async function insist<T>({ signal }: Pick<Rig, 'signal'>, work: () => PromiseLike<T>, withinMs = 30_000): Promise<T> {
  for (const end = performance.now() + withinMs; ; await pause(AGAIN_MS, undefined, { signal })) {
    try {
      return await work()
    } catch (error) {
      if (signal.aborted || performance.now() > end) throw error
    }
  }
}

/** The same for mending, which is done after the end of the campaign too, then for a moment only. */
export async function mend({ signal }: Pick<Rig, 'signal'>, work: () => PromiseLike<unknown>): Promise<void> {
  const begun = performance.now()
  for (;;) {
    try {
      await work()
      return
    } catch (error) {
      if (performance.now() - begun > (signal.aborted ? MEND_ABORTED_MS : MEND_MS)) throw error
      await pause(AGAIN_MS)
    }
  }
}
