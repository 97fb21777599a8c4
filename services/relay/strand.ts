import type { HeldLane } from './lanes.ts'

/**
 * The events of one lane for one topic. Order is kept within a strand and not between them, so that a topic which cannot
 * be written holds up nobody else.
 *
 * `dropped` is the lane's `reading` when an event of the strand was last dropped, or the strand went on: what was read
 * before that and is not sent yet is stale. While the strand waits `waitsFrom` is its lowest position known to wait, and
 * at `tryAt` (of the monotonic clock; Infinity: it is being tried) its first event is tried alone.
 */
export type Strand = { topic: string; dropped: number; waitsFrom: bigint | undefined; tryAt: number }

/**
 * How far a lane with waiting strands is read: up to `cursor` everything was seen, and waits or is in flight. That is
 * proven only up to `sure`; what commits late between the two is found when the next sweep begins there again.
 * `horizon` is what was proven when this sweep began (see openFloor), `began` when; `more`: it has not come to the end.
 */
export type Past = { cursor: bigint; sure: bigint; horizon: bigint; began: number; more: boolean }

/** Sweeps begin this far apart, in milliseconds: proofs come once a second. The second is for one that does not end. */
const SWEEP_EVERY = 1_000
const SWEEP_LONGEST = 10_000

export function strandOf(lane: HeldLane, topic: string): Strand {
  const known = lane.strands.get(topic)
  if (known !== undefined) return known
  const made = { topic, dropped: 0, waitsFrom: undefined, tryAt: 0 }
  lane.strands.set(topic, made)
  return made
}

/** Lets the strand wait, from this position on at the latest, until it is tried. */
export function wait(lane: HeldLane, strand: Strand, position: string, tryAt: number): void {
  strand.tryAt = tryAt
  waitsToo(strand, position)
  const floor = BigInt(lane.floor)
  lane.past ??= { cursor: floor, sure: floor, horizon: 0n, began: Number.NEGATIVE_INFINITY, more: false }
}

/** Another event of a strand that waits was seen. */
export function waitsToo(strand: Strand, position: string): void {
  const at = BigInt(position)
  if (strand.waitsFrom === undefined || at < strand.waitsFrom) strand.waitsFrom = at
}

/** An event that was in flight and is to be read again: what was read before this must not go before it. */
export function drop(lane: HeldLane, strand: Strand, position: string, tryAt: number): void {
  lane.reading += 1
  strand.dropped = lane.reading
  wait(lane, strand, position, tryAt)
}

/** The topic takes records again: the strand is read from its first event on, by reads that begin after this. */
export function goOn(lane: HeldLane, strand: Strand): void {
  if (strand.waitsFrom === undefined) return
  const before = strand.waitsFrom - 1n
  strand.waitsFrom = undefined
  lane.reading += 1
  strand.dropped = lane.reading
  if (lane.past === undefined) return
  if (waiting(lane).length === 0) lane.past = undefined
  else {
    lane.past.cursor = least(lane.past.cursor, before)
    lane.past.sure = least(lane.past.sure, before)
  }
}

export function waiting(lane: HeldLane): Strand[] {
  return [...lane.strands.values()].filter(({ waitsFrom }) => waitsFrom !== undefined)
}

/** Where the next read of the lane begins. */
export function readFrom(lane: HeldLane): string {
  if (lane.past === undefined) return lane.floor
  const floor = BigInt(lane.floor)
  return String(lane.past.cursor > floor ? lane.past.cursor : floor)
}

/** Begins a new sweep where it is time. `proven` is what is proven now. */
export function sweep(past: Past, proven: string): void {
  const now = performance.now()
  const age = now - past.began
  if (age < SWEEP_EVERY || (past.more && age < SWEEP_LONGEST)) return
  const sure = least(past.cursor, past.horizon)
  if (sure > past.sure) past.sure = sure
  past.cursor = past.sure
  past.horizon = BigInt(proven)
  past.began = now
}

function least(one: bigint, other: bigint): bigint {
  return one < other ? one : other
}
