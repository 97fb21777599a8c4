import type { Random } from '../../demo/random.ts'
import { postingOrder } from '../../demo/workload.ts'
import type { Posting } from '../workload.ts'
import { documentOf, type SourceChange } from './document.ts'

export const PATHS: readonly string[] = ['/events', '/events', '/kafkaevents', '/fileevents']

/** The changes of one transaction as the trigger posts them: each alone, the last but one first (informix.md 1.5). */
export function singles(changes: readonly SourceChange[], random: Random): Posting[] {
  const rows = rowsOf(changes)
  return postingOrder(changes).map((change) => posting('single', [change], rows, random))
}

/** The changes in one body, in the source's order, as a relay or a reader of spool files posts them. */
export function batch(changes: readonly SourceChange[], random: Random): Posting[] {
  return [posting(random.chance(0.5) ? 'array' : 'ndjson', changes, rowsOf(changes), random)]
}

/** One body in so many, the others as the trigger posts them. */
export function mixed(changes: readonly SourceChange[], random: Random, batches = 0.15): Posting[] {
  return changes.length > 1 && random.chance(batches) ? batch(changes, random) : singles(changes, random)
}

/** How many changes a transaction of the source makes. */
export function sizeOf(random: Random, most = 6): number {
  return random.chance(0.35) ? 1 : 1 + random.below(most)
}

/** A transaction's locks are held until its last post is answered, so each of its posts names all of its rows. */
function rowsOf(changes: readonly SourceChange[]): string[] {
  return [...new Set(changes.flatMap(({ rows }) => rows))]
}

function posting(form: Posting['form'], changes: readonly SourceChange[], rows: readonly string[], random: Random): Posting {
  return {
    path: random.pick(PATHS),
    documents: changes.map((change) => documentOf(change, random)),
    form,
    changes: changes.map(({ table, refused = false }) => ({ table, refused })),
    rows,
    times: 1,
  }
}
