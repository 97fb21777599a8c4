import type { Workload } from '../workload.ts'
import type { Parts, SourceChange } from './document.ts'
import { mixed, sizeOf } from './postings.ts'
import { openTable, plainly, unlike } from './table.ts'

const TABLE = 'create table torture.partial (id integer primary key, title text, pages integer, body text, summary text)'
const MOST = 300

/**
 * Rows with two large columns that most updates leave out, as a sender does that posts what changed. What an image does
 * not carry must stay, whichever came first. A change of the key carries all: it is parked otherwise (docs/decisions/0002).
 */
export function partial({ random, clock }: Parts): Workload {
  const table = openTable('partial', clock)
  let lastId = 0
  let texts = 0

  const large = (): string => `text ${texts += 1} ${'lorem ipsum "dolor"\n'.repeat(5 + random.below(100))}`
  const title = (): string => `title ${texts += 1}`

  function change(): SourceChange {
    const kind = random.below(100)
    if (table.size() < 15 || (kind < 12 && table.size() < MOST)) {
      const id = lastId > 20 && random.chance(0.4) ? String(1 + random.below(lastId)) : ''
      const key = id === '' || table.has(id) ? String(lastId += 1) : id
      return table.insert(key, { id: key, title: title(), pages: '1', body: large(), summary: random.chance(0.3) ? null : large() })
    }
    const id = table.any(random, random.chance(0.5) ? 10 : MOST)
    const row = table.get(id)
    const counted = { ...row, pages: String(Number(row['pages']) + 1) }
    if (kind < 20) return table.remove(id)
    if (kind < 21) return table.move(id, String(lastId += 1), { ...row, id: String(lastId), title: title() })
    if (kind < 32) return table.update(id, { ...counted, body: large() })
    if (kind < 45) return table.update(id, { ...counted, body: random.chance(0.2) ? null : large() }, ['title', 'summary'])
    if (kind < 55) return table.update(id, { ...counted, summary: random.chance(0.2) ? null : large() }, ['body'])
    return table.update(id, { ...counted, title: title() }, ['body', 'summary'])
  }

  return {
    name: 'partial',
    tables: TABLE,
    next: () => mixed(Array.from({ length: sizeOf(random, 5) }, change), random),
    faults: (sql) => unlike(sql, 'partial', 'id', table.rows, plainly('title', 'pages', 'body', 'summary')),
  }
}
