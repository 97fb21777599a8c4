import type { PendingEvent, ReadableLane } from '../../outbox/pending.ts'
import type { Passed, WaitingLane } from '../../outbox/waiting.ts'
import { usable } from './lanes.ts'
import type { HeldLane } from './lanes.ts'
import type { Flying, InFlight } from './partition.ts'
import type { Trouble } from './repeat.ts'
import { goOn, readFrom, strandOf, sweep, wait, waiting, waitsToo } from './strand.ts'
import type { Strand } from './strand.ts'
import type { Topics } from './topics.ts'

/** A lane whose first event has no change in producer_log waits this long for somebody to look. */
const ORPHAN_REST = 5_000

export type ReaderParts = {
  /** Pending events of the lanes in (lane, position) order, at most `rows` if that is given. */
  read: (lanes: readonly ReadableLane[], rows?: number) => Promise<PendingEvent[]>
  /** How far the events of lanes only wait. */
  passOver: (lanes: readonly WaitingLane[]) => Promise<Passed[]>
  /** No event at or below this position can become visible any more. */
  proven: () => string
  topics: Topics
  take: (one: InFlight) => void
  obsolete: (batch: readonly InFlight[]) => void
  orphans: Trouble
}

/** Reads once and hands over what is in order; the rest is left for the next read. Returns how many events moved on. */
export async function readOnce(parts: ReaderParts, lanes: readonly HeldLane[]): Promise<number> {
  const tried = await tryWaiting(parts, lanes)
  const passed = await passWaiting(parts, lanes)
  const begun = new Map(lanes.map((lane) => [lane.lane, { lane, reading: lane.reading }]))
  const events = await parts.read(lanes.map(readable))
  const ready = new Set([...new Set(events.map(({ topicname }) => topicname))].filter((topic) => topic !== null && parts.topics.ready(topic)))
  const orphaned = new Set<HeldLane>()
  const obsolete: InFlight[] = []
  let taken = 0
  for (const event of events) {
    const at = begun.get(event.lane)
    if (at === undefined || orphaned.has(at.lane) || !usable(at.lane)) continue
    if (event.topicname === null) {
      if (event.obsolete === true) obsolete.push({ event, lane: at.lane })
      else orphaned.add(orphan(parts, at.lane, event))
      continue
    }
    const strand = strandOf(at.lane, event.topicname)
    if (strand.waitsFrom !== undefined) waitsToo(strand, event.position)
    else if (strand.dropped <= at.reading && !ready.has(event.topicname)) wait(at.lane, strand, event.position, 0)
    else if (strand.dropped <= at.reading) {
      add(parts, { event, ...at, strand })
      taken += 1
    }
  }
  for (const one of obsolete) parts.take(one)
  if (obsolete.length > 0) parts.obsolete(obsolete)
  return tried + passed + taken + obsolete.length
}

/**
 * Sends the first event of strands whose rest is over. Only when the broker has it, or has refused that one record, the
 * strand goes on; so a topic that stays as it is costs one record a try, and the lane is not read anew.
 */
async function tryWaiting(parts: ReaderParts, lanes: readonly HeldLane[]): Promise<number> {
  const now = performance.now()
  const due = lanes.flatMap((lane) => {
    const strand = waiting(lane).find(({ tryAt, topic }) => tryAt <= now && parts.topics.ready(topic))
    return strand?.waitsFrom === undefined ? [] : [{ lane, strand, reading: lane.reading, from: strand.waitsFrom }]
  })
  if (due.length === 0) return 0
  const events = await parts.read(due.map(({ lane, from }) => ({ ...readable(lane), floor: String(from - 1n) })), due.length)
  let taken = 0
  for (const { lane, strand, reading } of due) {
    const event = events.find((one) => one.lane === lane.lane)
    if (strand.waitsFrom === undefined || strand.dropped > reading || !usable(lane)) continue
    if (event === undefined && events.length > 0) continue // there was no room for it in this read
    if (event?.topicname !== strand.topic) {
      goOn(lane, strand) // somebody took it away; whatever else there is of the strand is found by reading
      continue
    }
    strand.waitsFrom = BigInt(event.position)
    strand.tryAt = Number.POSITIVE_INFINITY
    add(parts, { event, lane, strand, reading })
    taken += 1
  }
  return taken
}

/** Moves the beginning of the next read over what only waits. Returns 1 where there is more of that. */
async function passWaiting(parts: ReaderParts, lanes: readonly HeldLane[]): Promise<number> {
  const begun = lanes.flatMap((lane) => {
    if (lane.past === undefined) return []
    sweep(lane.past, parts.proven())
    return [{ lane, past: lane.past, reading: lane.reading }]
  })
  if (begun.length === 0) return 0
  const passed = await parts.passOver(begun.map(({ lane }) => ({
    lane: lane.lane, from: readFrom(lane), inflight: lane.inflight, topics: waiting(lane).map(({ topic }) => topic),
  })))
  const byLane = new Map(passed.map((one) => [one.lane, one]))
  let more = 0
  for (const { lane, past, reading } of begun) {
    const one = byLane.get(lane.lane)
    past.more = one?.more ?? false
    // Where something was dropped or went on meanwhile, what was asked is not what is true now.
    if (one === undefined || lane.reading !== reading) continue
    for (const { topic, position } of one.lowest) {
      const strand = lane.strands.get(topic)
      if (strand?.waitsFrom !== undefined) waitsToo(strand, position)
    }
    past.cursor = BigInt(one.upTo)
    if (past.more) more = 1
  }
  return more
}

function add(parts: ReaderParts, flying: Flying & { strand: Strand }): void {
  parts.take(flying)
  parts.topics.add(flying.strand.topic, flying)
}

/** What follows it in its lane must not go before it, and its topic is not known. */
function orphan(parts: ReaderParts, lane: HeldLane, event: PendingEvent): HeldLane {
  parts.orphans.failed(new Error(`lane ${event.lane}, position ${event.position}: the lane waits`))
  lane.blockedUntil = performance.now() + ORPHAN_REST
  return lane
}

function readable(lane: HeldLane): ReadableLane {
  return { lane: lane.lane, floor: readFrom(lane), inflight: lane.inflight }
}
