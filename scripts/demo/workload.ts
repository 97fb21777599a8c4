import { type AccountRow, changedAccount, newAccount } from './account.ts'
import { type Random, seeded } from './random.ts'

/** One row change of the source. `time` is microseconds since 1970; before and after are its images. */
export type RowChange = {
  time: number
  before: AccountRow | null
  after: AccountRow | null
  /** Posted a second time to the other address, as the sender of the newer dialect does. */
  repeated: boolean
}

/** Changes of one transaction in the order they were made. `due` is when it begins, milliseconds after the start. */
export type Transaction = { due: number; changes: RowChange[] }

export type WorkloadOptions = { seed: number; changes: number; perSecond: number; begin: number }

const MOST_CHANGES = 6
const HOT_ROWS = 5

/**
 * Makes the transactions of an invented source: 1 to 6 changes each, some rows hot, rows deleted and inserted again, one
 * change in a hundred moves a key, one in a hundred is posted twice. The same seed makes the same transactions.
 *
 * `begin` is microseconds since 1970; the clock grows with every change, as a source's does for changes of one row.
 */
export function makeWorkload(options: WorkloadOptions): Transaction[] {
  const random = seeded(options.seed)
  const source = openSource(random)
  const transactions: Transaction[] = []
  let clock = options.begin
  for (let made = 0; made < options.changes;) {
    const due = (made / options.perSecond) * 1_000
    const size = Math.min(options.changes - made, random.chance(0.35) ? 1 : 1 + random.below(MOST_CHANGES))
    clock = Math.max(clock, options.begin + Math.floor(due * 1_000))
    const changes = Array.from({ length: size }, () => {
      clock += 1 + random.below(300)
      return { time: clock, ...source.change(), repeated: random.chance(0.01) }
    })
    transactions.push({ due, changes })
    made += size
  }
  return transactions
}

/** The order in which the sender posts n changes of a transaction: n-1, ..., 2, 1 and then n (informix.md 1.5). */
export function postingOrder<T>(changes: readonly T[]): T[] {
  const last = changes.slice(-1)
  return [...changes.slice(0, -1).reverse(), ...last]
}

/** The rows that must stand in the target at the end: the changes in the order of their time, whatever order they came in. */
export function modelOf(changes: readonly RowChange[]): Map<string, AccountRow> {
  const rows = new Map<string, AccountRow>()
  for (const { before, after } of changes.toSorted((a, b) => a.time - b.time)) {
    if (before !== null) rows.delete(before.id)
    if (after !== null) rows.set(after.id, after)
  }
  return rows
}

type Images = Pick<RowChange, 'before' | 'after'>

/** The source's table, with what is needed to choose from it. */
function openSource(random: Random): { change: () => Images } {
  const rows = new Map<number, AccountRow>()
  const living: number[] = []
  const deleted: number[] = []
  let lastId = 0

  function put(id: number, row: AccountRow): AccountRow {
    if (!rows.has(id)) living.push(id)
    rows.set(id, row)
    return row
  }
  function take(at: number): AccountRow {
    const id = living[at]
    const row = id === undefined ? undefined : rows.get(id)
    if (id === undefined || row === undefined) throw new Error('no such row')
    living.splice(at, 1)
    rows.delete(id)
    return row
  }
  /** An id that no row has: a new one, or at times one that was deleted. Its parity is `like`'s, which is its dialect. */
  function freeId(like: number): number {
    const again = deleted.findIndex((id) => id % 2 === like % 2 && !rows.has(id))
    if (again >= 0 && random.chance(0.3)) return deleted.splice(again, 1)[0] ?? 0
    do lastId += 1
    while (lastId % 2 !== like % 2)
    return lastId
  }

  function change(): Images {
    const kind = random.below(100)
    if (living.length < 20 || kind < 28) {
      const id = freeId(random.below(2))
      return { before: null, after: put(id, newAccount(id, random)) }
    }
    const at = random.chance(0.25) ? random.below(HOT_ROWS) : random.below(living.length)
    if (kind < 38) {
      const before = take(at)
      deleted.push(Number(before.id))
      return { before, after: null }
    }
    if (kind < 39) {
      const before = take(at)
      const id = freeId(Number(before.id))
      deleted.push(Number(before.id))
      return { before, after: put(id, { ...before, id: String(id) }) }
    }
    const id = living[at] ?? 0
    const before = rows.get(id)
    if (before === undefined) throw new Error(`row ${id} is not there`)
    return { before, after: put(id, changedAccount(before, random)) }
  }
  return { change }
}
