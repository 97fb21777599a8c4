import type { Sql } from '../../outbox/sql.ts'

/** One column of a target table, as pg_catalog has it. `base` is the type below a domain, without its modifier. */
export type TargetColumn = {
  name: string
  type: string
  base: string
  notNull: boolean
  hasDefault: boolean
}

/** A table of the target database: its columns without the generated ones, and its primary key in key order. */
export type TargetTable = {
  schema: string
  table: string
  columns: TargetColumn[]
  primaryKey: string[] | null
}

/** Reads a target table; undefined where it does not exist. Views and foreign tables count as not existing. */
export async function readTarget(sql: Sql, schema: string, table: string): Promise<TargetTable | undefined> {
  const columns = await sql<((TargetColumn | { name: null }) & { primaryKey: string[] | null })[]>`
    select a.attname as name, format_type(a.atttypid, a.atttypmod) as type,
           (select b.typname from pg_type b where b.oid = coalesce(nullif(t.typbasetype, 0), t.oid)) as base,
           a.attnotnull as "notNull", a.atthasdef or a.attidentity <> '' as "hasDefault",
           outbox.primary_key_of(n.nspname, c.relname) as "primaryKey"
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    left join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = ''
    left join pg_type t on t.oid = a.atttypid
    where n.nspname = ${schema} and c.relname = ${table} and c.relkind in ('r', 'p')
    order by a.attnum`
  const [first] = columns
  if (first === undefined) return undefined
  return {
    schema,
    table,
    // A table without columns gives one row without a name.
    columns: columns.flatMap((column) => column.name === null ? [] : [
      { name: column.name, type: column.type, base: column.base, notNull: column.notNull, hasDefault: column.hasDefault },
    ]),
    primaryKey: first.primaryKey,
  }
}
