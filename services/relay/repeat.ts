import type { Log } from '../runtime/log.ts'

/** Milliseconds before try number `tries` (from 1): 100, 200, 400 … 5,000, less up to a fifth so that relays spread out. */
export function backOff(tries: number): number {
  return Math.min(5_000, 100 * 2 ** Math.min(tries - 1, 10)) * (0.8 + Math.random() * 0.2)
}

/** Milliseconds after which a failure that lasts is logged again. */
const REMIND = 60_000

/** Logs when something begins to fail and when it works again, and not each try. */
export type Trouble = { failed: (error: unknown) => void; worked: () => void }

export function openTrouble(log: Log, what: string): Trouble {
  let since: number | undefined
  let said = 0
  return {
    failed(error) {
      const now = performance.now()
      since ??= now
      if (said !== 0 && now - said < REMIND) return
      said = now
      log.warn({ error, seconds: Math.round((now - since) / 1_000) }, `${what}: failing, trying on`)
    },
    worked() {
      if (since === undefined) return
      log.info({ seconds: Math.round((performance.now() - since) / 1_000) }, `${what}: works again`)
      since = undefined
      said = 0
    },
  }
}

/**
 * A rest that a poke ends. A poke before the rest counts, so that nothing is missed between looking and resting; `clear`
 * before looking takes the pokes that the look will answer.
 */
export type Bell = { poke: () => void; clear: () => void; rest: (ms: number) => Promise<void> }

export function openBell(): Bell {
  let poked = false
  let wakeUp: (() => void) | undefined
  return {
    poke() {
      poked = true
      wakeUp?.()
    },
    clear() {
      poked = false
    },
    async rest(ms) {
      if (!poked && ms > 0) {
        const { promise, resolve } = Promise.withResolvers<void>()
        wakeUp = resolve
        const timer = setTimeout(resolve, ms)
        await promise
        clearTimeout(timer)
        wakeUp = undefined
      }
      poked = false
    },
  }
}

/**
 * Runs a task now and every so often until the signal; a failure is logged and tried again, never sooner than backOff.
 *
 * What fails here is the database or the broker being away; the relay waits for it and never ends because of it.
 */
export async function repeat(parts: {
  task: () => Promise<unknown>
  everyMs: number
  what: string
  signal: AbortSignal
  log: Log
}): Promise<void> {
  const trouble = openTrouble(parts.log, parts.what)
  const bell = openBell()
  parts.signal.addEventListener('abort', bell.poke, { once: true })
  for (let tries = 0; !parts.signal.aborted; ) {
    try {
      await parts.task()
      trouble.worked()
      tries = 0
    } catch (error) {
      trouble.failed(error)
      tries += 1
    }
    if (!parts.signal.aborted) await bell.rest(tries === 0 ? parts.everyMs : backOff(tries))
  }
}
