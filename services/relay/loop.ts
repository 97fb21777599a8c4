import type { Published } from '../../outbox/ack.ts'
import type { PendingEvent } from '../../outbox/pending.ts'
import type { Refused } from '../../outbox/refused.ts'
import type { Log } from '../runtime/log.ts'
import type { Wake } from '../runtime/wake.ts'
import { openAcks } from './acks.ts'
import type { Settle } from './acks.ts'
import { usable } from './lanes.ts'
import type { HeldLane } from './lanes.ts'
import type { InFlight } from './partition.ts'
import { readOnce } from './reader.ts'
import type { ReaderParts } from './reader.ts'
import { openBell, openTrouble, backOff } from './repeat.ts'
import type { Bell } from './repeat.ts'
import { openTopics } from './topics.ts'

/** What may be in flight at once: some reads, so that reading, sending and acking overlap, and memory stays bounded. */
const MOST_ROWS = 8_000
const MOST_BYTES = 16 << 20

/** Idle looking, in milliseconds: begins at the first, doubles to the second. A wake cuts it short. */
const LOOK_FIRST = 50
const LOOK_LAST = 500

/**
 * Milliseconds between reads under a steady load: a turn of read, send, ack, fetch and apply takes some 5 ms of CPU however
 * few it has. Where a read finds `most` or more, turns take longer than they are apart, and the next read follows at once.
 */
const BETWEEN_READS = { few: 10, many: 20, manyFrom: 40, most: 200 }

export type RelayParts = Pick<ReaderParts, 'read' | 'passOver' | 'proven'> & {
  /** The lanes held now; another hand claims, renews and releases them. */
  lanes: Map<number, HeldLane>
  /** How many partitions the topic has, as far as is known now. */
  partitions: (topic: string) => Promise<number>
  /** Resolves when the broker acknowledged all, with the offset of the first. */
  send: (topic: string, partition: number, events: readonly PendingEvent[], mayGoOn: () => boolean) => Promise<bigint>
  /** Removes what was published. */
  ack: Settle<Published>
  /** Sets aside what the broker refused for good. */
  refuse: Settle<Refused>
  /** Removes what has nothing left to send. */
  discard: Settle<PendingEvent>
  wake: Pick<Wake, 'next'>
  /** Poked where the loop should look at once: by the wake, and by whoever claims lanes. */
  bell: Bell
  /** Begins the end; `hurry` ends the waiting for what was sent and not acked. */
  signal: AbortSignal
  hurry: AbortSignal
  log: Log
}

/**
 * Publishes what waits in the lanes until the signal; then finishes what was sent, with its acks, and resolves.
 *
 * Three things go on at once: this reads ahead, each partition sends one batch after the other, and one ack at a time
 * takes what the broker has. An event is in flight from its read to its ack. Nothing that fails here ends the loop.
 */
export async function relayLoop(parts: RelayParts): Promise<void> {
  const { bell, signal } = parts
  const flight = openFlight(bell)
  const leaving = openLeaving(parts, flight.landed)
  const topics = openTopics({ ...parts, ...leaving, dropped: flight.landed, flying: flight.flying })
  const reader = { ...parts, topics, take: flight.take, obsolete: leaving.obsolete, orphans: openTrouble(parts.log, 'events whose change is not in producer_log') }
  const trouble = openTrouble(parts.log, 'reading the outbox')
  const patience = openBell()
  signal.addEventListener('abort', () => { bell.poke(); patience.poke() }, { once: true })
  void follow(parts.wake, bell, signal)

  let tries = 0
  let look = LOOK_FIRST
  while (!signal.aborted) {
    bell.clear()
    const lanes = readable(parts.lanes)
    if (lanes.length === 0 || flight.full()) {
      await bell.rest(LOOK_FIRST)
      continue
    }
    const begun = performance.now()
    try {
      const taken = await readOnce(reader, lanes)
      trouble.worked()
      tries = 0
      look = taken > 0 ? LOOK_FIRST : Math.min(look * 2, LOOK_LAST)
      if (taken === 0 && !signal.aborted) await bell.rest(look)
      await patience.rest(begun + between(taken) - performance.now())
    } catch (error) {
      trouble.failed(error)
      tries += 1
      await patience.rest(backOff(tries))
    }
  }
  await Promise.race([topics.stop().then(leaving.finish), aborted(parts.hurry)])
}

type Leaving = {
  published: Parameters<typeof openTopics>[0]['published']
  refused: Parameters<typeof openTopics>[0]['refused']
  obsolete: (batch: readonly InFlight[]) => void
  finish: () => Promise<void>
}

/** The three ways out of a lane, each with its own statement, so that none waits for another. */
function openLeaving(parts: RelayParts, landed: (batch: readonly InFlight[]) => void): Leaving {
  const acks = openAcks({ ...parts, settle: parts.ack, landed, doing: 'acking what was published', done: 'published' })
  const settle: typeof parts.refuse = async (lanes, refused) => {
    const settled = await parts.refuse(lanes, refused)
    const codes = [...new Set(refused.map(({ code }) => code))]
    parts.log.warn({ count: settled.count, codes, positions: refused.slice(0, 20).map(({ position }) => position) }, 'the broker refuses these records for good')
    return settled
  }
  const refusals = openAcks({ ...parts, settle, landed, doing: 'setting aside what the broker refused', done: 'set aside' })
  const discards = openAcks({ ...parts, settle: parts.discard, landed, doing: 'removing what is obsolete', done: 'removed' })
  return {
    published: (batch, partition, first) => acks.add(batch.map(({ event, lane }, at) => (
      { event, lane, item: { lane: event.lane, position: event.position, partition, offset: String(first + BigInt(at)) } }))),
    refused: ({ event, lane }, refusal) => refusals.add([{ event, lane, item: { lane: event.lane, position: event.position, ...refusal } }]),
    obsolete: (batch) => discards.add(batch.map((one) => ({ ...one, item: one.event }))),
    finish: async () => { await Promise.all([acks.finish(), refusals.finish(), discards.finish()]) },
  }
}

function between(taken: number): number {
  const { few, many, manyFrom, most } = BETWEEN_READS
  return taken >= most ? 0 : taken >= manyFrom ? many : few
}

function readable(lanes: Map<number, HeldLane>): HeldLane[] {
  const now = performance.now()
  return [...lanes.values()].filter((lane) => usable(lane) && !lane.leaving && lane.blockedUntil <= now)
}

type Flight = {
  take: (one: InFlight) => void
  landed: (batch: readonly InFlight[]) => void
  full: () => boolean
  flying: (topic: string) => boolean
}

/** Counts what is in flight, and pokes the reader when there is room again. */
function openFlight(bell: Bell): Flight {
  let rows = 0
  let bytes = 0
  const perTopic = new Map<string | null, number>()
  const full = (): boolean => rows >= MOST_ROWS || bytes >= MOST_BYTES
  const count = ({ event }: InFlight, sign: 1 | -1): void => {
    rows += sign
    bytes += sign * event.bytes
    perTopic.set(event.topicname, (perTopic.get(event.topicname) ?? 0) + sign)
  }
  return {
    take(one) {
      one.lane.inflight.add(one.event.position)
      count(one, 1)
    },
    landed(batch) {
      const was = full()
      for (const one of batch) {
        one.lane.inflight.delete(one.event.position)
        count(one, -1)
      }
      if (was && !full()) bell.poke()
    },
    full,
    flying: (topic) => (perTopic.get(topic) ?? 0) > 0,
  }
}

/** Takes the next wake before passing on the last, so that none falls between. */
async function follow(wake: Pick<Wake, 'next'>, bell: Bell, signal: AbortSignal): Promise<void> {
  for (let next = wake.next(); !signal.aborted; ) {
    await next
    next = wake.next()
    bell.poke()
  }
}

function aborted(signal: AbortSignal): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>()
  if (signal.aborted) resolve()
  signal.addEventListener('abort', () => resolve(), { once: true })
  return promise
}
