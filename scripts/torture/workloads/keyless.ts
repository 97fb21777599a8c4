import type { Sql } from 'postgres'
import type { Random } from '../../demo/random.ts'
import type { Workload } from '../workload.ts'
import type { Parts, SourceChange, SourceRow } from './document.ts'
import { mixed, sizeOf } from './postings.ts'
import { openTable } from './table.ts'

const MOST = 400
const SHOWN = 5
const VALUES = ['a', 'b', 'Ç', 'two\nlines', '4" screen', '']

/**
 * A table that the service makes itself, without a key and with many equal rows; nulls too, so its columns come to be one
 * by one. An update carries the whole row: what does not is parked (outbox/SPEC.md, I8). Blanks at the end are left
 * out, since Informix ignores them and the image of a row does too.
 */
export function keyless({ random, clock }: Parts): Workload {
  const table = openTable('keyless', clock)
  let rowIds = 0

  function change(): SourceChange {
    const kind = random.below(100)
    if (table.size() < 10 || (kind < 40 && table.size() < MOST)) return table.insert(String(rowIds += 1), someRow(random))
    const rowId = table.any(random)
    if (kind < 65) return table.remove(rowId)
    return table.update(rowId, random.chance(0.1) ? someRow(random) : { ...table.get(rowId), [random.pick(['x', 'y', 'z'])]: value(random) })
  }

  return {
    name: 'keyless',
    tables: '',
    next: () => mixed(Array.from({ length: sizeOf(random) }, change), random),
    faults: (sql) => unlikeCounts(sql, 'keyless', ['x', 'y', 'z'], [...table.rows.values()]),
  }
}

function someRow(random: Random): SourceRow {
  return { x: value(random), y: value(random), z: value(random) }
}

function value(random: Random): string | null {
  return random.chance(0.25) ? null : random.pick(VALUES)
}

/** Rows of a table without a key that are there more or less often than they must be. A column that never had a value need not be there. */
export async function unlikeCounts(sql: Sql, table: string, columns: readonly string[], expected: readonly SourceRow[]): Promise<string[]> {
  const counts = new Map<string, number>()
  for (const row of expected) {
    const image = JSON.stringify(columns.map((column) => row[column] ?? null))
    counts.set(image, (counts.get(image) ?? 0) - 1)
  }
  const [there] = await sql<{ is: boolean }[]>`select to_regclass(${`torture.${table}`}) is not null as is`
  const found = there?.is === true
    ? await sql<{ image: (string | null)[]; copies: number }[]>`
      select (select jsonb_agg(to_jsonb(t) ->> c.name order by c.place) from unnest(${columns}::text[]) with ordinality as c(name, place)) as image, count(*)::integer as copies
      from ${sql(`torture.${table}`)} t group by 1`
    : []
  for (const { image: values, copies } of found) {
    const image = JSON.stringify(values)
    counts.set(image, (counts.get(image) ?? 0) + copies)
  }
  const wrong = [...counts].filter(([, surplus]) => surplus !== 0)
  return wrong.slice(0, SHOWN).map(([image, surplus]) => `${table}: the row ${image} is there ${Math.abs(surplus)} times too ${surplus > 0 ? 'often' : 'seldom'}`)
}
