import { applyArrivals, applySet } from './apply.ts'
import type { ApplyParts, Holding, Outcome } from './apply.ts'
import { setAside } from './element.ts'
import type { Arrival } from './element.ts'
import { kindOf } from './failure.ts'
import type { Lending } from './lending.ts'
import { candidatesOf } from './probe.ts'

/** What one partition has to apply in one call; `bytes` is about how much. */
export type Batch = { holding: Holding; arrivals: readonly Arrival[]; nextOffset: bigint; bytes: number }

/** Resolves when the batch is applied and its position stored, as applyArrivals does. */
export type Offer = (batch: Batch) => Promise<Outcome>

/** One call takes at most this much; a single batch may have more. */
const MOST = { changes: 1_000, bytes: 8 << 20 }
/** So many changes are worth a call of their own while others are under way. */
const WORTH_IT = 200
/** What is worth less waits for those, in milliseconds, though not longer: one of them may wait for a lock. */
const PATIENCE_MS = 5
/** After a batch that needed more than one plain call partitions go one by one for so long, in milliseconds. */
const APART_MS = 1_000

type Waiting = Batch & { resolve: (outcome: Outcome) => void; reject: (error: unknown) => void }

/**
 * Applies what the partitions hand over, at most as many calls at once as there are slots. What several hand over in the
 * same moment, or while calls are under way, goes in one call: at a thousand changes a second a call has some ten of them,
 * and what a call costs hardly depends on that.
 *
 * Only what is plain goes together. Whatever else there is, a refusal, a stopped table, a partition that is another's,
 * sends each partition on its own way; what was applied by then is recognised.
 */
export function openRounds(slots: Lending, atOnce: number, parts: Omit<ApplyParts, 'slot'>): Offer {
  const waiting: Waiting[] = []
  let busy = 0
  let planned = false
  let timer: NodeJS.Timeout | undefined
  let apartUntil = 0

  function cut(): Waiting[] {
    const size = waiting.findIndex((_, at) => at > 0 && (performance.now() < apartUntil || !fitTogether(waiting.slice(0, at + 1))))
    return waiting.splice(0, size === -1 ? waiting.length : size)
  }

  async function round(batches: readonly Waiting[]): Promise<void> {
    const slot = await slots.take()
    try {
      const together = batches.length > 1 && await applyJointly({ ...parts, slot }, batches)
      if (!together && batches.length > 1) apartUntil = performance.now() + APART_MS
      for (const batch of batches) {
        if (together) batch.resolve('OK')
        else await applyArrivals({ ...parts, slot }, batch.holding, batch.arrivals, batch.nextOffset).then(batch.resolve, batch.reject)
      }
    } catch (error) {
      apartUntil = performance.now() + APART_MS
      for (const { reject } of batches) reject(error)
    } finally {
      slots.give(slot)
    }
  }

  function flush(): void {
    planned = false
    clearTimeout(timer)
    while (waiting.length > 0 && busy < atOnce) {
      busy += 1
      void round(cut()).finally(() => {
        busy -= 1
        if (busy === 0) flush() // nobody is left whom to wait for
        else plan()
      })
    }
  }

  function plan(): void {
    if (planned || waiting.length === 0 || busy >= atOnce) return
    planned = true
    const changes = waiting.reduce((sum, { arrivals }) => sum + arrivals.length, 0)
    if (busy === 0 || changes >= WORTH_IT) setImmediate(flush) // behind all that this turn hands over
    else timer = setTimeout(flush, PATIENCE_MS)
  }

  return (batch) => new Promise((resolve, reject) => {
    waiting.push({ ...batch, resolve, reject })
    plan()
  })
}

function fitTogether(batches: readonly Batch[]): boolean {
  const sum = (of: (batch: Batch) => number): number => batches.reduce((total, batch) => total + of(batch), 0)
  return sum(({ arrivals }) => arrivals.length) <= MOST.changes && sum(({ bytes }) => bytes) <= MOST.bytes
}

/** False where something of it is not plain. Throws what the environment threw. */
async function applyJointly(parts: ApplyParts, batches: readonly Batch[]): Promise<boolean> {
  const partitions = new Map(batches.flatMap(({ holding, arrivals }) => arrivals.map((arrival) => [arrival, holding.partition])))
  const groups = [...Map.groupBy(partitions.keys(), ({ change }) => `${change.schema}\u001f${change.table}`).values()]
  try {
    for (const [at, group] of groups.entries()) {
      const stands = batches.map(({ holding, arrivals, nextOffset }) => (
        { holding, end: at === groups.length - 1 ? { nextOffset, last: arrivals.at(-1) } : undefined }))
      if (!await applyPlain(parts, stands, group, (arrival) => partitions.get(arrival) ?? 0)) return false
    }
    return groups.length > 0
  } catch (error) {
    if (kindOf(error) === 'environment') throw error
    return false // found again, and seen to, by the partition it is of
  }
}

async function applyPlain(
  parts: ApplyParts, stands: Parameters<typeof applySet>[1], arrivals: readonly Arrival[], liesIn: (arrival: Arrival) => number,
): Promise<boolean> {
  const prepared = await parts.slot.run((sql) => parts.relations.prepare(sql, stands[0]!.holding.topic, arrivals))
  const plain = (arrival: Arrival): boolean => arrival.identity.attempt === 0 && setAside(arrival, prepared.shape, parts.clockTolerance) === undefined
  if (prepared.wary > 0 || !arrivals.every(plain)) return false
  const { outcome, held } = await applySet(parts, stands, prepared, candidatesOf(arrivals, prepared.shape), liesIn)
  return outcome === 'OK' && held.length === 0
}
