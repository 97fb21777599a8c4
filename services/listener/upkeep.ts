import { setTimeout as pause } from 'node:timers/promises'
import { prunePair } from '../../outbox/retention.ts'
import type { Config } from '../runtime/config.ts'
import type { Log } from '../runtime/log.ts'
import { openSlot } from '../runtime/slot.ts'

/**
 * Does `work` now and every `ms` milliseconds until the signal aborts. A failure is logged when it begins and when it
 * ends, and is no reason to stop: none of this is needed for accepting the next change.
 */
export async function every(ms: number, name: string, work: () => Promise<unknown>, log: Log, signal: AbortSignal): Promise<void> {
  let failing = false
  while (!signal.aborted) {
    try {
      await work()
      if (failing) log.info({ name }, 'works again')
      failing = false
    } catch (error) {
      if (!failing && !signal.aborted) log.warn({ name, error }, 'failed, and is tried again')
      failing = true
    }
    await pause(ms, undefined, { signal, ref: false }).catch(() => undefined) // aborted: the loop ends
  }
}

const HOUR = 3_600_000

/**
 * Prunes what is behind the horizon until the signal aborts; nothing where HORIZON is 0.
 *
 * The listener does it because it makes the partitions too, so its account may drop them, and because it is always there:
 * a cron job that was forgotten shows as a full disk. Of several listeners one at a time does it.
 */
export async function leaveBehind(config: Config, log: Log, signal: AbortSignal): Promise<void> {
  const { horizon, clockTolerance, databaseUrl, targetDatabaseUrl } = config
  if (horizon === 0) return
  const slots = [databaseUrl, targetDatabaseUrl].filter((url) => url !== undefined)
    .map((url) => openSlot({ url, name: 'listener retention', deadline: 120_000 }))
  const [first, target] = slots.map(({ run }) => run)
  if (first === undefined) return
  // What is deleted late costs a twenty-fourth of the space; a pass reads whole tables.
  const period = Math.min(Math.max(horizon / 24, 60_000), 6 * HOUR)
  const pass = async (): Promise<void> => {
    for (const { cut, partitions, busy, rows } of await prunePair(first, target, { horizon, grace: clockTolerance, every: period * 0.9, signal })) {
      const count = Object.values(rows).reduce((sum, some) => sum + some, 0)
      if (count > 0 || partitions.length > 0 || busy) log.info({ cut, partitions, busy, rows }, 'left behind what is older than the horizon')
    }
  }
  try {
    await every(period, 'retention', pass, log, signal)
  } finally {
    await Promise.all(slots.map((slot) => slot.close()))
  }
}
