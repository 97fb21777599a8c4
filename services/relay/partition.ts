import type { PendingEvent } from '../../outbox/pending.ts'
import { Withdrawn } from './joint.ts'
import { usable } from './lanes.ts'
import type { HeldLane } from './lanes.ts'
import { refusalOf } from './refusal.ts'
import type { Refusal } from './refusal.ts'
import { backOff } from './repeat.ts'
import type { Trouble } from './repeat.ts'
import { drop, goOn } from './strand.ts'
import type { Strand } from './strand.ts'

/** An event that was read and has not left the outbox yet. */
export type InFlight = { event: PendingEvent; lane: HeldLane }

/** One on its way to the broker; `reading` is its lane's when it was read. */
export type Flying = InFlight & { strand: Strand; reading: number }

/**
 * kafkajs copies a growing list for every record of a send, so more in one is slower; the bytes are what a broker's batch
 * and our memory take. One larger record goes alone.
 */
const MOST_RECORDS = 500
const MOST_BYTES = 4 << 20

/** A large record whose send ends without an answer is tried again so often, in milliseconds. */
const UNANSWERED_REST = 5_000

export type PartitionParts = {
  partition: number
  /** Resolves with the offset of the first; what it rejects with leaves it open whether they were written. */
  send: (events: readonly PendingEvent[], mayGoOn: () => boolean) => Promise<bigint>
  published: (batch: readonly Flying[], partition: number, first: bigint) => void
  /** The broker will never take this record. */
  refused: (flying: Flying, refusal: Refusal) => void
  /** Not sent, or nobody knows: to be read again, in order. */
  dropped: (batch: readonly Flying[]) => void
  /** A strand that waited goes on. */
  wentOn: () => void
  trouble: Trouble
}

/** The events for one partition of a topic, in order, one send at a time. */
export type Partition = { add: (flying: Flying) => void; stop: () => void; idle: () => Promise<void> }

/**
 * Sends what is added, in order, with one send in flight: a later event never leaves before the earlier ones of its strand
 * are acknowledged. After a failure everything waiting here is dropped and its strands wait, until the first event of each
 * was sent. A record that the broker refuses for good is singled out; those behind it go on.
 */
export function openPartition(parts: PartitionParts): Partition {
  let queue: Flying[] = []
  let working: Promise<void> | undefined
  let tries = 0
  let restUntil = 0
  const sizes = openSizes()
  let stopped = false

  function dropAll(batch: readonly Flying[], tryAt = restUntil): void {
    for (const { lane, strand, event } of batch) drop(lane, strand, event.position, tryAt)
    if (batch.length > 0) parts.dropped(batch)
  }

  function dropStrands(out: ReadonlySet<Strand>, batch: readonly Flying[], tryAt?: number): void {
    dropAll([...batch, ...queue].filter(({ strand }) => out.has(strand)), tryAt)
    queue = queue.filter(({ strand }) => !out.has(strand))
  }

  /** Drops from the batch, and from what waits behind it, the strands of which something may not be sent. */
  function sendable(batch: readonly Flying[]): readonly Flying[] {
    const out = new Set(batch.filter(({ lane, strand, reading }) => reading < strand.dropped || !usable(lane)).map(({ strand }) => strand))
    if (out.size > 0) dropStrands(out, batch)
    return batch.filter(({ strand }) => !out.has(strand))
  }

  function failed(batch: readonly Flying[], error: unknown): void {
    // Nothing was written: what is still ours goes next.
    if (error instanceof Withdrawn) return stopped ? dropAll(batch) : void queue.unshift(...batch)
    const refusal = refusalOf(error)
    if (refusal !== undefined) {
      tries = 0
      queue.unshift(...singleOut(parts, sizes, batch, refusal))
      return
    }
    const gone = batch.every(({ lane }) => !usable(lane))
    if (!gone) parts.trouble.failed(error)
    if (gone || (batch.length === 1 && sizeOf(batch) > MOST_BYTES)) {
      // Interrupted because the lane is gone, or above socket.request.max.bytes, where the broker just hangs up.
      return dropStrands(new Set(batch.map(({ strand }) => strand)), batch, performance.now() + UNANSWERED_REST)
    }
    tries += 1
    restUntil = performance.now() + backOff(tries)
    dropAll([...batch, ...queue.splice(0)])
  }

  async function work(): Promise<void> {
    await Promise.resolve() // what is added in this turn goes together
    while (queue.length > 0 && !stopped) {
      const ours = sendable(queue.splice(0, sizes.take(queue)))
      if (ours.length === 0) continue
      const mayGoOn = (): boolean => !stopped && ours.every(({ lane }) => usable(lane))
      try {
        const first = await parts.send(ours.map(({ event }) => event), mayGoOn)
        sizes.widen()
        parts.trouble.worked()
        tries = 0
        goOnAll(ours, parts.wentOn)
        parts.published(ours, parts.partition, first)
      } catch (error) {
        failed(ours, error)
      }
    }
    working = undefined
  }

  return {
    add(flying) {
      if (stopped || performance.now() < restUntil) return dropAll([flying])
      queue.push(flying)
      working ??= work()
    },
    stop() {
      stopped = true
      dropAll(queue)
      queue = []
    },
    idle: async () => working,
  }
}

/** Returns what is to be sent again, in order, in batches that fit or come closer to the one: nothing was written. */
function singleOut(parts: PartitionParts, sizes: Sizes, batch: readonly Flying[], refusal: Refusal): readonly Flying[] {
  if (batch.length > 1) {
    sizes.narrow(batch, refusal)
    return batch
  }
  goOnAll(batch, parts.wentOn)
  for (const flying of batch) parts.refused(flying, refusal)
  return []
}

/** The broker answered for their topic: what waited for that is read again. */
function goOnAll(batch: readonly Flying[], wentOn: () => void): void {
  const waited = new Map(batch.filter(({ strand }) => strand.waitsFrom !== undefined).map(({ strand, lane }) => [strand, lane]))
  for (const [strand, lane] of waited) goOn(lane, strand)
  if (waited.size > 0) wentOn()
}

type Sizes = {
  /** How many one send takes from the front; always one. */
  take: (queue: readonly Flying[]) => number
  narrow: (refused: readonly Flying[], refusal: Refusal) => void
  widen: () => void
}

/**
 * How much goes in one send: the bytes the topic was seen to take, and fewer records while one is being singled out. The
 * bytes grow again by a tenth a send, for a limit may be raised: from the smallest to MOST_BYTES in some hundred sends.
 */
function openSizes(): Sizes {
  let mostBytes = MOST_BYTES
  let mostRecords = MOST_RECORDS
  return {
    take(queue) {
      let bytes = 0
      let size = 0
      for (const { event } of queue) {
        bytes += event.bytes
        if (size > 0 && (bytes > mostBytes || size >= mostRecords)) break
        size += 1
      }
      return size
    },
    narrow(refused, { code }) {
      if (code !== 'INVALID_RECORD') mostBytes = Math.ceil(sizeOf(refused) / 2)
      else mostRecords = Math.ceil(refused.length / 2)
    },
    widen() {
      mostRecords = Math.min(MOST_RECORDS, mostRecords * 2)
      mostBytes = Math.min(MOST_BYTES, Math.ceil(mostBytes * 1.1))
    },
  }
}

function sizeOf(batch: readonly Flying[]): number {
  return batch.reduce((sum, { event }) => sum + event.bytes, 0)
}
