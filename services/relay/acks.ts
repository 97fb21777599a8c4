import type { Published } from '../../outbox/ack.ts'
import type { Log } from '../runtime/log.ts'
import { lose } from './lanes.ts'
import type { HeldLane } from './lanes.ts'
import type { Flying } from './partition.ts'
import { backOff, openBell, openTrouble } from './repeat.ts'

/** One ack takes at most this many events: 5 ms of locks on the lanes, which a renewal waits for. */
const MOST = 4_000

export type AcksParts = {
  lanes: Map<number, HeldLane>
  ack: (lanes: readonly HeldLane[], published: readonly Published[]) => Promise<{ held: number[]; count: number }>
  /** These are not in flight any more. */
  landed: (batch: readonly Flying[]) => void
  /** Ends the tries when there is no more time. */
  hurry: AbortSignal
  log: Log
}

/** What the broker acknowledged, on its way out of the outbox; `finish` resolves when nothing is left. */
export type Acks = { add: (batch: readonly Flying[], partition: number, first: bigint) => void; finish: () => Promise<void> }

/**
 * One ack at a time, of all that was published meanwhile. A failed one is tried again: it names what it deletes, so it
 * does no harm when the first did succeed. Until then its events are in flight and are not read again.
 */
export function openAcks(parts: AcksParts): Acks {
  const trouble = openTrouble(parts.log, 'acking what was published')
  const bell = openBell()
  parts.hurry.addEventListener('abort', bell.poke, { once: true })
  const waiting: (Flying & { published: Published })[] = []
  let working: Promise<void> | undefined

  async function once(): Promise<void> {
    const batch = waiting.slice(0, MOST)
    const lanes = [...new Set(batch.map(({ lane }) => lane))]
    const { held, count } = await parts.ack(lanes, batch.map(({ published }) => published))
    waiting.splice(0, batch.length)
    const fenced = lanes.filter(({ lane }) => !held.includes(lane))
    for (const lane of fenced) lose(parts.lanes, lane)
    if (fenced.length > 0) parts.log.warn({ lanes: fenced.map(({ lane }) => lane) }, 'fenced: the claim ended before the ack, the events stay')
    parts.landed(batch)
    parts.log.debug({ events: count, lanes: held.length }, 'published')
  }

  async function work(): Promise<void> {
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
    add(batch, partition, first) {
      for (const [at, flying] of batch.entries()) {
        const { lane, position } = flying.event
        waiting.push({ ...flying, published: { lane, position, partition, offset: String(first + BigInt(at)) } })
      }
      working ??= work()
    },
    finish: async () => working,
  }
}
