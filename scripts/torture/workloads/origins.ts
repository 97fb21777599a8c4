import type { Posting, Workload } from '../workload.ts'
import type { Parts, SourceChange } from './document.ts'
import { unlikeCounts } from './keyless.ts'
import { mixed, singles, sizeOf } from './postings.ts'
import { openTable, plainly, unlike } from './table.ts'

const TABLE = 'create table torture.origins (branch text, id integer, label text, n integer not null, primary key (branch, id))'
const BRANCHES = ['first', 'second'] as const
const MOST = 150
const LINES = 60

/**
 * Two sources, each a database of its own that counts from 1, so that their numbers are the same ones; they feed the same
 * tables. Of the one with a key each source has rows of its own. Into the one without a key, which the service makes, both
 * post the same changes byte by byte, with one TIME and so with one event key, and each counts. Who takes the number, or the
 * event key, for the whole name of a change leaves out one of two. That versions of one row compare across sources is not
 * promised: a relation whose rows two sources change has no owner (DESIGN: one owning origin).
 */
export function origins({ random, clock }: Parts): Workload {
  const branches = BRANCHES.map((branch) => ({ branch, rows: openTable('origins', clock), lastId: 0 }))
  const lines = openTable('origin_lines', clock)
  let labels = 0
  let lastLine = 0

  function change(own: (typeof branches)[number]): SourceChange {
    const { branch, rows } = own
    const kind = random.below(100)
    if (rows.size() < 10 || (kind < 25 && rows.size() < MOST)) {
      const id = String(own.lastId += 1)
      return rows.insert(`${branch}/${id}`, { branch, id, label: `row ${labels += 1}`, n: '0' })
    }
    const key = rows.any(random)
    const row = rows.get(key)
    if (kind < 40) return rows.remove(key)
    return rows.update(key, { ...row, label: random.chance(0.2) ? null : `row ${labels += 1}`, n: String(Number(row['n']) + 1) })
  }
  function line(): SourceChange {
    if (lines.size() < 5 || (lines.size() < LINES && random.chance(0.5))) return lines.insert(String(lastLine += 1), { text: `line ${random.below(20)}` })
    return lines.remove(lines.any(random))
  }
  const fromSecond = (postings: readonly Posting[]): Posting[] => postings.map((posting) => ({ ...posting, second: true as const }))

  return {
    name: 'origins',
    tables: TABLE,
    next() {
      if (random.chance(0.3)) {
        const same = singles([line()], random)
        return [...same, ...fromSecond(same)]
      }
      const own = random.pick(branches)
      const postings = mixed(Array.from({ length: sizeOf(random) }, () => change(own)), random)
      return own.branch === 'second' ? fromSecond(postings) : postings
    },
    async faults(sql) {
      const expected = new Map(branches.flatMap(({ rows }) => [...rows.rows]))
      const twice = [...lines.rows.values()].flatMap((row) => [row, row])
      return [
        ...await unlike(sql, 'origins', `branch || '/' || id`, expected, plainly('label', 'n')),
        ...await unlikeCounts(sql, 'origin_lines', ['text'], twice),
      ]
    },
  }
}
