import { setTimeout as pause } from 'node:timers/promises'

import { descriptorsOf, peakOf } from '../stack/server-process.ts'
import type { Place } from './rig.ts'

/** The most that any process of a role had, and what Postgres had of connections. */
export type Growth = { peakMegabytes: Record<string, number>; peakDescriptors: Record<string, number>; connections: number; worstLag: number }

export type Watch = {
  /** Age of the oldest change without an outcome, in seconds, as last seen. */
  lag: () => number
  /** Resolves at the first look, begun after this call, that finds a lag of less than a second; rejects at the abort. */
  caughtUp: (signal: AbortSignal) => Promise<void>
  end: () => Promise<Growth>
}

const LOOK_EVERY_MS = 250
const CAUGHT_UP = 1

/** Looks at lag and at the processes four times a second until `end`. */
export function watchRoles({ first, roles }: Place): Watch {
  const growth: Growth = { peakMegabytes: {}, peakDescriptors: {}, connections: 0, worstLag: 0 }
  const ended = new AbortController()
  let lag = 0
  let looks = 0
  let looked = Promise.withResolvers<void>()

  async function look(): Promise<void> {
    const [row] = await first<{ lag: number; connections: number }[]>`
      select coalesce(extract(epoch from clock_timestamp() - min(received_at)), 0)::float8 as lag,
             (select count(*)::integer from pg_stat_activity where application_name like 'deltapost%') as connections
      from auditlog.pending`
    lag = row?.lag ?? 0
    looks += 1
    growth.worstLag = Math.max(growth.worstLag, lag)
    growth.connections = Math.max(growth.connections, row?.connections ?? 0)
    for (const { role, pid } of roles) {
      growth.peakMegabytes[role] = Math.max(growth.peakMegabytes[role] ?? 0, Math.round((peakOf(pid()) ?? 0) / 2 ** 20))
      growth.peakDescriptors[role] = Math.max(growth.peakDescriptors[role] ?? 0, descriptorsOf(pid()))
    }
    looked.resolve()
    looked = Promise.withResolvers()
  }

  const looking = (async () => {
    while (!ended.signal.aborted) {
      await look().catch(() => undefined) // Postgres is away at times: that is what the run is for
      await pause(LOOK_EVERY_MS, undefined, { signal: ended.signal }).catch(() => undefined)
    }
  })()
  return {
    lag: () => lag,
    async caughtUp(signal) {
      const from = looks + 1 // the one that runs now may have begun before
      while (looks <= from || lag >= CAUGHT_UP) {
        await Promise.race([looked.promise, pause(60_000, undefined, { signal })])
        signal.throwIfAborted()
      }
    },
    async end() {
      ended.abort()
      await looking
      return growth
    },
  }
}
