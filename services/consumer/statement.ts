import { probeText } from './probe.ts'
import { ident, literal } from './quote.ts'
import type { TargetCheck, TargetColumn } from './target.ts'

/** What the statements of a relation are generated from. `key` empty: rows are matched by their full image. */
export type StatementShape = {
  schema: string
  table: string
  columns: readonly TargetColumn[]
  checks: readonly TargetCheck[]
  /** Columns the source was seen to have. */
  seen: ReadonlySet<string>
  key: readonly string[]
  /** The source ignores blanks at the end of text (Informix): keys are compared and stored without them. */
  blanksIgnored: boolean
}

/** Names are those of inbox.statement. `flag` and `probe` are run by the consumer itself, the others by inbox.apply. */
export type Statements = {
  keyed: boolean
  consumerQuery: string
  guard: string
  leave: string
  one: string | null
  oldKeys: string | null
  partial: string | null
  fill: string | null
  flag: string | null
  /** Which elements a column's type, a NOT NULL or a CHECK refuses, and why (PostgreSQL 16 and newer). */
  probe: string
}

/** The members every element has beside the columns: ordinal, operation, origin, version, offset, special, uncarried. */
const meta = '"~i" integer, "~op" text, "~o" smallint, "~e" integer, "~t" bigint, "~s" bigint, "~f" bigint, "~x" boolean, "~u" jsonb'

/** Generates the texts of one relation. Values are cast by the column definition list: text in, the column's type out. */
export function generateStatements(shape: StatementShape): Statements {
  return shape.key.length > 0 ? keyedStatements(shape) : countStatements(shape)
}

function definition(columns: readonly TargetColumn[]): string {
  return columns.map((column) => `${ident(column.name)} ${isJson(column) ? 'text' : column.type}`).join(', ')
}

/** json_to_recordset would make a JSON string of the text: these come as text and are cast where they are read. */
function isJson(column: TargetColumn): boolean {
  return column.base === 'json' || column.base === 'jsonb'
}

/** The typed value of a column: of the target `t` as it is, of a document's row from its text. */
function read(column: TargetColumn, alias: string): string {
  const value = `${alias}.${ident(column.name)}`
  return alias !== 't' && isJson(column) ? `(${value}::${column.type})` : value
}

/** Canonical text of a typed value: what the target holds for equal has equal text, whatever digits or blanks it came with. */
function canonical(column: TargetColumn, alias: string, blanksIgnored: boolean): string {
  const value = read(column, alias)
  if (column.base === 'numeric') return `trim_scale(${value})::text`
  if (column.base === 'float4' || column.base === 'float8') return `(${value} + 0)::text` // -0 is 0
  if (column.base === 'interval') return `justify_interval(${value})::text`
  if (column.base === 'bpchar' || (blanksIgnored && isText(column))) return `rtrim(${value}::text, ' ')`
  if (column.base === 'citext') return `lower(${value}::text)`
  return `${value}::text`
}

function isText(column: TargetColumn): boolean {
  return column.base === 'varchar' || column.base === 'text'
}

/** Types without an equality are compared as text. One of an extension is named with its schema: the path is pg_catalog. */
function sameValue(column: TargetColumn, left: string, right: string): string {
  const [one, other] = [read(column, left), read(column, right)]
  if (column.equality === null) return `${one}::text is not distinct from ${other}::text`
  if (column.equality === 'pg_catalog') return `${one} is not distinct from ${other}`
  return `(${one} operator(${ident(column.equality)}.=) ${other} or (${one} is null and ${other} is null))`
}

function equals(column: TargetColumn, left: string, right: string): string {
  if (column.equality === null || column.equality === 'pg_catalog') return `${left} = ${right}`
  return `${left} operator(${ident(column.equality)}.=) ${right}`
}

function keyedStatements(shape: StatementShape): Statements {
  const { columns } = shape
  const target = `${ident(shape.schema)}.${ident(shape.table)}`
  const keys = shape.key.map((name) => columnNamed(columns, name))
  // An identity column that is always generated can be inserted, but not set.
  const others = columns.filter((column) => !shape.key.includes(column.name) && !column.identityAlways)
  const names = columns.map((column) => ident(column.name)).join(', ')
  const keyNames = keys.map((column) => ident(column.name)).join(', ')

  const keyText = (alias: string): string => {
    const parts = keys.map((column) => canonical(column, alias, shape.blanksIgnored))
    return parts.length === 1 ? String(parts[0]) : `jsonb_build_array(${parts.join(', ')})::text`
  }
  const keyValue = (column: TargetColumn, alias: string): string => {
    const value = read(column, alias)
    const trimmed = shape.blanksIgnored && isText(column) && shape.key.includes(column.name)
    return trimmed ? `rtrim(${value}::text, ' ')::${column.type}` : value
  }
  const onKey = (alias: string): string =>
    keys.map((column) => equals(column, `t.${ident(column.name)}`, keyValue(column, alias))).join(' and ')
  const values = columns.map((column) => keyValue(column, 'c')).join(', ')
  const conflict = others.length === 0
    ? 'do nothing'
    : `do update set ${others.map((column) => `${ident(column.name)} = excluded.${ident(column.name)}`).join(', ')}`
  const keep = (column: TargetColumn, carried: string): string =>
    `${ident(column.name)} = case when ${carried} then ${read(column, 'c')} else t.${ident(column.name)} end`
  // The key is compared by what it is joined on: a text came with blanks that are not stored.
  const carriedAndSame = columns.filter(({ name }) => !shape.key.includes(name))
    .map((column) => `(not c."~b" ? ${literal(column.name)} or ${sameValue(column, 't', 'b')})`).join(' and ') || 'true'

  return {
    keyed: true,
    probe: probeText(shape),
    consumerQuery: `with c as (
  select * from json_to_recordset($1) as c("~i" integer, "~op" text, ${definition(columns)}) where c."~i" = any($2)
), gone as (
  delete from ${target} t using c where c."~op" = 'DELETE' and ${onKey('c')}
)
insert into ${target} (${names}) overriding system value
select ${values} from c where c."~op" <> 'DELETE'
on conflict (${keyNames}) ${conflict}`,
    guard: guardText(definition(keys), keyText('c')),
    one: `select c."~i" as i, c."~op" as op, c."~o" as o, c."~e" as e, c."~t" as t, c."~s" as s, c."~f" as f, c."~u" as u,
  ${keyText('c')} as key, case when c."~x" then ${keyText('b')} end as old_key
from json_to_recordset($1) as c(${meta}, "~b" jsonb, ${definition(keys)})
cross join lateral jsonb_to_record(coalesce(c."~b", '{}')) as b(${definition(keys)})`,
    oldKeys: `select array_agg(${keyText('b')})
from json_to_recordset($1) as c("~x" boolean, "~b" jsonb)
cross join lateral jsonb_to_record(c."~b") as b(${definition(keys)}) where c."~x"`,
    partial: partialText(target, names, values, keyNames, conflict, definition(columns), onKey('c'),
      others.map((column) => keep(column, `not coalesce(c."~u" ? ${literal(column.name)}, false)`))),
    fill: others.length === 0 ? 'select 1 where $1 is null and $2 is null' : `update ${target} t
set ${others.map((column) => keep(column, `${literal(column.name)} = any($2)`)).join(', ')}
from json_to_recordset($1) as c(${definition(columns)}) where ${onKey('c')}`,
    leave: `with b as (
  select c."~b", b.* from json_to_recordset($1) as c("~b" jsonb)
  cross join lateral jsonb_to_record(c."~b") as b(${definition(columns)})
), there as (
  select t.tableoid as part, t.ctid, ${carriedAndSame.replaceAll('not c."~b"', 'not b."~b"')} as same from ${target} t join b on ${onKey('b')} for update of t
), gone as (
  delete from ${target} t using there where t.tableoid = there.part and t.ctid = there.ctid and there.same returning 1
)
select (select count(*) from there)::integer, (select count(*) from gone)::integer`,
    flag: `update inbox.applied a
set failure = 'CLOCK_FAULT: superseded, yet its before-image is what the target holds: a clock of the source ran ahead'
from json_to_recordset($1) as c(${meta}, "~b" jsonb, ${definition(columns)})
cross join lateral jsonb_to_record(c."~b") as b(${definition(columns)})
join ${target} t on ${onKey('b')}
where a.origin = c."~o" and a.seq_id = c."~s" and a.status = 'SUPERSEDED' and c."~op" = 'UPDATE'
  and ${carriedAndSame} and not (${columns.map((column) => `(coalesce(c."~u" ? ${literal(column.name)}, false) or ${sameValue(column, 't', 'c')})`).join(' and ')})
returning a.seq_id`,
  }
}

/** Who the changes are and which rows they are of, as arrays: what inbox.guard needs, whose statement is the same for all relations. */
function guardText(keyDefinition: string, key: string): string {
  return `select array_agg(c."~i"), array_agg(coalesce(c."~x", false)), array_agg(c."~op" = 'DELETE'), array_agg(c."~o"), array_agg(c."~e"), array_agg(c."~t"),
  array_agg(c."~s"), array_agg(c."~f"), array_agg(c."~u"), array_agg(${key}), array_agg(c."~pt")
from json_to_recordset($1) as c(${meta}, "~pt" integer, ${keyDefinition})`
}

function partialText(
  target: string, names: string, values: string, keyNames: string, conflict: string, columnDefinition: string,
  onKey: string, kept: string[],
): string {
  const insert = `insert into ${target} (${names}) overriding system value
select ${values} from c where not exists (select from ${target} t where ${onKey})
on conflict (${keyNames}) ${conflict}`
  const rows = `with c as (
  select * from json_to_recordset($1) as c("~i" integer, "~u" jsonb, ${columnDefinition}) where c."~i" = any($2)
)`
  if (kept.length === 0) return `${rows}\n${insert}`
  return `${rows}, carried as (
  update ${target} t set ${kept.join(', ')} from c where ${onKey}
)
${insert}`
}

function countStatements(shape: StatementShape): Statements {
  const { columns } = shape
  const target = `${ident(shape.schema)}.${ident(shape.table)}`
  // A table can have no column yet: the first change of a relation may be a row of nulls.
  const names = columns.length === 0 ? '' : `(${columns.map((column) => ident(column.name)).join(', ')}) overriding system value`
  const also = columns.length === 0 ? '' : `, ${definition(columns)}`
  const before = columns.length === 0 ? '' : `\n    cross join lateral json_to_record(c."~b") as b(${definition(columns)})`
  // Nulls are left out, so that the image of a row stays what it was when a column is added.
  const image = (alias: string): string =>
    `md5(jsonb_strip_nulls(${chunked(columns.map((column) => `${literal(column.name)}, ${canonical(column, alias, shape.blanksIgnored)}`))})::text)::uuid`
  return {
    keyed: false,
    consumerQuery: `insert into ${target} ${names}
select ${columns.map((column) => read(column, 'c')).join(', ')}
from json_to_recordset($1) as c("~i" integer${also})
join unnest($2, $3) as n(i, copies) on n.i = c."~i" cross join generate_series(1, n.copies)`,
    guard: `select array_agg(net.image order by net.image), array_agg(net.n order by net.image), array_agg(net.i order by net.image)
from (
  select x.image, sum(x.sign) as n, min(x.i) filter (where x.sign > 0) as i
  from (
    select c."~i" as i, 1::bigint as sign, ${image('c')} as image
    from json_to_recordset($1) as c("~i" integer, "~op" text${also}) where c."~op" <> 'DELETE'
    union all
    select c."~i", -1, ${image('b')}
    from json_to_recordset($1) as c("~i" integer, "~op" text, "~b" json)${before} where c."~op" <> 'INSERT'
  ) x
  where x.i = any($2) group by x.image having sum(x.sign) <> 0
) net`,
    leave: `delete from ${target} t
using (
  select t.tableoid as part, t.ctid as place, h.image, row_number() over (partition by h.image) as copy
  from ${target} t cross join lateral (select ${image('t')} as image) h where h.image = any($1)
) stored
join unnest($1, $2) as need(image, net) on need.image = stored.image
where t.tableoid = stored.part and t.ctid = stored.place and stored.copy <= -need.net
returning stored.image`,
    one: null, oldKeys: null, partial: null, fill: null, flag: null, probe: probeText(shape),
  }
}

/** jsonb_build_object takes at most 100 arguments: tables of more than 50 columns are put together from several. */
function chunked(pairs: string[]): string {
  const parts: string[] = []
  for (let at = 0; at < pairs.length; at += 50) parts.push(`jsonb_build_object(${pairs.slice(at, at + 50).join(', ')})`)
  return parts.length === 0 ? `'{}'::jsonb` : parts.join(' || ')
}

function columnNamed(columns: readonly TargetColumn[], name: string): TargetColumn {
  const column = columns.find((candidate) => candidate.name === name)
  if (column === undefined) throw new Error(`the key column ${name} is not among the columns of the table`)
  return column
}
