import { setTimeout as pause } from 'node:timers/promises'
import postgres from 'postgres'
import type { Log } from './log.ts'
import { connectionOptions, openSlot, withDeadline } from './slot.ts'

/**
 * The hint that there is news. Losing one costs time, never data: whoever waits looks by itself now and then.
 *
 * `next` is for the first ring after the call, so take it before working: news that come meanwhile are not missed. It
 * resolves too when the wake is closed, and when a lost connection is back.
 */
export type Wake = { ring: () => void; next: () => Promise<void>; close: () => Promise<void> }

/** Between the roles of one process. */
export function openLocalWake(): Wake {
  let coming = Promise.withResolvers<void>()
  const ring = (): void => {
    const now = coming
    coming = Promise.withResolvers<void>()
    now.resolve()
  }
  return {
    ring,
    next: () => coming.promise,
    close: async () => ring(),
  }
}

/** At most one NOTIFY in this many milliseconds: each takes a lock of the whole database while it commits. */
const BETWEEN_RINGS = 10

/** Milliseconds in which a connection must be made and LISTEN be answered; then another one is tried. */
const ANSWER_MS = 5_000

/** The longest that closing may take: what Postgres has not answered by then is a hint that is lost. */
const CLOSING_MS = 300

/**
 * Between processes: NOTIFY on a connection of its own, never in the transaction of an insert (−26 to −68 % throughput).
 *
 * Who never rings opens no connection for it, who never waits does not listen.
 */
export function openWake(parts: { url: string; channel: string; name: string; log: Log }): Wake {
  const local = openLocalWake()
  const stop = new AbortController()
  const ringer = openRinger(parts, stop.signal)
  let listening: Promise<void> | undefined
  return {
    ring: ringer.ring,
    next: () => {
      const next = local.next()
      listening ??= listen(parts, local.ring, stop.signal)
      return next
    },
    close: async () => {
      stop.abort()
      await Promise.race([Promise.all([ringer.close(), listening]), pause(CLOSING_MS)])
      local.ring()
    },
  }
}

function openRinger(parts: { url: string; channel: string; name: string; log: Log }, signal: AbortSignal): Pick<Wake, 'ring' | 'close'> {
  const slot = openSlot({ url: parts.url, name: `${parts.name} ring`, deadline: 5_000 })
  let wanted = false
  let working: Promise<void> | undefined
  let failing = false

  async function work(): Promise<void> {
    while (wanted && !signal.aborted) {
      wanted = false
      const between = pause(BETWEEN_RINGS)
      try {
        await slot.run((sql) => sql`select pg_notify(${parts.channel}, '')`)
        if (failing) parts.log.info('ringing again')
        failing = false
      } catch (error) {
        // A ring that fails is not repeated: by then the readers have looked by themselves.
        if (!failing && !signal.aborted) parts.log.warn({ error }, 'cannot ring; readers find news by looking, within 500 ms')
        failing = true
      }
      await between
    }
    working = undefined
  }

  return {
    ring() {
      wanted = true
      if (!signal.aborted) working ??= work()
    },
    close: async () => {
      // Not after the work: closing is what ends it where it hangs.
      await Promise.all([working, slot.close(CLOSING_MS / 2)])
    },
  }
}

/**
 * Listens until the signal, over a new connection whenever one is lost.
 *
 * Not the driver's listen(): it tries once after a loss and then stays deaf without a word. The driver has no limit either
 * for an answer, so a line that freezes behind the sign-in would be the same.
 */
async function listen(parts: { url: string; channel: string; name: string; log: Log }, ring: () => void, signal: AbortSignal): Promise<void> {
  const aborted = new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }))
  let failing = false
  while (!signal.aborted) {
    const closed = Promise.withResolvers<void>()
    const over = new AbortController()
    const options = {
      ...connectionOptions({ url: parts.url, name: `${parts.name} wake`, givenUp: over.signal }),
      onnotify: ring, // what the driver's listen() itself is made of
      onclose: () => closed.resolve(),
    }
    const sql = postgres(parts.url, options)
    try {
      await Promise.race([withDeadline(sql`listen ${sql(parts.channel)}`, ANSWER_MS), aborted])
      if (failing && !signal.aborted) parts.log.info('listening again')
      failing = false
      ring() // what was rung before is gone
      await Promise.race([closed.promise, aborted])
    } catch (error) {
      if (!failing) parts.log.warn({ error }, 'cannot listen; news are found by looking, within 500 ms')
      failing = true
    }
    over.abort()
    // Not awaited: end() hangs for ever right after a disconnect.
    sql.end({ timeout: 0 }).catch((error: unknown) => parts.log.debug({ error }, 'closing a lost connection'))
    if (!signal.aborted) await Promise.race([pause(1_000, undefined, { ref: false }), aborted])
  }
}
