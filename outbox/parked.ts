import type { Sql } from './sql.ts'

/** A change by its number; `origin` null: of whatever origin. */
export type ChangeId = { origin: number | null; seqId: string }

/** Which of the changes that were set aside; what is left out does not limit. Times are texts that Postgres reads. */
export type ParkedFilter = {
  ids?: readonly ChangeId[] | undefined
  table?: { schema: string; table: string } | undefined
  reason?: string | undefined
  sqlstate?: string | undefined
  status?: string | undefined
  since?: string | undefined
  before?: string | undefined
}

/** An entry of the list; names are those of the columns, `bytes` is the size of the payload. */
export type ParkedEntry = {
  origin: number
  seq_id: string
  schema_name: string
  table_name: string
  side: 'deploy' | 'publish'
  status: string
  reason: string
  sqlstate: string | null
  attempts: number
  retry_at: string | null
  parked_at: string
  bytes: number
  message: string
}

/** Entries that have these in common. */
export type ParkedCount = Pick<ParkedEntry, 'schema_name' | 'table_name' | 'side' | 'status' | 'reason' | 'sqlstate'> & { count: string }

/** A change by origin and number; also where a page ended. */
export type After = { origin: number; seqId: string }

export const FROM_START: After = { origin: 0, seqId: '0' }

/** The conditions of a filter on inbox.parked p, inbox.applied a and outbox.relation r. */
export function matching(sql: Sql, filter: ParkedFilter): ReturnType<Sql> {
  const { ids, table, reason, sqlstate, status, since, before } = filter
  return sql`true
    ${ids === undefined ? sql`` : sql`and p.seq_id = any(${ids.map(({ seqId }) => seqId)}::bigint[]) and exists (
      select from unnest(${ids.map(({ origin }) => origin)}::smallint[], ${ids.map(({ seqId }) => seqId)}::bigint[]) as i(origin, seq_id)
      where i.seq_id = p.seq_id and coalesce(i.origin, p.origin) = p.origin)`}
    ${table === undefined ? sql`` : sql`and r.source_schema = ${table.schema} and r.source_table = ${table.table}`}
    ${reason === undefined ? sql`` : sql`and p.reason = ${reason}`}
    ${sqlstate === undefined ? sql`` : sql`and p.sqlstate = ${sqlstate}`}
    ${status === undefined ? sql`` : sql`and a.status = ${status}`}
    ${since === undefined ? sql`` : sql`and p.parked_at >= ${since}::text::timestamptz`}
    ${before === undefined ? sql`` : sql`and p.parked_at < ${before}::text::timestamptz`}`
}

/** The tables that `matching` is about. */
export function parkedTables(sql: Sql): ReturnType<Sql> {
  return sql`inbox.parked p join inbox.applied a on a.origin = p.origin and a.seq_id = p.seq_id join outbox.relation r on r.id = p.relation`
}

/** A page of what is parked at the target, by number. The payload is not read: its size is known without. */
export async function parkedPage(sql: Sql, filter: ParkedFilter, after: After, limit: number): Promise<ParkedEntry[]> {
  return sql<ParkedEntry[]>`
    select p.origin, p.seq_id, r.source_schema as schema_name, r.source_table as table_name, 'deploy' as side, a.status, p.reason, p.sqlstate,
           p.attempts, p.retry_at, p.parked_at, octet_length(p.payload) as bytes, p.message
    from ${parkedTables(sql)}
    where (p.origin, p.seq_id) > (${after.origin}, ${after.seqId}) and ${matching(sql, filter)}
    order by p.origin, p.seq_id limit ${limit}`
}

export async function countParked(sql: Sql, filter: ParkedFilter): Promise<ParkedCount[]> {
  return sql<ParkedCount[]>`
    select r.source_schema as schema_name, r.source_table as table_name, 'deploy' as side, a.status, p.reason, p.sqlstate, count(*) as count
    from ${parkedTables(sql)} where ${matching(sql, filter)}
    group by r.source_schema, r.source_table, a.status, p.reason, p.sqlstate order by count(*) desc, 1, 2, 4, 5, 6`
}

/** The same of what could not be published: the latest publishing of a change that waits for its next attempt, or was given up. */
function unpublished(sql: Sql, { ids, table, reason, sqlstate, status, since, before }: ParkedFilter): ReturnType<Sql> {
  return sql`auditlog.publish_log l join auditlog.producer_log c on c.seq_id = l.seq_id
    cross join lateral (select coalesce(substring(l.producer_failure_log from '^[A-Z][A-Z_]+'), 'UNKNOWN') as reason) f
    where l.latest and l.kind is null and l.producer_publish_status in ('RETRYING', 'FAILED') and l.producer_publish_status <> 'PUBLISHED'
      ${sqlstate === undefined ? sql`` : sql`and false`}
      ${ids === undefined ? sql`` : sql`and l.seq_id = any(${ids.map(({ seqId }) => seqId)}::bigint[])`}
      ${table === undefined ? sql`` : sql`and c.schema_name = ${table.schema} and c.table_name = ${table.table}`}
      ${reason === undefined ? sql`` : sql`and f.reason = ${reason}`}
      ${status === undefined ? sql`` : sql`and l.producer_publish_status = ${status}`}
      ${since === undefined ? sql`` : sql`and l.producer_publish_time >= ${since}::text::timestamptz`}
      ${before === undefined ? sql`` : sql`and l.producer_publish_time < ${before}::text::timestamptz`}`
}

/** A page of what could not be published, by number. */
export async function unpublishedPage(sql: Sql, filter: ParkedFilter, after: After, limit: number): Promise<ParkedEntry[]> {
  return sql<ParkedEntry[]>`
    select c.origin, l.seq_id, c.schema_name, c.table_name, 'publish' as side, l.producer_publish_status as status, f.reason, null as sqlstate,
           l.attempt as attempts, null as retry_at, l.producer_publish_time as parked_at,
           octet_length(coalesce(c.clean_payload, c.producer_payload::text)) as bytes, coalesce(l.producer_failure_log, '') as message
    from ${unpublished(sql, filter)} and l.seq_id > ${after.seqId} order by l.seq_id limit ${limit}`
}

export async function countUnpublished(sql: Sql, filter: ParkedFilter): Promise<ParkedCount[]> {
  return sql<ParkedCount[]>`
    select c.schema_name, c.table_name, 'publish' as side, l.producer_publish_status as status, f.reason, null as sqlstate, count(*) as count
    from ${unpublished(sql, filter)}
    group by c.schema_name, c.table_name, l.producer_publish_status, f.reason order by count(*) desc, 1, 2, 4, 5`
}

/** One parked change with its bytes. */
export type ParkedWhole = ParkedEntry & {
  relation: number
  row_key: string | null
  /** epoch:time:seq */
  version: string
  waits: number
  topic: string
  partition: number
  offset: string
  traceparent: string | null
  record_key: string | null
  payload: string
  key_columns: string[] | null
  target_schema: string
  target_table: string
  relation_state: string
}

/** All of one parked change; undefined where it is not parked. */
export async function parkedNamed(sql: Sql, { origin, seqId }: After): Promise<ParkedWhole | undefined> {
  const [whole] = await sql<ParkedWhole[]>`
    select p.origin, p.seq_id, r.source_schema as schema_name, r.source_table as table_name, 'deploy' as side, a.status, p.reason, p.sqlstate,
           p.attempts, p.retry_at, p.parked_at, octet_length(p.payload) as bytes, p.message,
           p.relation, p.key as row_key, p.epoch || ':' || p.time || ':' || p.seq_id as version, p.waits, p.topic, a.partition, a."offset",
           p.traceparent, p.record_key, p.payload, r.key_columns, r.target_schema, r.target_table, r.state as relation_state
    from ${parkedTables(sql)} where p.origin = ${origin} and p.seq_id = ${seqId}`
  return whole
}

/** What waits behind a change: newer ones of its row, and the first of them. */
export type Behind = { count: string; first: { origin: number; seq_id: string; reason: string; version: string }[] }

export async function behindOf(sql: Sql, { relation, row_key: key, version }: Pick<ParkedWhole, 'relation' | 'row_key' | 'version'>): Promise<Behind> {
  const [epoch, time, seq] = version.split(':')
  const [row] = await sql<{ count: string; first: Behind['first'] | null }[]>`
    with behind as (
      select p.origin, p.seq_id, p.reason, p.epoch || ':' || p.time || ':' || p.seq_id as version,
             row_number() over (order by p.epoch, p.time, p.seq_id) as place
      from inbox.parked p
      where p.relation = ${relation} and p.key = ${key} and (p.epoch, p.time, p.seq_id) > (${epoch ?? 0}::integer, ${time ?? 0}::bigint, ${seq ?? 0}::bigint)
        and p.reason in ('REFUSED', 'WAITING', 'BEHIND')
    )
    select count(*) as count,
           json_agg(json_build_object('origin', origin, 'seq_id', seq_id::text, 'reason', reason, 'version', version) order by place)
             filter (where place <= 5) as first
    from behind`
  return { count: row?.count ?? '0', first: row?.first ?? [] }
}

/** The newest version a row has seen. */
export type NewestVersion = { version: string; origin: number; deleted: boolean; parked: boolean }

export async function newestVersion(sql: Sql, relation: number, key: string | null): Promise<NewestVersion | undefined> {
  const [row] = await sql<NewestVersion[]>`
    select v.epoch || ':' || v.time || ':' || v.seq as version, v.origin, v.deleted, v.parked
    from inbox.row_version v where v.relation = ${relation} and v.key = ${key}`
  return row
}

/** An entry as it is exported: who it is, why, and the record. */
export type Exported = Omit<ParkedEntry, 'side' | 'bytes'> & { version: string; topic: string; record_key: string | null; payload: string }

/** Bytes of payloads that a page may have; one alone may have more. */
const PAGE_BYTES = 8 << 20

/** A page with payloads, by number. */
export async function exportPage(sql: Sql, filter: ParkedFilter, after: After, limit: number): Promise<Exported[]> {
  return sql<Exported[]>`
    select origin, seq_id, schema_name, table_name, status, reason, sqlstate, attempts, retry_at, parked_at, message, version, topic, record_key, payload
    from (
      select page.*, sum(octet_length(payload)) over (order by origin, seq_id) - octet_length(payload) as ahead
      from (
        select p.origin, p.seq_id, r.source_schema as schema_name, r.source_table as table_name, a.status, p.reason, p.sqlstate, p.attempts,
               p.retry_at, p.parked_at, p.message, p.epoch || ':' || p.time || ':' || p.seq_id as version, p.topic, p.record_key, p.payload
        from ${parkedTables(sql)}
        where (p.origin, p.seq_id) > (${after.origin}, ${after.seqId}) and ${matching(sql, filter)}
        order by p.origin, p.seq_id limit ${limit}
      ) page
    ) sized where ahead < ${PAGE_BYTES} order by origin, seq_id`
}

/** Bytes up to which an edit keeps a record beside the place where it is anyway. */
const SMALL = 64 << 10

/**
 * Replaces the record of a parked change, with its line in the audit; false where it is not parked any more or not as
 * `was` any more. The record as it was first consumed stays in producer_log where this database has it, else in the line.
 */
export async function editParked(
  sql: Sql, actor: string, { origin, seq_id: seqId, payload: was }: Pick<ParkedWhole, 'origin' | 'seq_id' | 'payload'>, payload: string, note: string | null,
): Promise<boolean> {
  const rows = await sql`
    with edited as (
      update inbox.parked p set payload = ${payload}
      where p.origin = ${origin} and p.seq_id = ${seqId} and p.payload = ${was}
      returning p.relation
    )
    insert into auditlog.action (actor, command, origin, seq_id, relation, before, after, note)
    select ${actor}, 'edit', ${origin}, ${seqId}, r.source_schema || '.' || r.source_table,
           case when octet_length(${was}::text) <= ${SMALL} or not exists (select from auditlog.producer_log l where l.seq_id = ${seqId} and l.origin = ${origin})
             or exists (select from auditlog.action x where x.seq_id = ${seqId} and x.origin = ${origin} and x.command = 'edit') then ${was}::text end,
           case when octet_length(${payload}::text) <= ${SMALL} then ${payload}::text end, ${note}
    from edited e join outbox.relation r on r.id = e.relation
    returning id`
  return rows.length === 1
}

/** What became of a change that was to be skipped; `was` null: it is not parked any more, or was taken up meanwhile. */
export type Skipped = { origin: number; seq_id: string; was: string | null }

/** Gives parked changes up, each with its line in the audit, in the order of their rows' keys as whoever applies locks them. */
export async function skipParked(sql: Sql, actor: string, changes: readonly { origin: number; seqId: string }[], note: string): Promise<Skipped[]> {
  return sql<Skipped[]>`
    with wanted as materialized (
      select p.origin, p.seq_id, r.source_schema || '.' || r.source_table as relation
      from unnest(${changes.map(({ origin }) => origin)}::smallint[], ${changes.map(({ seqId }) => seqId)}::bigint[]) as c(origin, seq_id)
      join inbox.parked p on p.origin = c.origin and p.seq_id = c.seq_id join outbox.relation r on r.id = p.relation
      order by p.relation, p.key, p.epoch, p.time, p.seq_id
    ), done as materialized (
      select w.origin, w.seq_id, w.relation, inbox.skip(w.origin, w.seq_id, ${note}) as was from wanted w
    ), noted as (
      insert into auditlog.action (actor, command, origin, seq_id, relation, before, after, note)
      select ${actor}, 'skip', d.origin, d.seq_id, d.relation, d.was, 'SKIPPED', ${note} from done d where d.was is not null
    )
    select d.origin, d.seq_id, d.was from done d`
}

/** What a change came to after it was tried. `reason` null: it is not parked any more. */
export type TriedOutcome = { origin: number; seq_id: string; status: string | null; reason: string | null; sqlstate: string | null; message: string | null }

export async function outcomesOf(sql: Sql, changes: readonly { origin: number; seqId: string }[]): Promise<TriedOutcome[]> {
  return sql<TriedOutcome[]>`
    select c.origin, c.seq_id, a.status, p.reason, p.sqlstate, coalesce(p.message, a.failure) as message
    from unnest(${changes.map(({ origin }) => origin)}::smallint[], ${changes.map(({ seqId }) => seqId)}::bigint[]) with ordinality as c(origin, seq_id, place)
    left join inbox.applied a on a.origin = c.origin and a.seq_id = c.seq_id
    left join inbox.parked p on p.origin = c.origin and p.seq_id = c.seq_id
    order by c.place`
}
