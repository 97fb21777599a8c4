import { setImmediate } from 'node:timers/promises'
import type { Log } from '../runtime/log.ts'
import { lose } from './lanes.ts'
import type { HeldLane } from './lanes.ts'
import type { InFlight } from './partition.ts'
import { backOff, openBell, openTrouble } from './repeat.ts'

/** One statement takes at most this many events: 5 ms of locks on the lanes, which a renewal waits for. */
const MOST = 4_000

/** Makes events leave their lanes, and returns the lanes that were still held. */
export type Settle<T> = (lanes: readonly HeldLane[], items: readonly T[]) => Promise<{ held: number[]; count: number }>

export type AcksParts<T> = {
  /** For the log: what is being done, and what was. */
  doing: string
  done: string
  settle: Settle<T>
  lanes: Map<number, HeldLane>
  /** These are not in flight any more. */
  landed: (batch: readonly InFlight[]) => void
  /** Ends the tries when there is no more time. */
  hurry: AbortSignal
  log: Log
}

/** Events on their way out of their lanes; `finish` resolves when nothing is left. */
export type Acks<T> = { add: (batch: readonly (InFlight & { item: T })[]) => void; finish: () => Promise<void> }

/**
 * One statement at a time, with all that was added meanwhile, and in the same turn: one answer of the broker brings what
 * many partitions had. A failed one is tried again: it names what leaves, so it
 * does no harm when the first did succeed. Until then its events are in flight and are not read again.
 */
export function openAcks<T>(parts: AcksParts<T>): Acks<T> {
  const trouble = openTrouble(parts.log, parts.doing)
  const bell = openBell()
  parts.hurry.addEventListener('abort', bell.poke, { once: true })
  const waiting: (InFlight & { item: T })[] = []
  let working: Promise<void> | undefined

  async function once(): Promise<void> {
    const batch = waiting.slice(0, MOST)
    const lanes = [...new Set(batch.map(({ lane }) => lane))]
    const { held, count } = await parts.settle(lanes, batch.map(({ item }) => item))
    waiting.splice(0, batch.length)
    const fenced = lanes.filter(({ lane }) => !held.includes(lane))
    for (const lane of fenced) lose(parts.lanes, lane)
    if (fenced.length > 0) parts.log.warn({ lanes: fenced.map(({ lane }) => lane) }, 'fenced: the claim ended before the ack, the events stay')
    parts.landed(batch)
    parts.log.debug({ events: count, lanes: held.length }, parts.done)
  }

  async function work(): Promise<void> {
    await setImmediate()
    for (let tries = 0; waiting.length > 0 && !parts.hurry.aborted; ) {
      try {
        await once()
        trouble.worked()
        tries = 0
      } catch (error) {
        trouble.failed(error)
        tries += 1
        await bell.rest(backOff(tries))
      }
    }
    working = undefined
  }

  return {
    add(batch) {
      for (const one of batch) waiting.push(one)
      working ??= work()
    },
    finish: async () => working,
  }
}
