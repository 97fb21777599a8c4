import { DeltapostError } from '../../outbox/errors.ts'
import { meetRelation } from '../../outbox/relation.ts'
import type { Relation } from '../../outbox/relation.ts'
import type { Sql } from '../../outbox/sql.ts'
import type { Log } from '../runtime/log.ts'
import type { Arrival, ElementShape } from './element.ts'
import { ident } from './quote.ts'
import { generateStatements } from './statement.ts'
import type { Statements } from './statement.ts'
import { readTarget } from './target.ts'
import type { TargetColumn, TargetTable } from './target.ts'

/** A relation made ready: the id of its statements in inbox.statement and what elements are built from. */
export type Prepared = {
  statementId: number
  statements: Statements
  shape: ElementShape
  /** Columns the source carries and Postgres computes. */
  ignored: ReadonlySet<string>
  /** For so many batches more each change is looked at before it is sent: some were refused lately. */
  wary: number
}

export type RelationOptions = {
  source: string
  destination: string
  /** Whether schema, table and columns are created from what the payloads carry. */
  autoCreate: boolean
  log: Log
}

export type Relations = {
  /** Everything needed to apply these changes, which are of one relation and topic. STOPPED: to take up its queue. */
  prepare(sql: Sql, topic: string, arrivals: readonly Arrival[], state?: Relation['state']): Promise<Prepared>
  /** The relation of a change, whatever its state. */
  meet(sql: Sql, schema: string, table: string): Promise<Relation>
  /** Drops what is remembered of a relation, after STALE or an error of its table. */
  forget(schema: string, table: string): void
}

/**
 * Relations as this consumer knows them, by name and topic.
 *
 * What is remembered is checked by inbox.apply against outbox.relation.revision, so a stale entry costs a turn, not a row.
 */
export function openRelations(options: RelationOptions): Relations {
  const known = new Map<string, Prepared>()
  return {
    meet: (sql, schema, table) => meetRelation(sql, options.source, schema, table),
    async prepare(sql, topic, arrivals, state = 'ACTIVE') {
      const first = arrivals[0]
      if (first === undefined) throw new Error('prepare needs at least one change')
      const { schema, table } = first.change
      const name = `${schema}\u001f${table}`
      if (state !== 'ACTIVE') return prepareAfresh(sql, topic, arrivals, options, state)
      const prepared = known.get(`${name}\u001f${topic}`)
      if (prepared !== undefined && arrivals.every((arrival) => coversColumns(prepared, arrival))) return prepared
      const fresh = await prepareAfresh(sql, topic, arrivals, options, state)
      known.set(`${name}\u001f${topic}`, fresh)
      return fresh
    },
    forget(schema, table) {
      for (const name of known.keys()) if (name.startsWith(`${schema}\u001f${table}\u001f`)) known.delete(name)
    },
  }
}

function coversColumns(prepared: Prepared, arrival: Arrival): boolean {
  return arrival.change.columns.every((column) => prepared.shape.columns.has(column.name) || prepared.ignored.has(column.name))
}

async function prepareAfresh(sql: Sql, topic: string, arrivals: readonly Arrival[], options: RelationOptions, state: Relation['state']): Promise<Prepared> {
  const names = new Set(arrivals.flatMap((arrival) => arrival.change.columns.map((column) => column.name)))
  const { schema, table } = arrivals[0]!.change
  let relation = await meetRelation(sql, options.source, schema, table)
  if (relation.state !== state) throw state === 'ACTIVE' ? stopped(relation) : changing(relation)
  let target = await readTarget(sql, relation.targetSchema, relation.targetTable)
  // Another consumer may create the table in between with fewer columns: not until all are there may a change be applied.
  for (let turn = 1; target === undefined || lacks(target, names); turn += 1) {
    if (turn === 4) throw targetMissing(relation)
    // Read behind the target: whoever created it says so in the same transaction.
    if (turn > 1 || target !== undefined) relation = await meetRelation(sql, options.source, schema, table)
    await grow(sql, relation, target, names, options)
    target = await readTarget(sql, relation.targetSchema, relation.targetTable)
  }
  relation = await learn(sql, relation, target, names)
  const columns = statementColumns(target, relation)
  const statements = generateStatements({
    schema: target.schema,
    table: target.table,
    columns,
    checks: target.checks,
    seen: new Set(relation.columns),
    key: relation.keyColumns ?? [],
    blanksIgnored: relation.source === 'INFORMIX',
  })
  return {
    statementId: await keepStatements(sql, relation, topic, options.destination, statements, target.shape),
    statements,
    shape: { columns: new Map(columns.map((column) => [column.name, column])), key: relation.keyColumns ?? [], seen: new Set(relation.columns) },
    ignored: new Set(target.generated),
    wary: 0,
  }
}

function lacks(target: TargetTable, names: ReadonlySet<string>): boolean {
  return [...names].some((name) => !target.columns.some((column) => column.name === name) && !target.generated.includes(name))
}

/**
 * Columns the statements write: all but those that are NOT NULL with a default and never came from the source, which
 * keep their default. A nullable one that an insert leaves out becomes NULL: a default would invent a value.
 */
function statementColumns(target: TargetTable, relation: Relation): TargetColumn[] {
  return target.columns.filter((column) =>
    !(column.notNull && column.hasDefault) || relation.columns.includes(column.name) || relation.keyColumns?.includes(column.name) === true)
}

/** Creates the table, or the columns it lacks, where that is allowed; all in one message, which Postgres runs as one. */
async function grow(
  sql: Sql, relation: Relation, target: TargetTable | undefined, names: ReadonlySet<string>, options: RelationOptions,
): Promise<void> {
  const name = `${ident(relation.targetSchema)}.${ident(relation.targetTable)}`
  if (target === undefined) {
    if (!options.autoCreate || relation.columns.length > 0) throw targetMissing(relation)
    const key = relation.keyColumns ?? []
    const columns = [...new Set([...key, ...names])].map((column) => `${ident(column)} text`)
    const primaryKey = key.length > 0 ? [`primary key (${key.map(ident).join(', ')})`] : []
    // "if not exists" asks for the right to create one also where it exists.
    const [schema] = await sql`select from pg_namespace where nspname = ${relation.targetSchema}`
    await ddl(sql, relation, `${schema === undefined ? `create schema if not exists ${ident(relation.targetSchema)};` : ''}
      create table if not exists ${name} (${[...columns, ...primaryKey].join(', ')});
      update outbox.relation set created = true where id = ${relation.id} and not created`)
    options.log.info({ schema: relation.targetSchema, table: relation.targetTable, key }, 'created the target table from what the change carries')
    return
  }
  const lacking = [...names].filter((column) => !target.columns.some((there) => there.name === column) && !target.generated.includes(column))
  if (!relation.created || !options.autoCreate) {
    throw new DeltapostError('TARGET_COLUMN_MISSING', `the target table ${name} has no column ${lacking.join(', ')}`,
      `alter table ${name} add column ${lacking.map((column) => `${ident(column)} text`).join(', add column ')}`, { retry: true })
  }
  await ddl(sql, relation, lacking.map((column) => `alter table ${name} add column if not exists ${ident(column)} text`).join('; '))
  options.log.info({ schema: relation.targetSchema, table: relation.targetTable, columns: lacking }, 'added columns that the changes carry')
}

/**
 * 7161 is the lock that inbox.apply shares; (7161, 0) keeps two first sights of one schema apart. A relation that changed
 * meanwhile (a key was declared) is looked at again: 40001 is waited for like any of the environment's.
 */
async function ddl(sql: Sql, relation: Relation, text: string): Promise<void> {
  await sql.unsafe(`select pg_advisory_xact_lock(7161, 0); select pg_advisory_xact_lock(7161, ${relation.id});
    do $$ begin
      perform 1 from outbox.relation where id = ${relation.id} and key_columns is not distinct from ${relation.keyColumns === null ? 'null' : arrayLiteral(relation.keyColumns)};
      if not found then raise exception 'the key of the relation changed' using errcode = '40001'; end if;
    end $$; ${text}`).simple()
}

function arrayLiteral(names: readonly string[]): string {
  return `array[${names.map((name) => `'${name.replaceAll("'", "''")}'`).join(', ')}]::text[]`
}

/** Adds columns the source was not yet seen to have, and a key the table has, if nothing was applied without it. */
async function learn(sql: Sql, relation: Relation, target: TargetTable, names: ReadonlySet<string>): Promise<Relation> {
  const key = relation.keyColumns ?? target.primaryKey
  const seen = [...names].filter((name) => target.columns.some((column) => column.name === name))
  const [row] = await sql<{ changed: number }[]>`
    with changed as (
      update outbox.relation r
      set columns = (select coalesce(array_agg(distinct name order by name), '{}') from unnest(r.columns || ${seen}::text[]) as name),
          key_columns = case when r.key_columns is null
            and not exists (select from inbox.statement s where s.relation = r.id and s.revision > 0) then ${key}::text[] else r.key_columns end
      where r.id = ${relation.id} and (not (r.columns @> ${seen}::text[]) or (r.key_columns is null and ${key}::text[] is not null
            and not exists (select from inbox.statement s where s.relation = r.id and s.revision > 0)))
      returning 1
    ) select count(*)::int as changed from changed`
  return row?.changed === 0 ? relation : meetRelation(sql, relation.source, relation.sourceSchema, relation.sourceTable)
}

async function keepStatements(sql: Sql, relation: Relation, topic: string, destination: string, texts: Statements, shape: string | null): Promise<number> {
  const [row] = await sql<{ id: number }[]>`
    with kept as (
      insert into inbox.statement (relation, revision, topicname, destination, schema_name, table_name, keyed,
        consumer_query, guard, leave, one, old_keys, partial, fill, target_shape)
      values (${relation.id}, ${relation.revision}, ${topic}, ${destination}, ${relation.targetSchema}, ${relation.targetTable},
        ${texts.keyed}, ${texts.consumerQuery}, ${texts.guard}, ${texts.leave}, ${texts.one}, ${texts.oldKeys}, ${texts.partial}, ${texts.fill}, ${shape})
      on conflict (relation, revision, topicname, md5(consumer_query), md5(guard)) do update
      set leave = excluded.leave, one = excluded.one, old_keys = excluded.old_keys, partial = excluded.partial, fill = excluded.fill,
        target_shape = excluded.target_shape
      returning id
    ) select id from kept`
  if (row === undefined) throw new Error('inbox.statement returned no id')
  return row.id
}

function stopped({ sourceSchema, sourceTable, stopReason }: Relation): DeltapostError {
  const name = `${sourceSchema}.${sourceTable}`
  return new DeltapostError('RELATION_STOPPED', `${name} is stopped: ${stopReason ?? 'no reason given'}`, `npm run cli -- resume ${name}`, { retry: true })
}

/** A relation that does not stand still while a batch of it is applied. */
export function changing({ sourceSchema, sourceTable }: Pick<Relation, 'sourceSchema' | 'sourceTable'>): DeltapostError {
  return new DeltapostError('RELATION_CHANGING', `${sourceSchema}.${sourceTable} was changed again and again while a batch of it was being applied`,
    'wait until whoever changes it is done', { retry: true })
}

function targetMissing(relation: Relation): DeltapostError {
  const name = `${relation.targetSchema}.${relation.targetTable}`
  return new DeltapostError('TARGET_MISSING', `the target table ${name} does not exist`,
    relation.columns.length > 0 ? `restore ${name}: it was there before` : `create ${name}, or set AUTO_CREATE=on`, { retry: true })
}
