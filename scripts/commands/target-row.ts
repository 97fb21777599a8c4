import type { Change } from '../../outbox/change.ts'
import type { Sql } from '../../outbox/sql.ts'
import { ident } from '../../services/consumer/quote.ts'
import type { TargetColumn, TargetTable } from '../../services/consumer/target.ts'
import { sqlstateOf } from '../../services/runtime/slot.ts'

/** A row of the target as it stands, its values as text by column; null: there is none. */
export type TargetRow = Record<string, string | null> | null

/** Where the row of a change is to be looked for. */
export type Place = { schema: string; table: string; key: readonly string[] }

/**
 * The row that a change is of, as it stands in the target now. Undefined where it cannot be told: there is no key, or no
 * value of it that its type can read.
 */
export async function targetRow(
  run: <T>(work: (sql: Sql) => PromiseLike<T>) => Promise<T>, target: TargetTable, key: readonly string[], change: Change,
): Promise<TargetRow | undefined> {
  const columns = key.flatMap((name) => target.columns.find((column) => column.name === name) ?? [])
  const values = key.map((name) => keyValue(change, name))
  if (columns.length === 0 || columns.length < key.length || values.includes(null)) return undefined
  const where = columns.map((column, at) => equals(column, `($${at + 1}::text)::${column.type}`)).join(' and ')
  try {
    const rows = await run((sql) => sql.unsafe<{ row: Record<string, string | null> }[]>(
      `select (select json_object_agg(v.key, v.value) from json_each_text(to_json(t)) as v) as row from ${ident(target.schema)}.${ident(target.table)} t where ${where} limit 1`,
      values))
    return rows[0]?.row ?? null
  } catch (error) {
    if (sqlstateOf(error)?.startsWith('22') === true) return undefined
    throw error
  }
}

/** Of the row as the change leaves it; of a delete, as it was. Blanks at the end do not count. */
function keyValue(change: Change, name: string): string | null {
  const column = change.columns.find((one) => one.name === name)
  return (column?.new ?? column?.old)?.trimEnd() ?? null
}

function equals(column: TargetColumn, value: string): string {
  const left = `t.${ident(column.name)}`
  if (column.equality === null) return `${left}::text = ${value}::text`
  return column.equality === 'pg_catalog' ? `${left} = ${value}` : `${left} operator(${ident(column.equality)}.=) ${value}`
}

/** The columns in which a row differs, with their values before and after; a row that was not there has none. */
export function differenceOf(before: TargetRow, after: TargetRow): { column: string; before: string | null | undefined; after: string | null | undefined }[] {
  const names = [...new Set([...Object.keys(before ?? {}), ...Object.keys(after ?? {})])]
  return names.map((column) => ({ column, before: before?.[column], after: after?.[column] })).filter((one) => one.before !== one.after)
}
