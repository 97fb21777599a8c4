import type { Sql } from './sql.ts'

/**
 * Makes the key of a table known to the database that takes its changes in, where it is applied in another.
 *
 * From then on posts spread over the lanes by their rows, and stored changes are found by row_key. Nothing is built again
 * here: a table that was made here, when this database was the only one, is left as it is, and therefore no longer ours.
 */
export async function nameKey(sql: Sql, source: string, schema: string, table: string, columns: readonly string[]): Promise<void> {
  await sql`
    update outbox.relation r set created = false
    where r.source_schema = ${schema} and r.source_table = ${table} and r.created and r.key_columns is distinct from ${[...columns]}::text[]`
  await sql`
    with named as (
      update outbox.relation r set key_columns = ${[...columns]}::text[], known_from = 'registered'
      from outbox.meet(${source}, ${schema}, ${table}) m
      where r.id = m.id and r.key_columns is distinct from ${[...columns]}::text[]
      returning r.source_schema, r.source_table
    )
    update auditlog.producer_log p
    set row_key = outbox.row_key_of(coalesce(p.clean_payload::json, p.producer_payload), p.operation, p.table_name, ${[...columns]}::text[])
    from named n where p.schema_name = n.source_schema and p.table_name = n.source_table`
}

/** A table whose key is known. */
export type KnownKey = { source: string; schema: string; table: string; columns: string[] }

export async function keysOf(sql: Sql): Promise<KnownKey[]> {
  return sql<KnownKey[]>`
    select r.source, r.source_schema as schema, r.source_table as "table", r.key_columns as columns from outbox.relation r where r.key_columns is not null order by r.id`
}

/**
 * Makes keys known to a database that is to apply changes from now on, and returns of how many tables: of those that were
 * not met there and do not exist, since an existing table has its own. Without a key the first change would make a table
 * without one, and no key could be declared any more.
 */
export async function offerKeys(target: Sql, keys: readonly KnownKey[]): Promise<number> {
  const [row] = await target<{ named: number }[]>`
    with named as materialized (
      select outbox.declare_key(k.source, k.schema, k."table", k.columns)
      from json_to_recordset(${JSON.stringify(keys)}::text::json) as k(source text, schema text, "table" text, columns text[])
      where to_regclass(format('%I.%I', k.schema, k."table")) is null
        and not exists (select from outbox.relation r where r.source_schema = k.schema and r.source_table = k."table")
    ) select count(*)::integer as named from named`
  return row?.named ?? 0
}
