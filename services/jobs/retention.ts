import { type Pruned, prunePair } from '../../outbox/retention.ts'
import { openSlot } from '../runtime/slot.ts'

export type PruneJob = {
  databaseUrl: string
  targetDatabaseUrl: string | undefined
  /** Milliseconds, above 0. */
  horizon: number
  /** Milliseconds: CLOCK_TOLERANCE. */
  grace: number
  signal?: AbortSignal
}

/** One pass over the database, or over both: what the listener does by itself, now. Resolves with a report for each. */
export async function pruneNow({ databaseUrl, targetDatabaseUrl, ...options }: PruneJob): Promise<Pruned[]> {
  const slots = [databaseUrl, targetDatabaseUrl].filter((url) => url !== undefined).map((url) => openSlot({ url, name: 'prune', deadline: 120_000 }))
  const [first, target] = slots
  try {
    return first === undefined ? [] : await prunePair(first.run, target?.run, options)
  } finally {
    await Promise.all(slots.map((slot) => slot.close()))
  }
}
