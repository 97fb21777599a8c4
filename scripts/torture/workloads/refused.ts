import type { Random } from '../../demo/random.ts'
import type { Workload } from '../workload.ts'
import type { Parts, SourceChange, SourceRow } from './document.ts'
import { mixed, sizeOf } from './postings.ts'
import { openTable, plainly, unlike } from './table.ts'

const TABLE = `
create table torture.refused (
  id integer primary key, name varchar(20), amount numeric(6,2) check (amount >= 0), born date, kind text not null
)`
/** The share of this table's changes that the target refuses. */
const SHARE = 0.2
// A column that is NOT NULL and was never sent is the relation's trouble and stops it: it must have been sent before.
const BEFORE_NULLS = 40

const VALUES: Readonly<Record<string, readonly string[]>> = {
  name: ['a name that is longer than its column is', 'far too long'.repeat(200)],
  amount: ['-0.01', '-17.00', '10000.00', 'much', ''],
  born: ['2026-02-30', 'soon', ''],
}

/**
 * Changes that the target refuses, among good ones. Half of their rows get a good full image or are deleted later, which
 * settles what was refused; the others are never touched again, and stay absent or as they were.
 */
export function refused({ random, clock }: Parts): Workload {
  const table = openTable('refused', clock)
  const target = new Map<string, SourceRow>()
  const ill: string[] = []
  const lost = new Set<string>()
  let lastId = 0
  let made = 0

  const good = (id: string): SourceRow => ({
    id, name: random.chance(0.2) ? null : `name ${random.below(1_000)}`, amount: `${random.below(10_000)}.5${random.below(10)}`,
    born: random.chance(0.2) ? null : `19${10 + random.below(90)}-0${1 + random.below(9)}-1${random.below(10)}`, kind: random.pick(['a', 'b', 'NULL']),
  })
  const wellRow = (): string | undefined => {
    const id = table.any(random)
    return lost.has(id) || ill.includes(id) ? undefined : id
  }

  function refuse(): SourceChange {
    const known = random.chance(0.5) ? wellRow() : undefined
    const id = known ?? String(lastId += 1)
    if (random.chance(0.5)) ill.push(id)
    else lost.add(id)
    if (known !== undefined) return { ...table.update(id, bad(good(id), random)), refused: true }
    const row = made > BEFORE_NULLS && random.chance(0.25) ? { ...good(id), kind: null } : bad(good(id), random)
    return { ...table.insert(id, row), refused: true }
  }
  function heal(): SourceChange {
    const [id = ''] = ill.splice(random.below(ill.length), 1)
    if (random.chance(0.2)) {
      target.delete(id)
      return table.remove(id)
    }
    target.set(id, good(id))
    return table.update(id, target.get(id) ?? {})
  }
  function change(): SourceChange {
    made += 1
    if (made > 1 && random.chance(SHARE)) return refuse()
    if (ill.length > 0 && random.chance(SHARE / 2)) return heal()
    const known = made === 1 || random.chance(0.4) ? undefined : wellRow()
    const id = known ?? String(lastId += 1)
    const row = good(id)
    target.set(id, row)
    return known === undefined ? table.insert(id, row) : table.update(id, row)
  }

  return {
    name: 'refused',
    tables: TABLE,
    next: () => mixed(Array.from({ length: sizeOf(random, 4) }, change), random),
    faults: (sql) => unlike(sql, 'refused', 'id', target, plainly('name', 'amount', 'born', 'kind')),
  }
}

/** The row with a value that its column does not take. */
function bad(row: SourceRow, random: Random): SourceRow {
  const column = random.pick(Object.keys(VALUES))
  return { ...row, [column]: random.pick(VALUES[column] ?? []) }
}
