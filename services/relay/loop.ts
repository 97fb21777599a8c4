import type { Published } from '../../outbox/ack.ts'
import type { PendingEvent } from '../../outbox/pending.ts'
import type { Log } from '../runtime/log.ts'
import type { Wake } from '../runtime/wake.ts'
import { openAcks } from './acks.ts'
import { usable } from './lanes.ts'
import type { HeldLane } from './lanes.ts'
import type { Flying } from './partition.ts'
import { openBell, openTrouble, backOff } from './repeat.ts'
import type { Bell, Trouble } from './repeat.ts'
import { openTopics } from './topics.ts'
import type { Topics } from './topics.ts'

/** What may be in flight at once: some reads, so that reading, sending and acking overlap, and memory stays bounded. */
const MOST_ROWS = 8_000
const MOST_BYTES = 16 << 20

/** Idle looking, in milliseconds: begins at the first, doubles to the second. A wake cuts it short. */
const LOOK_FIRST = 50
const LOOK_LAST = 500

/** Under a steady trickle reads this far apart, in milliseconds, find enough to be worth their cost. */
const BETWEEN_READS = 5
const WORTH_IT = 200

/** A lane whose topic cannot be had rests this long: asking takes seconds, in which no other lane is read. */
const UNREADY_REST = 2_000

/** A lane whose first event has no change in producer_log waits this long for somebody to look. */
const ORPHAN_REST = 5_000

export type RelayParts = {
  /** The lanes held now; another hand claims, renews and releases them. */
  lanes: Map<number, HeldLane>
  /** Pending events of the lanes in (lane, position) order, without the positions in flight. */
  read: (lanes: readonly HeldLane[]) => Promise<PendingEvent[]>
  /** How many partitions the topic has, as far as is known now. */
  partitions: (topic: string) => Promise<number>
  /** Resolves when the broker acknowledged all, with the offset of the first. */
  send: (topic: string, partition: number, events: readonly PendingEvent[]) => Promise<bigint>
  /** Removes what was published, and returns the lanes that were still held. */
  ack: (lanes: readonly HeldLane[], published: readonly Published[]) => Promise<{ held: number[]; count: number }>
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
  const acks = openAcks({ ...parts, landed: flight.landed })
  const topics = openTopics({ ...parts, published: acks.add, dropped: flight.landed })
  const reader = { parts, flight, topics, orphans: openTrouble(parts.log, 'events whose change is not in producer_log') }
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
      if (taken < WORTH_IT) await patience.rest(begun + BETWEEN_READS - performance.now())
    } catch (error) {
      trouble.failed(error)
      tries += 1
      await patience.rest(backOff(tries))
    }
  }
  await Promise.race([topics.stop().then(acks.finish), aborted(parts.hurry)])
}

type Reader = { parts: RelayParts; flight: Flight; topics: Topics; orphans: Trouble }

/** Reads once and hands over what is in order; the rest is left for the next read. Returns how many events went. */
async function readOnce({ parts, flight, topics, orphans }: Reader, lanes: readonly HeldLane[]): Promise<number> {
  const readings = new Map(lanes.map((lane) => [lane.lane, { lane, reading: lane.reading }]))
  const events = await parts.read(lanes)
  const ready = await topics.prepare(new Set(events.map(({ topicname }) => topicname)), flight.empty())
  const skipped = new Set<HeldLane>()
  let taken = 0
  for (const event of events) {
    const at = readings.get(event.lane)
    if (at === undefined || skipped.has(at.lane) || at.reading !== at.lane.reading || !usable(at.lane)) continue
    if (event.topicname === null || !ready.has(event.topicname)) {
      // What follows in this lane must not go before it.
      skipped.add(at.lane)
      if (event.topicname !== null) {
        at.lane.blockedUntil = performance.now() + UNREADY_REST
        continue
      }
      orphans.failed(new Error(`lane ${event.lane}, position ${event.position}: the lane waits`))
      at.lane.blockedUntil = performance.now() + ORPHAN_REST
      continue
    }
    const flying = { event, ...at }
    flight.take(flying)
    topics.add(event.topicname, flying)
    taken += 1
  }
  return taken
}

function readable(lanes: Map<number, HeldLane>): HeldLane[] {
  const now = performance.now()
  return [...lanes.values()].filter((lane) => usable(lane) && !lane.leaving && lane.blockedUntil <= now)
}

type Flight = { take: (flying: Flying) => void; landed: (batch: readonly Flying[]) => void; full: () => boolean; empty: () => boolean }

/** Counts what is in flight, and pokes the reader when there is room again. */
function openFlight(bell: Bell): Flight {
  let rows = 0
  let bytes = 0
  const full = (): boolean => rows >= MOST_ROWS || bytes >= MOST_BYTES
  return {
    take({ event, lane }) {
      lane.inflight.add(event.position)
      rows += 1
      bytes += event.bytes
    },
    landed(batch) {
      const was = full()
      for (const { event, lane } of batch) {
        lane.inflight.delete(event.position)
        rows -= 1
        bytes -= event.bytes
      }
      if (was && !full()) bell.poke()
    },
    full,
    empty: () => rows === 0,
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
