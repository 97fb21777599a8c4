import type { Workload } from '../workload.ts'
import type { Parts, SourceChange } from './document.ts'
import { mixed, sizeOf } from './postings.ts'
import { openTable, plainly, unlike } from './table.ts'

const TABLE = 'create table torture.skew (id integer primary key, n integer not null, label text)'
const HOT = 10
const ROWS = 500

/** Four updates of five are of ten rows: a few lanes and row locks have nearly all of the work. */
export function skew({ random, clock }: Parts): Workload {
  const table = openTable('skew', clock)

  function change(): SourceChange {
    if (table.size() < HOT || (table.size() < ROWS && random.chance(0.1))) {
      const id = String(table.size() + 1)
      return table.insert(id, { id, n: '0', label: null })
    }
    const id = table.any(random, random.chance(0.8) ? HOT : ROWS)
    const number = String(Number(table.get(id)['n']) + 1)
    return table.update(id, { id, n: number, label: random.chance(0.1) ? null : `update ${number} of ${id}` })
  }

  return {
    name: 'skew',
    tables: TABLE,
    next: () => mixed(Array.from({ length: sizeOf(random, 4) }, change), random),
    faults: (sql) => unlike(sql, 'skew', 'id', table.rows, plainly('n', 'label')),
  }
}
