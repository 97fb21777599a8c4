import { setTimeout as pause } from 'node:timers/promises'
import type { Log } from '../runtime/log.ts'

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
