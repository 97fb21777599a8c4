import { setTimeout as pause } from 'node:timers/promises'

import { seeded } from '../demo/random.ts'
import { FAULTS } from './faults/all.ts'
import type { Fault, Rig } from './faults/fault.ts'
import { type Plan, type Planned, STEP } from './plan.ts'
import type { Place, Servers } from './rig.ts'
import { stepFault } from './step.ts'
import type { Watch } from './watch.ts'

/**
 * A fault that was done: when, in milliseconds from the first, how long it lasted, and after how long the lag was below a
 * second again. That is undefined where the next fault came before.
 */
export type Happened = { at: number; fault: string; kind: Fault['kind']; lasted: number; recovered: number | undefined; failed: string | undefined }

export type HappenParts = {
  place: Place
  servers: Servers
  plan: Plan
  watch: Watch
  want: Rig['want']
  /** Aborted when nothing is posted any more: then no fault begins. */
  over: AbortSignal
  signal: AbortSignal
  log: (line: string) => void
}

export function faultOf(name: string): Fault | undefined {
  return name.startsWith(STEP) ? stepFault(name.slice(STEP.length)) : FAULTS[name]
}

/** One fault after the other, as planned, until the schedule or the posting ends. Each is mended when this resolves. */
export async function happens(parts: HappenParts): Promise<{ happened: Happened[]; notes: Record<string, number> }> {
  const { plan, over, signal, log } = parts
  const happened: Happened[] = []
  const notes: Record<string, number> = {}
  const begun = performance.now()
  const stop = AbortSignal.any([over, signal])
  let next = new AbortController()
  for (const planned of plan.schedule) {
    await pause(planned.after, undefined, { signal: stop }).catch(() => undefined)
    if (stop.aborted) break
    const fault = faultOf(planned.fault)
    if (fault === undefined) throw new Error(`there is no fault ${planned.fault}`)
    next.abort()
    next = new AbortController()
    const rig = rigOf(parts, planned, (what) => { notes[what] = (notes[what] ?? 0) + 1 })
    const from = performance.now()
    const failed = await fault.happen(rig).then(() => undefined, (error: unknown) => (error instanceof Error ? error.message : String(error)))
    const one: Happened = { at: Math.round(from - begun), fault: fault.name, kind: fault.kind, lasted: Math.round(performance.now() - from), recovered: undefined, failed }
    happened.push(one)
    log(`  ${(one.at / 1_000).toFixed(1)} s ${fault.name} for ${(one.lasted / 1_000).toFixed(1)} s${failed === undefined ? '' : `: ${failed}`}`)
    void recovery(parts, one, AbortSignal.any([stop, next.signal]))
  }
  return { happened, notes }
}

/** From when the process began that was started last, or from when the fault was mended. */
async function recovery({ place, watch }: HappenParts, one: Happened, stop: AbortSignal): Promise<void> {
  const from = one.kind === 'kill' ? Math.max(...place.roles.map(({ begun }) => begun())) : performance.now()
  await watch.caughtUp(stop).then(() => { one.recovered = Math.round(performance.now() - from) }, () => undefined)
}

function rigOf({ place, servers, want, signal, log }: HappenParts, { seed }: Planned, noted: Rig['noted']): Rig {
  return {
    random: seeded(seed), log, signal, noted, want, roles: place.roles, edges: place.edges, sql: place.target, postgres: servers.postgres, kafka: servers.kafka, clocks: servers.clocks,
    admin: place.admin, topic: place.topic, errorTopic: place.errorTopic, group: place.group, databaseUrl: place.urls.first,
  }
}
