import type { Workload } from '../workload.ts'
import type { Parts, SourceChange } from './document.ts'
import { mixed, sizeOf } from './postings.ts'
import { openTable, plainly, unlike } from './table.ts'

const TABLE = 'create table torture.append (id integer primary key, even text, odd text, last integer)'
const OPEN_ROWS = 20
const MOST_UPDATES = 60

/**
 * Rows to which each update appends its number, even numbers in one column and odd ones in another. Half of the images
 * leave the other column out, so each of the two must be the newest of its own: what was lost, repeated or overtaken shows.
 */
export function append({ random, clock }: Parts): Workload {
  const table = openTable('append', clock)
  const open: string[] = []
  let lastId = 0

  function change(): SourceChange {
    if (open.length < OPEN_ROWS) {
      const id = String(lastId += 1)
      open.push(id)
      return table.insert(id, { id, even: '', odd: '', last: '0' })
    }
    const id = random.pick(open)
    const row = table.get(id)
    const number = Number(row['last']) + 1
    const [column, other] = number % 2 === 0 ? ['even', 'odd'] as const : ['odd', 'even'] as const
    if (number === MOST_UPDATES) open.splice(open.indexOf(id), 1)
    const appended = { ...row, [column]: `${row[column] ?? ''}${number},`, last: String(number) }
    return table.update(id, appended, random.chance(0.5) ? [other] : [])
  }

  return {
    name: 'append',
    tables: TABLE,
    next: () => mixed(Array.from({ length: sizeOf(random, 5) }, change), random),
    faults: (sql) => unlike(sql, 'append', 'id', table.rows, plainly('even', 'odd', 'last')),
  }
}
