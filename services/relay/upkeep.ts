import { advanceSettled, openFloor } from '../../outbox/floor.ts'
import type { Sql } from '../../outbox/sql.ts'
import { endWaits } from '../../outbox/step-back.ts'
import type { Slot } from '../runtime/slot.ts'
import type { HeldLane } from './lanes.ts'

/** So many retries that are due go into the outbox at once. */
const MOST_DUE = 1_000

/** What a relay does about once a second off the hot path, and what it knows by that. */
export type Upkeep = { floors: () => Promise<void>; proven: () => string; retries: () => Promise<void>; steppedBack: () => void }

/**
 * `floors` raises the floors of the lanes and the watermark of the audit views. `retries` puts the parked
 * changes that are due into the outbox, `onDue` telling that there were some; after `steppedBack`, which says that the clock
 * of the database did, all that was to be due some time is. Slots of their own, since nobody waits for
 * either and neither for the other.
 */
export function upkeep(parts: {
  slots: { floors: Slot; retries: Slot }
  holder: string
  lanes: ReadonlyMap<number, HeldLane>
  onDue: () => void
}): Upkeep {
  const { slots, holder, lanes } = parts
  const floor = openFloor((work) => slots.floors.run(work))
  let waitsLeft = false
  return {
    async floors() {
      for (const { lane, floor: raised } of await floor.raise(holder, [...lanes.values()])) {
        const held = lanes.get(lane)
        if (held === undefined) continue
        if (BigInt(raised) < BigInt(held.floor)) held.past = undefined // the sequence went back, and numbers come again
        held.floor = raised
      }
      await slots.floors.run(advanceSettled) // as often as this: it takes 3 us a change, and live changes would wait for many
    },
    proven: floor.proven,
    steppedBack() { waitsLeft = true },
    async retries() {
      if (waitsLeft) {
        waitsLeft = false // before, or a step that is told meanwhile is forgotten
        await slots.retries.run(endWaits).catch((error: unknown) => { waitsLeft = true; throw error })
      }
      let moved: number
      do {
        moved = await slots.retries.run((sql) => publishDue(sql, MOST_DUE))
        if (moved > 0) parts.onDue()
      } while (moved === MOST_DUE)
    },
  }
}

/** Puts at most `most` parked changes whose retry is due into the outbox, and returns how many. */
async function publishDue(sql: Sql, most: number): Promise<number> {
  const [row] = await sql<{ moved: number }[]>`select inbox.publish_due(${most}::integer) as moved`
  return row?.moved ?? 0
}
