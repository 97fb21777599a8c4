import { announce, claimLanes, releaseLanes, renewLanes, withdraw } from '../../outbox/claim.ts'
import type { Claim } from '../../outbox/claim.ts'
import { endLeases } from '../../outbox/step-back.ts'
import type { Log } from '../runtime/log.ts'
import type { Slot } from '../runtime/slot.ts'
import type { Past, Strand } from './strand.ts'

/** A lane outlives its relay by this many milliseconds at most. */
export const LEASE = 2_000
/** Four renewals a lease: three may fail before a lane is lost. */
export const RENEW_EVERY = 500

/**
 * A lane this relay holds, and what it has of it.
 *
 * `deadline` and `blockedUntil` are of the monotonic clock. `inflight` are the positions read and not yet acked.
 * `reading` grows whenever an event of the lane is dropped: what was read of the same strand before that, and is not sent
 * yet, would then go before the dropped one, so it is dropped too. `strands` are by topic; `past` is there while one waits.
 */
export type HeldLane = Claim & {
  deadline: number
  blockedUntil: number
  inflight: Set<string>
  reading: number
  strands: Map<string, Strand>
  past: Past | undefined
  /** Above the fair share: nothing more is read, and the lane is released when nothing is in flight. */
  leaving: boolean
  lost: boolean
}

/** Events of the lane may be sent: the claim is there, and nobody else can have it before the deadline. */
export function usable(lane: HeldLane): boolean {
  return !lane.lost && performance.now() < lane.deadline
}

/** Forgets a lane that somebody else has or may have. */
export function lose(lanes: Map<number, HeldLane>, lane: HeldLane): void {
  lane.lost = true
  if (lanes.get(lane.lane) === lane) lanes.delete(lane.lane)
}

export function hold(claim: Claim, deadline: number): HeldLane {
  return { ...claim, deadline, blockedUntil: 0, inflight: new Set(), reading: 0, strands: new Map(), past: undefined, leaving: false, lost: false }
}

/** The lanes of one relay and what keeps them: `tick` twice a second and more, `giveBack` at the end. */
export type Lanes = { held: Map<number, HeldLane>; tick: () => Promise<void>; giveBack: () => Promise<void> }

/** Claims a fair share of the lanes through a slot of its own, so that no slow statement delays a renewal. */
export function openLanes(parts: { slot: Slot; holder: string; onClaim: () => void; onStepBack: () => void; signal: AbortSignal; log: Log }): Lanes {
  const { slot, holder, log } = parts
  const held = new Map<number, HeldLane>()
  let leasesLeft = false // of the clock before the database's stepped back

  async function renew(): Promise<void> {
    const before = [...held.values()]
    if (before.length === 0) return
    // Taken before sending: the server counts the lease from a later moment, so this deadline is the earlier one.
    const deadline = performance.now() + LEASE
    const still = new Set(await slot.run((sql) => renewLanes(sql, holder, before, LEASE)))
    const lost = before.filter(({ lane }) => !still.has(lane))
    for (const lane of before) if (still.has(lane.lane)) lane.deadline = deadline
    for (const lane of lost) lose(held, lane)
    if (lost.length > 0) log.warn({ lanes: lost.map(({ lane }) => lane) }, 'lanes lost: the lease ran out and another relay has them')
  }

  async function leave(most: number): Promise<void> {
    // The idle ones first: they can be released at once.
    const staying = [...held.values()].filter(({ leaving }) => !leaving).sort((a, b) => a.inflight.size - b.inflight.size)
    for (const lane of staying.slice(0, Math.max(0, staying.length - most))) lane.leaving = true
    await release([...held.values()].filter(({ leaving, inflight }) => leaving && inflight.size === 0))
  }

  async function release(lanes: HeldLane[]): Promise<void> {
    if (lanes.length === 0) return
    for (const lane of lanes) lose(held, lane)
    await slot.run((sql) => releaseLanes(sql, holder, lanes))
  }

  async function claim(most: number): Promise<void> {
    if (most <= 0 || parts.signal.aborted) return
    const deadline = performance.now() + LEASE
    const claims = await slot.run((sql) => claimLanes(sql, holder, most, LEASE))
    for (const one of claims) {
      const old = held.get(one.lane)
      if (old !== undefined) lose(held, old)
      held.set(one.lane, hold(one, deadline))
    }
    if (claims.length === 0) return
    log.info({ lanes: claims.map(({ lane }) => lane), held: held.size }, 'lanes claimed')
    parts.onClaim()
  }

  return {
    held,
    async tick() {
      await renew()
      const { lanes, living, back } = await slot.run((sql) => announce(sql, holder, LEASE))
      if (back) log.warn('the clock of the database has stepped back; what waited by the clock before is due now')
      if (back) parts.onStepBack()
      leasesLeft ||= back
      if (leasesLeft) leasesLeft = await slot.run((sql) => endLeases(sql, LEASE))
      const share = Math.ceil(lanes / living)
      await leave(share)
      await claim(share - held.size)
    },
    async giveBack() {
      await release([...held.values()])
      await slot.run((sql) => withdraw(sql, holder))
    },
  }
}
