import { advanceSettled, openFloor } from '../../outbox/floor.ts'
import type { Slot } from '../runtime/slot.ts'
import type { HeldLane } from './lanes.ts'

/** The watermark of the audit views moves every so many rounds. */
const SETTLE_EVERY = 5

/**
 * What a relay does about once a second off the hot path: raises the floors of its lanes and, now and then, the
 * watermark of the audit views. A slot of its own, since nobody waits for it.
 */
export function upkeep(slot: Slot, holder: string, lanes: ReadonlyMap<number, HeldLane>): () => Promise<void> {
  const floor = openFloor((work) => slot.run(work))
  let round = 0
  return async () => {
    for (const { lane, floor: raised } of await floor.raise(holder, [...lanes.values()])) {
      const held = lanes.get(lane)
      if (held !== undefined) held.floor = raised
    }
    round += 1
    if (round % SETTLE_EVERY === 0) await slot.run(advanceSettled)
  }
}
