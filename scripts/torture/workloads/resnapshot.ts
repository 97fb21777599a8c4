import type { Posting, Workload } from '../workload.ts'
import type { Parts, SourceChange } from './document.ts'
import { batch, mixed, singles, sizeOf } from './postings.ts'
import { openTable, plainly, unlike } from './table.ts'

const TABLE = 'create table torture.resnapshot (id integer primary key, label text, body text, n integer)'
const FEWEST = 20
const MOST = 120
/** One transaction in so many is a loss of some changes and the unload that makes it good. */
const LOSSES = 0.025
const MOST_LOST = 25
/** Rows in one body of an unload. */
const PIECE = 20

/**
 * A source that loses changes now and then, since its trigger posts once and never again, and then has the whole table
 * unloaded. Each row of an unload is an insert with the moment at which it began; each key that went away in the lost span,
 * as who compares the keys finds, is a delete of that moment. Live changes go before the unload, between its parts and behind
 * it: the newer ones stay, and columns that they left out get what the unload has (docs/decisions/0003).
 */
export function resnapshot({ random, clock }: Parts): Workload {
  const table = openTable('resnapshot', clock)
  let lastId = 0
  let texts = 0

  const text = (what: string): string => `${what} ${texts += 1}`

  function change(): SourceChange {
    const kind = random.below(100)
    if (table.size() < FEWEST || (kind < 15 && table.size() < MOST)) {
      const again = String(1 + random.below(lastId + 1))
      const id = random.chance(0.4) && !table.has(again) ? again : String(lastId + 1)
      lastId = Math.max(lastId, Number(id))
      return table.insert(id, { id, label: text('row'), body: random.chance(0.2) ? null : text('body'), n: '0' })
    }
    const id = table.any(random)
    const row = table.get(id)
    if (kind < 28) return table.remove(id)
    if (kind < 30) return table.move(id, String(lastId += 1), { ...row, id: String(lastId) })
    const counted = { ...row, n: String(Number(row['n']) + 1) }
    if (kind < 50) return table.update(id, { ...counted, body: random.chance(0.2) ? null : text('body') }, ['label'])
    if (kind < 70) return table.update(id, { ...counted, label: text('row') }, ['body'])
    return table.update(id, { ...counted, label: text('row'), body: text('body') })
  }
  const live = (): Posting[] => mixed(Array.from({ length: sizeOf(random, 4) }, change), random)

  function lossAndUnload(): Posting[] {
    const before = new Set(table.rows.keys())
    for (let lost = 1 + random.below(MOST_LOST); lost > 0; lost -= 1) change()
    const early = live()
    const time = clock()
    const unloaded = [...table.rows].map(([id, row]): SourceChange => ({ table: 'resnapshot', time, before: null, after: row, rows: [id] }))
    const gone = [...before].filter((id) => !table.has(id)).map((id): SourceChange => ({ table: 'resnapshot', time, before: { id }, after: null, rows: [id] }))
    const parts = pieces([...unloaded, ...gone]).map((piece) => (piece.length > 1 ? batch(piece, random) : singles(piece, random)))
    // Nothing waits for an unload: others change its rows while it goes on.
    return [early, ...parts.flatMap((part) => [part, live()])].flat().map((posting) => ({ ...posting, rows: [] }))
  }

  return {
    name: 'resnapshot',
    tables: TABLE,
    next: () => (table.size() >= FEWEST && random.chance(LOSSES) ? lossAndUnload() : live()),
    faults: (sql) => unlike(sql, 'resnapshot', 'id', table.rows, plainly('label', 'body', 'n')),
  }
}

function pieces<T>(list: readonly T[]): T[][] {
  return Array.from({ length: Math.ceil(list.length / PIECE) }, (_, at) => list.slice(at * PIECE, (at + 1) * PIECE))
}
