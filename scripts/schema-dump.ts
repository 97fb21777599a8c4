import type { Sql } from '../outbox/sql.ts'

type Line = { line: string }

/**
 * The schema as the catalogue of a migrated database has it, as SQL in a fixed order: what a reader wants to see of all
 * migrations together. pg_dump is not everywhere the tests run, and its output changes with its version.
 */
export async function dumpSchema(sql: Sql): Promise<string> {
  const tables = await sql<Line[]>`
    select format(E'create table %I.%I (\\n%s\\n)%s%s;', n.nspname, c.relname,
             (select string_agg(part, E',\\n' order by place) from (
                select a.attnum as place, format('  %I %s%s%s%s', a.attname, format_type(a.atttypid, a.atttypmod),
                  case a.attidentity when 'a' then ' generated always as identity' else '' end,
                  coalesce(' default ' || pg_get_expr(d.adbin, d.adrelid), ''), case when a.attnotnull then ' not null' else '' end) as part
                from pg_attribute a left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
                where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
                union all
                select 1000 + row_number() over (order by k.conname), '  ' || pg_get_constraintdef(k.oid)
                from pg_constraint k where k.conrelid = c.oid and k.contype in ('p', 'u', 'c')
             ) parts),
             case when c.relkind = 'p' then ' partition by ' || pg_get_partkeydef(c.oid) else '' end,
             coalesce(' with (' || array_to_string(c.reloptions, ', ') || ')', '')) as line
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname in ('outbox', 'auditlog', 'inbox') and c.relkind in ('r', 'p') and not c.relispartition
    order by n.nspname, c.relname`
  const partitions = await sql<Line[]>`
    select format('create table %s partition of %s %s;', c.oid::regclass, i.inhparent::regclass, pg_get_expr(c.relpartbound, c.oid)) as line
    from pg_inherits i join pg_class c on c.oid = i.inhrelid join pg_namespace n on n.oid = c.relnamespace
    where n.nspname in ('outbox', 'auditlog', 'inbox') and c.relkind = 'r' order by c.relname`
  const sequences = await sql<Line[]>`
    select format('create sequence %I.%I as %s cache %s;', schemaname, sequencename, data_type, cache_size) as line
    from pg_sequences where schemaname in ('outbox', 'auditlog', 'inbox') order by schemaname, sequencename`
  const indexes = await sql<Line[]>`
    select pg_get_indexdef(i.indexrelid) || ';' as line
    from pg_index i join pg_class c on c.oid = i.indrelid join pg_namespace n on n.oid = c.relnamespace
    where n.nspname in ('outbox', 'auditlog', 'inbox') and not c.relispartition
      and not exists (select from pg_constraint k where k.conindid = i.indexrelid)
    order by 1`
  const views = await sql<Line[]>`
    select format(E'create view %I.%I as\\n%s', schemaname, viewname, definition) as line
    from pg_views where schemaname in ('outbox', 'auditlog', 'inbox') order by schemaname, viewname`
  const functions = await sql<Line[]>`
    select pg_get_functiondef(p.oid) || ';' as line
    from pg_proc p join pg_namespace n on n.oid = p.pronamespace
    where n.nspname in ('outbox', 'auditlog', 'inbox') order by n.nspname, p.proname, p.oid::regprocedure::text`
  const triggers = await sql<Line[]>`
    select pg_get_triggerdef(g.oid) || ';' as line
    from pg_trigger g join pg_class c on c.oid = g.tgrelid join pg_namespace n on n.oid = c.relnamespace
    where n.nspname in ('outbox', 'auditlog', 'inbox') and not g.tgisinternal order by 1`
  const lines = [sequences, tables, partitions, indexes, views, functions, triggers].flatMap((part) => part.map(({ line }) => line.trimEnd()))
  return `-- All migrations together, made by \`npm run cli -- schema dump\`; a test fails when it is stale.\n\n${lines.join('\n\n')}\n`
}
