import type { Sql } from 'postgres'
import type { Random } from '../../demo/random.ts'
import type { SourceClock } from '../workload.ts'
import type { SourceChange, SourceRow } from './document.ts'

/** A table of the source with a key: what it holds, and the changes made to it. Keys are told apart by their text. */
export type SourceTable = {
  size: () => number
  has: (key: string) => boolean
  get: (key: string) => SourceRow
  /** The key of any row, or of any of the first `among` (the table has one at least). */
  any: (random: Random, among?: number) => string
  insert: (key: string, row: SourceRow) => SourceChange
  /** `without`: columns that did not change and are left out of the image. */
  update: (key: string, row: SourceRow, without?: readonly string[]) => SourceChange
  /** An update that gives the row another key, which no row has. */
  move: (from: string, to: string, row: SourceRow) => SourceChange
  remove: (key: string) => SourceChange
  rows: ReadonlyMap<string, SourceRow>
}

/** An empty table. `rowName` is the name under which transactions wait for a row, where it is not its key. */
export function openTable(table: string, clock: SourceClock, rowName = (key: string): string => `${table}/${key}`): SourceTable {
  const rows = new Map<string, SourceRow>()
  const keys: string[] = []
  const places = new Map<string, number>()

  function put(key: string, row: SourceRow): void {
    if (!rows.has(key)) places.set(key, keys.push(key) - 1)
    rows.set(key, row)
  }
  function take(key: string): void {
    const place = places.get(key)
    const last = keys.pop()
    if (place === undefined || last === undefined) throw new Error(`no row ${key} in ${table}`)
    if (last !== key) {
      keys[place] = last
      places.set(last, place)
    }
    places.delete(key)
    rows.delete(key)
  }
  function get(key: string): SourceRow {
    const row = rows.get(key)
    if (row === undefined) throw new Error(`no row ${key} in ${table}`)
    return row
  }
  const change = (before: SourceRow | null, after: SourceRow | null, ...touched: string[]): SourceChange =>
    ({ table, time: clock(), before, after, rows: touched.map(rowName) })

  return {
    rows,
    size: () => rows.size,
    has: (key) => rows.has(key),
    get,
    any: (random, among = keys.length) => keys[random.below(Math.min(among, keys.length))] ?? '',
    insert(key, row) {
      if (rows.has(key)) throw new Error(`${table} has a row ${key}`)
      put(key, row)
      return change(null, row, key)
    },
    update(key, row, without = []) {
      const before = get(key)
      put(key, row)
      return { ...change(before, row, key), without }
    },
    move(from, to, row) {
      const before = get(from)
      if (rows.has(to)) throw new Error(`${table} has a row ${to}`)
      take(from)
      put(to, row)
      return change(before, row, from, to)
    },
    remove(key) {
      const before = get(key)
      take(key)
      return change(before, null, key)
    },
  }
}

const SHOWN = 5
const WIDTH = 80

/**
 * The rows of a target table that are not what is expected, by key and byte by byte, as Postgres prints them. `key` is
 * the expression that makes the expected key's text of a row; `expressions` stand for columns that are not compared as they are.
 */
export async function unlike(
  sql: Sql, table: string, key: string, expected: ReadonlyMap<string, SourceRow>, expressions: Readonly<Record<string, string>>,
): Promise<string[]> {
  const columns = Object.entries(expressions)
  const found = await sql.unsafe<Record<string, string | null>[]>(
    `select (${key})::text as "~key", ${columns.map(([name, text]) => `(${text})::text as "${name}"`).join(', ')} from torture.${table}`)
  const faults: string[] = []
  const seen = new Set<string>()
  for (const row of found) {
    const name = row['~key'] ?? ''
    const wanted = expected.get(name)
    if (wanted === undefined || seen.has(name)) faults.push(`${table} ${name} is there and must not be`)
    else for (const [column] of columns) if (row[column] !== wanted[column]) faults.push(`${table} ${name}: ${column} is ${shown(row[column])}, expected ${shown(wanted[column])}`)
    seen.add(name)
  }
  for (const name of expected.keys()) if (!seen.has(name)) faults.push(`${table} ${name} is missing`)
  return faults.length > SHOWN ? [...faults.slice(0, SHOWN), `${table}: ${faults.length - SHOWN} further differences`] : faults
}

/** Columns that are compared as Postgres prints them. */
export function plainly(...names: string[]): Record<string, string> {
  return Object.fromEntries(names.map((name) => [name, name]))
}

/** From where two long values differ is not told: enough to find the row. */
function shown(value: string | null | undefined): string {
  const text = JSON.stringify(value ?? null)
  return text.length > WIDTH ? `${text.slice(0, WIDTH / 2)}…${text.slice(-WIDTH / 2)} (${text.length})` : text
}
