import type { Sql } from '../../outbox/sql.ts'

/** One column of a target table, as pg_catalog has it. `base` is the type below a domain, without its modifier. */
export type TargetColumn = {
  name: string
  type: string
  base: string
  notNull: boolean
  hasDefault: boolean
  /** generated always as identity. */
  identityAlways: boolean
  /** The schema of the type's equality operator, null where it has none (json, xml, point, arrays of such). */
  equality: string | null
}

/** A CHECK of a table: its expression names the table's columns bare. */
export type TargetCheck = { name: string; expression: string; columns: string[] }

/** A table of the target database: its columns without the generated ones, and its primary key in key order. */
export type TargetTable = {
  schema: string
  table: string
  columns: TargetColumn[]
  checks: TargetCheck[]
  primaryKey: string[] | null
  /** Columns that Postgres computes: known, and never written. */
  generated: string[]
  /** Compared by inbox.apply, so that statements of a table that was altered are not used. */
  shape: string | null
}

/** Reads a target table; undefined where it does not exist. Views and foreign tables count as not existing. */
export async function readTarget(sql: Sql, schema: string, table: string): Promise<TargetTable | undefined> {
  const columns = await sql<((TargetColumn | { name: null }) & { generated: boolean; checks: TargetCheck[] | null; primaryKey: string[] | null; shape: string | null })[]>`
    select a.attname as name, format_type(a.atttypid, a.atttypmod) as type,
           b.typname as base, a.attnotnull as "notNull", a.atthasdef or a.attidentity <> '' as "hasDefault",
           a.attidentity = 'a' as "identityAlways", a.attgenerated <> '' as generated,
           case when b.typnamespace = 'pg_catalog'::regnamespace or b.typtype in ('e', 'r', 'm') then
             case when b.typname in ('json', 'xml', 'point', 'line', 'lseg', 'box', 'path', 'polygon', 'circle')
               or (select e.typname in ('json', 'xml', 'point', 'line', 'lseg', 'box', 'path', 'polygon', 'circle') or e.typnamespace <> 'pg_catalog'::regnamespace
                   from pg_type e where e.oid = b.typelem and b.typcategory = 'A') then null else 'pg_catalog' end
           else (select o.oprnamespace::regnamespace::text from pg_operator o where o.oprname = '=' and o.oprleft = b.oid and o.oprright = b.oid limit 1)
           end as equality,
           case when row_number() over (order by a.attnum) = 1 then inbox.checks_of(n.nspname, c.relname) end as checks,
           outbox.primary_key_of(n.nspname, c.relname) as "primaryKey",
           inbox.shape_of(n.nspname, c.relname) as shape
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    left join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    left join pg_type t on t.oid = a.atttypid
    left join lateral (
      with recursive below as (
        select t.oid as of, t.typbasetype as next union all select d.oid, d.typbasetype from below join pg_type d on d.oid = below.next
      )
      select e.* from below join pg_type e on e.oid = below.of where below.next = 0
    ) b on true
    where n.nspname = ${schema} and c.relname = ${table} and c.relkind in ('r', 'p')
    order by a.attnum`
  const [first] = columns
  if (first === undefined) return undefined
  return {
    schema,
    table,
    // A table without columns gives one row without a name.
    columns: columns.flatMap(({ generated, checks: _checks, primaryKey: _primaryKey, shape: _shape, ...column }) => column.name === null || generated ? [] : [column]),
    generated: columns.flatMap((column) => column.name !== null && column.generated ? [column.name] : []),
    checks: first.checks ?? [],
    primaryKey: first.primaryKey,
    shape: first.shape,
  }
}
