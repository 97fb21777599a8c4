import { DeltapostError } from './errors.ts'
import type { Sql } from './sql.ts'

/** News of one change in the second database: its outcome as it is there now. `number` grows with every news. */
export type Receipt = {
  origin: number
  seqId: string
  number: string
  /** null: the outcome is no longer there, and nothing is told. */
  status: string | null
  attempt: number | null
  statement: number | null
  partition: number | null
  offset: string | null
  failure: string | null
  appliedAt: string | null
}

/** A statement that ran in the second database, by its id there, and what its relation is called. */
export type StatementText = {
  id: number
  revision: number
  topicname: string
  destination: string
  schemaName: string
  tableName: string
  keyed: boolean
  consumerQuery: string
  sourceSchema: string | null
  sourceTable: string | null
  keyColumns: string[] | null
}

/** What makes a database one and not another, and its place among two. */
export type Standing = { identity: string; origin: number; origins: number[]; keepsReceipts: boolean }

/** Rows and bytes of failure texts of one shipment. */
const LIMIT = { rows: 1_000, bytes: 4 << 20 }

export async function standingOf(sql: Sql): Promise<Standing> {
  const [row] = await sql<Standing[]>`
    select pg_postmaster_start_time()::text || ' ' || d.oid as identity, o.origin,
           (select array_agg(x.origin::integer order by x.origin) from outbox.own_origin x) as origins,
           inbox.keeps_receipts() as "keepsReceipts"
    from outbox.database o join pg_database d on d.datname = current_database()`
  if (row === undefined) throw new Error('outbox.database has no row')
  return row
}

/**
 * 'same' where both addresses are of one database, which is then as if there were no second; else 'two'.
 *
 * Throws ORIGIN_TAKEN where a number of one could be taken for the other's, and TARGET_NOT_SECOND where outcomes would
 * leave no receipt.
 */
export function comparePair(first: Standing, target: Standing): 'same' | 'two' {
  if (first.identity === target.identity) return 'same'
  const free = Math.max(...first.origins, ...target.origins) + 1
  if (first.origins.includes(target.origin)) {
    throw new DeltapostError('ORIGIN_TAKEN', `the database of TARGET_DATABASE_URL has origin ${target.origin}, as that of DATABASE_URL has or had`,
      `in the database of TARGET_DATABASE_URL: update outbox.database set origin = ${free}`)
  }
  if (target.origins.includes(first.origin)) {
    throw new DeltapostError('ORIGIN_TAKEN', `the database of DATABASE_URL has origin ${first.origin}, as that of TARGET_DATABASE_URL had`,
      `in the database of DATABASE_URL: update outbox.database set origin = ${free}`)
  }
  if (!target.keepsReceipts) {
    throw new DeltapostError('TARGET_NOT_SECOND', 'the database of TARGET_DATABASE_URL was not prepared to be the second of two', 'npm run migrate, with both addresses set')
  }
  return 'two'
}

/**
 * Makes a database the second of two: from now on outcomes leave receipts. Where it never handed out a number and has the
 * first's origin, it gets the next one. Returns its origin.
 */
export async function becomeSecond(target: Sql, firstOrigin: number): Promise<number> {
  await target`
    update outbox.database set origin = ${firstOrigin}::smallint + 1
    where origin = ${firstOrigin} and not (select is_called from outbox.position)`
  await target`select inbox.keep_receipts(true)`
  const { origin } = await standingOf(target)
  return origin
}

/**
 * The next receipts of these origins, the lowest seq_ids first, or undefined while another holder ships them.
 *
 * `origins` are the first database's, its present one first.
 */
export async function readReceipts(target: Sql, origins: readonly number[], holder: string, limit = LIMIT): Promise<Receipt[] | undefined> {
  const [turn] = await target<{ ours: boolean }[]>`select inbox.may_ship(${origins[0] ?? 0}::smallint, ${holder}) as ours`
  if (turn?.ours !== true) return undefined
  return target<Receipt[]>`
    select origin, seq_id as "seqId", number, status, attempt, statement, partition, "offset", failure, applied_at as "appliedAt"
    from (
      select r.origin, r.seq_id, r.number, a.status, a.attempt, a.statement, a.partition, a."offset", a.failure, a.applied_at,
             sum(coalesce(octet_length(a.failure), 0)) over (order by r.place, r.seq_id) - coalesce(octet_length(a.failure), 0) as bytes_before
      from (
        select o.place, r.* from unnest(${`{${origins.join()}}`}::smallint[]) with ordinality as o(origin, place)
        cross join lateral (
          select x.origin, x.seq_id, x.number from inbox.receipt x where x.origin = o.origin order by x.seq_id limit ${limit.rows}
        ) as r order by o.place, r.seq_id limit ${limit.rows}
      ) as r
      left join inbox.applied a on a.origin = r.origin and a.seq_id = r.seq_id
    ) as found
    where bytes_before < ${limit.bytes}`
}

/** The statements that receipts name. */
export async function readStatementTexts(target: Sql, receipts: readonly Receipt[]): Promise<StatementText[]> {
  const ids = [...new Set(receipts.flatMap(({ statement }) => statement ?? []))]
  if (ids.length === 0) return []
  return target<StatementText[]>`
    select s.id, s.revision, s.topicname, s.destination, s.schema_name as "schemaName", s.table_name as "tableName", s.keyed,
           s.consumer_query as "consumerQuery", r.source_schema as "sourceSchema", r.source_table as "sourceTable", r.key_columns as "keyColumns"
    from inbox.statement s left join outbox.relation r on r.id = s.relation
    where s.id = any(${`{${ids.join()}}`}::integer[])`
}

/**
 * Tells the first database which statements ran and by which key rows are known. A key that is known there stays; where
 * there was none, posts spread over the lanes from now on, and changes that are stored keep their row keys.
 */
export async function tellStatements(first: Sql, texts: readonly StatementText[]): Promise<void> {
  if (texts.length === 0) return
  await first`
    with said as (
      select distinct on (coalesce(r.id, 0), s.revision, s.topicname, md5(s."consumerQuery")) s.*, coalesce(r.id, 0) as relation
      from json_to_recordset(${JSON.stringify(texts)}::text::json)
        as s(revision integer, topicname text, destination text, "schemaName" text, "tableName" text, keyed boolean, "consumerQuery" text,
             "sourceSchema" text, "sourceTable" text, "keyColumns" text[])
      left join outbox.relation r on r.source_schema = s."sourceSchema" and r.source_table = s."sourceTable"
    ), named as (
      update outbox.relation r set key_columns = s."keyColumns", known_from = 'target'
      from said s where r.id = s.relation and r.key_columns is null and s."keyColumns" is not null
    )
    insert into inbox.statement (relation, revision, topicname, destination, schema_name, table_name, keyed, consumer_query, guard, leave)
    select s.relation, s.revision, s.topicname, s.destination, s."schemaName", s."tableName", s.keyed, s."consumerQuery", '', '' from said s
    where not exists (
      select from inbox.statement k
      where k.relation = s.relation and k.revision = s.revision and k.topicname = s.topicname
        and md5(k.consumer_query) = md5(s."consumerQuery") and md5(k.guard) = md5('')
    )
    on conflict (relation, revision, topicname, md5(consumer_query), md5(guard)) do nothing`
}

/**
 * Writes outcomes into the first database, under the ids its statements have there. Told twice, or after a newer one, an
 * outcome changes nothing. Returns how many were new.
 */
export async function tellOutcomes(first: Sql, receipts: readonly Receipt[], texts: readonly StatementText[]): Promise<number> {
  const [row] = await first<{ told: number }[]>`
    with text as (
      select s.id, k.id as ours from json_to_recordset(${JSON.stringify(texts)}::text::json)
        as s(id integer, revision integer, topicname text, "consumerQuery" text, "sourceSchema" text, "sourceTable" text)
      left join outbox.relation r on r.source_schema = s."sourceSchema" and r.source_table = s."sourceTable"
      join inbox.statement k on k.relation = coalesce(r.id, 0) and k.revision = s.revision and k.topicname = s.topicname
        and md5(k.consumer_query) = md5(s."consumerQuery") and md5(k.guard) = md5('')
    ), told as (
      insert into inbox.applied as a (origin, seq_id, status, attempt, statement, partition, "offset", failure, applied_at, receipt)
      select o.origin, o."seqId", o.status, o.attempt, coalesce(t.ours, 0), o.partition, o."offset", o.failure, o."appliedAt", o.number
      from json_to_recordset(${JSON.stringify(receipts.filter(({ status }) => status !== null))}::text::json)
        as o(origin smallint, "seqId" bigint, number bigint, status text, attempt smallint, statement integer, partition integer,
             "offset" bigint, failure text, "appliedAt" timestamptz)
      left join text t on t.id = o.statement
      order by o.origin, o."seqId"
      on conflict (origin, seq_id) do update
      set status = excluded.status, attempt = excluded.attempt, statement = excluded.statement, partition = excluded.partition,
          "offset" = excluded."offset", failure = excluded.failure, applied_at = excluded.applied_at, receipt = excluded.receipt
      where a.receipt is null or a.receipt < excluded.receipt
      returning 1
    ) select count(*)::integer as told from told`
  return row?.told ?? 0
}

/**
 * Deletes receipts that were told, those with newer news left out. Rows that an apply is writing at the moment are skipped:
 * it waits for nobody here, and its news is told next.
 */
export async function dropReceipts(target: Sql, receipts: readonly Receipt[]): Promise<number> {
  const [row] = await target<{ dropped: number }[]>`
    with told as materialized (
      select r.origin, r.seq_id from inbox.receipt r
      join json_to_recordset(${JSON.stringify(receipts.map(({ origin, seqId, number }) => ({ origin, seqId, number })))}::text::json)
        as t(origin smallint, "seqId" bigint, number bigint) on t.origin = r.origin and t."seqId" = r.seq_id and t.number = r.number
      for update of r skip locked
    ), dropped as (
      delete from inbox.receipt r using told t where r.origin = t.origin and r.seq_id = t.seq_id returning 1
    ) select count(*)::integer as dropped from dropped`
  return row?.dropped ?? 0
}

/** Receipts that wait in the second database; counted up to 100,000. Origins that nobody asks for show as the oldest. */
export type WaitingReceipts = { count: number; at_least: boolean; oldest_age_seconds: number | null; origins: number[]; shipper: string | null }

export async function waitingReceipts(target: Sql): Promise<WaitingReceipts> {
  const [row] = await target<WaitingReceipts[]>`
    select least(count(*), 100000)::integer as count, count(*) > 100000 as at_least,
           extract(epoch from clock_timestamp() - min(noted_at))::float8 as oldest_age_seconds,
           coalesce(array_agg(distinct origin::integer), '{}') as origins,
           (select string_agg(s.holder, ', ') from inbox.shipper s where s.held_until > clock_timestamp()) as shipper
    from (select origin, noted_at from inbox.receipt limit 100001) as found`
  return row ?? { count: 0, at_least: false, oldest_age_seconds: null, origins: [], shipper: null }
}
