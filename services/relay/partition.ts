import type { PendingEvent } from '../../outbox/pending.ts'
import { isTooLarge } from '../runtime/kafka.ts'
import { usable } from './lanes.ts'
import type { HeldLane } from './lanes.ts'
import { backOff } from './repeat.ts'
import type { Trouble } from './repeat.ts'

/** An event that was read and not yet acked; `reading` is its lane's when it was read. */
export type Flying = { event: PendingEvent; lane: HeldLane; reading: number }

/**
 * kafkajs copies a growing list for every record of a send, so more in one is slower; the bytes are what a broker's batch
 * and our memory take. One larger record goes alone.
 */
const MOST_RECORDS = 500
const MOST_BYTES = 4 << 20

/** A lane whose first record the broker refuses for its size is tried again so often, in milliseconds. */
const UNSENDABLE_REST = 5_000

export type PartitionParts = {
  partition: number
  /** Resolves with the offset of the first; what it rejects with leaves it open whether they were written. */
  send: (events: readonly PendingEvent[]) => Promise<bigint>
  published: (batch: readonly Flying[], partition: number, first: bigint) => void
  /** Not sent, or nobody knows: to be read again, in order. */
  dropped: (batch: readonly Flying[]) => void
  trouble: Trouble
}

/** The events for one partition of a topic, in order, one send at a time. */
export type Partition = { add: (flying: Flying) => void; stop: () => void; idle: () => Promise<void> }

/**
 * Sends what is added, in order, with one send in flight: a later event never leaves before the earlier ones of its lane
 * are acknowledged. After a failure everything waiting here is dropped and its lanes rest, for they are read again from
 * their first pending event on.
 */
export function openPartition(parts: PartitionParts): Partition {
  let queue: Flying[] = []
  let working: Promise<void> | undefined
  let tries = 0
  let restUntil = 0
  let mostBytes = MOST_BYTES
  let stopped = false

  function drop(batch: readonly Flying[]): void {
    for (const lane of new Set(batch.map((one) => one.lane))) {
      lane.reading += 1
      lane.blockedUntil = Math.max(lane.blockedUntil, restUntil)
    }
    parts.dropped(batch)
  }

  function dropLanes(out: ReadonlySet<HeldLane>, batch: readonly Flying[]): void {
    drop([...batch, ...queue].filter(({ lane }) => out.has(lane)))
    queue = queue.filter(({ lane }) => !out.has(lane))
  }

  /** Drops from the batch, and from what waits behind it, the lanes of which something may not be sent. */
  function sendable(batch: readonly Flying[]): readonly Flying[] {
    const out = new Set(batch.filter(({ lane, reading }) => reading !== lane.reading || !usable(lane)).map(({ lane }) => lane))
    if (out.size > 0) dropLanes(out, batch)
    return batch.filter(({ lane }) => !out.has(lane))
  }

  function failed(batch: readonly Flying[], error: unknown): void {
    if (isTooLarge(error) && batch.length > 1) {
      // Nothing was written, so the same records go again, in order, in batches that fit.
      mostBytes = Math.ceil(sizeOf(batch) / 2)
      queue.unshift(...batch)
      return
    }
    parts.trouble.failed(error)
    const alone = unsendable(batch, error)
    if (alone !== undefined) {
      alone.blockedUntil = performance.now() + UNSENDABLE_REST
      return dropLanes(new Set([alone]), batch)
    }
    tries += 1
    restUntil = performance.now() + backOff(tries)
    drop([...batch, ...queue.splice(0)])
  }

  async function work(): Promise<void> {
    await Promise.resolve() // what is added in this turn goes together
    while (queue.length > 0 && !stopped) {
      const { batch, size } = take(queue, mostBytes)
      queue.splice(0, size)
      const ours = sendable(batch)
      if (ours.length === 0) continue
      try {
        const first = await parts.send(ours.map(({ event }) => event))
        tries = 0
        parts.trouble.worked()
        parts.published(ours, parts.partition, first)
      } catch (error) {
        failed(ours, error)
      }
    }
    working = undefined
  }

  return {
    add(flying) {
      if (stopped || performance.now() < restUntil) return drop([flying])
      queue.push(flying)
      working ??= work()
    },
    stop() {
      stopped = true
      drop(queue)
      queue = []
    },
    idle: async () => working,
  }
}

/** As many as one send takes from the front; always one. */
function take(queue: readonly Flying[], mostBytes: number): { batch: Flying[]; size: number } {
  let bytes = 0
  let size = 0
  for (const { event } of queue) {
    bytes += event.bytes
    if (size > 0 && (bytes > mostBytes || size === MOST_RECORDS)) break
    size += 1
  }
  return { batch: queue.slice(0, size), size }
}

/** The lane of a single record that may never pass: above socket.request.max.bytes the broker just hangs up. */
function unsendable(batch: readonly Flying[], error: unknown): HeldLane | undefined {
  const [alone] = batch
  if (alone === undefined || batch.length > 1) return undefined
  return isTooLarge(error) || alone.event.bytes > MOST_BYTES ? alone.lane : undefined
}

function sizeOf(batch: readonly Flying[]): number {
  return batch.reduce((sum, { event }) => sum + event.bytes, 0)
}
