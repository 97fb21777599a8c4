import type { Slot } from '../runtime/slot.ts'

/** Connections that are lent, each to one call at a time. */
export type Lending = {
  /** Resolves with a free one; who finds none waits for its turn. */
  take: () => Promise<Slot>
  give: (slot: Slot) => void
}

/** Does something with a free slot, and gives it back. */
export async function lent<T>(slots: Lending, work: (slot: Slot) => Promise<T>): Promise<T> {
  const slot = await slots.take()
  try {
    return await work(slot)
  } finally {
    slots.give(slot)
  }
}

/**
 * Lends slots. There are as many as calls of the apply at once, and others may want one too: a look at open chunks, or a
 * call of the consumer before this one that still waits for the target. Two calls on one slot would share its deadline.
 */
export function openLending(slots: readonly Slot[]): Lending {
  const free = [...slots]
  const waiting: ((slot: Slot) => void)[] = []
  return {
    take: () => new Promise((resolve) => {
      const slot = free.pop()
      if (slot === undefined) waiting.push(resolve)
      else resolve(slot)
    }),
    give(slot) {
      const next = waiting.shift()
      if (next === undefined) free.push(slot)
      else next(slot)
    },
  }
}
