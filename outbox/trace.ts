import type { Sql } from './sql.ts'

/** A change as it was received; times are text with microseconds, `bytes` those of the payload. */
export type Received = {
  seq_id: string
  origin: number
  source: string
  topicname: string
  schema_name: string
  table_name: string
  operation: string
  dialect: string
  row_key: string | null
  source_time: string
  /** epoch:time:seq, by which it is compared with other changes of its row. */
  version: string
  received_at: string
  traceparent: string | null
  bytes: number
  payload: string
}

/** One publishing of the change; a replay has a position of its own. */
export type Published = {
  position: string
  attempt: number
  producer_publish_status: string
  producer_failure_log: string | null
  producer_publish_time: string
  partition: number | null
  offset: string | null
}

/** Its event while it waits in the outbox, and who holds its lane. */
export type Waiting = { lane: number; position: string; attempt: number; due_at: string | null; holder: string | null; term: string }

/** What became of it at the target, with the statement that ran. */
export type Applied = {
  consumer_deploy_status: string
  consumer_failure_log: string | null
  consumer_update_time: string
  attempt: number
  destination: string
  partition: number
  offset: string
  consumer_query: string
}

export type SetAside = { reason: string; message: string; key: string | null; attempts: number; parked_at: string }

/** The newest version the change's row has seen. `newer` is true where that is not this change. */
export type HeldUp = { partition: number; since: string; why: string }
export type RowVersion = { key: string; epoch: number; time: string; seq: string; deleted: boolean; parked: boolean; newer: boolean }

/** Milliseconds of each step; null where the step has not happened. */
export type Lags = Record<'source_to_received' | 'received_to_published' | 'published_to_applied' | 'received_to_applied', number | null>

/** The whole way of one change. */
export type Trace = {
  received: Received
  waiting: Waiting | null
  published: Published[]
  applied: Applied | null
  parked: SetAside | null
  /** The partition that waits at this change, and why. */
  held_up: HeldUp | null
  row_version: RowVersion | null
  rejected: { id: string; received_at: string; reason: string }[]
  lags: Lags
}

/**
 * Follows one change by its seq_id through every table; undefined where no such change was received here.
 *
 * `target` is the database it is applied in, where that is another: what is parked, held up or known of the row is only
 * there, and the outcome is there first. An outcome that left it (its horizon) is still in this one.
 */
export async function traceOf(sql: Sql, seqId: string, target: Sql = sql): Promise<Trace | undefined> {
  const [received] = await receivedOf(sql, seqId)
  if (received === undefined) return undefined
  const [waiting] = await waitingOf(sql, seqId)
  const published = [...await publishedOf(sql, seqId)]
  const [there] = await appliedOf(target, received.origin, seqId)
  const [applied] = there !== undefined || target === sql ? [there] : await appliedOf(sql, received.origin, seqId)
  const [parked] = await parkedOf(target, received.origin, seqId)
  const [heldUp] = await heldUpOf(target, seqId)
  const [rowVersion] = await rowVersionOf(target, received, parked?.key ?? null)
  const rejected = [...await rejectedOf(sql, seqId)]
  const [lags] = await lagsOf(sql, received, published, applied)
  return {
    received,
    waiting: waiting ?? null,
    published,
    applied: applied ?? null,
    parked: parked ?? null,
    held_up: heldUp ?? null,
    row_version: rowVersion ?? null,
    rejected,
    lags: lags ?? { source_to_received: null, received_to_published: null, published_to_applied: null, received_to_applied: null },
  }
}

function receivedOf(sql: Sql, seqId: string): PromiseLike<Received[]> {
  return sql<Received[]>`
    select seq_id, origin, source, topicname, schema_name, table_name, operation, dialect, row_key, source_time,
           epoch || ':' || (extract(epoch from source_time) * 1000000)::bigint || ':' || seq_id as version, received_at,
           traceparent, octet_length(producer_payload::text) as bytes, producer_payload::text as payload
    from auditlog.producer_log where seq_id = ${seqId}`
}

/** The first position of an event is its seq_id, so every lane is probed by primary key. */
function waitingOf(sql: Sql, seqId: string): PromiseLike<Waiting[]> {
  return sql<Waiting[]>`
    select e.lane, e.position, e.attempt, e.due_at, case when l.held_until > clock_timestamp() then l.holder end as holder, l.term
    from outbox.lane l join outbox.event e on e.lane = l.lane and e.position = ${seqId}`
}

/** The first publishing by its position and the latest by its flag: both have an index, those between have not. */
function publishedOf(sql: Sql, seqId: string): PromiseLike<Published[]> {
  return sql<Published[]>`
    select position, attempt, producer_publish_status, producer_failure_log, producer_publish_time, partition, "offset"
    from auditlog.publish_log where position = ${seqId}
    union
    select position, attempt, producer_publish_status, producer_failure_log, producer_publish_time, partition, "offset"
    from auditlog.publish_log where seq_id = ${seqId} and latest
    order by 1`
}

function appliedOf(sql: Sql, origin: number, seqId: string): PromiseLike<Applied[]> {
  return sql<Applied[]>`
    select consumer_deploy_status, consumer_failure_log, consumer_update_time, attempt, destination, partition, "offset", consumer_query
    from auditlog.consumer_log where origin = ${origin} and seq_id = ${seqId}`
}

function heldUpOf(sql: Sql, seqId: string): PromiseLike<HeldUp[]> {
  return sql<HeldUp[]>`
    select partition, waiting_since as since, waiting_for as why from inbox.position where waiting_seq_id = ${seqId}`
}

function parkedOf(sql: Sql, origin: number, seqId: string): PromiseLike<SetAside[]> {
  return sql<SetAside[]>`
    select reason, message, key, attempts, parked_at from inbox.parked where origin = ${origin} and seq_id = ${seqId}`
}

/**
 * The row's version by its key as posted, spelled as the target's types spell it (numbers trimmed, blanks dropped).
 * A key of a type with other spellings (a date, a boolean) is found only where both spell it alike.
 */
function rowVersionOf(sql: Sql, received: Received, parkedKey: string | null): PromiseLike<RowVersion[]> {
  return sql<RowVersion[]>`
    with part as (
      select r.id as relation, k.place,
             case when t.typname in ('numeric', 'int2', 'int4', 'int8') and k.value ~ '^ *[+-]?[0-9]+([.][0-9]*)? *$'
                  then trim_scale(k.value::numeric)::text else rtrim(k.value, ' ') end as text
      from outbox.relation r
      cross join jsonb_array_elements_text(coalesce(${received.row_key}::text::jsonb, '[]')) with ordinality as k(value, place)
      left join pg_attribute a on a.attrelid = to_regclass(format('%I.%I', r.target_schema, r.target_table)) and a.attname = r.key_columns[k.place]
      left join pg_type t on t.oid = a.atttypid
      where r.source_schema = ${received.schema_name} and r.source_table = ${received.table_name}
    ), spelled as (
      select relation, case when count(*) = 1 then max(text) else jsonb_agg(text order by place)::text end as key from part group by relation
    )
    select v.key, v.epoch, v.time, v.seq, v.deleted, v.parked, (v.origin, v.seq) <> (${received.origin}, ${received.seq_id}) as newer
    from spelled s join inbox.row_version v on v.relation = s.relation and v.key in (s.key, ${parkedKey})
    order by v.key <> s.key limit 1`
}

function rejectedOf(sql: Sql, seqId: string): PromiseLike<Trace['rejected']> {
  return sql<Trace['rejected']>`
    select id, received_at, reason from auditlog.rejected_request
    where state = 'RETRIED' and ${seqId} = any(seq_ids) order by id`
}

/** A change that was published again after it was applied counts from the publishing that was applied. */
function lagsOf(sql: Sql, received: Received, published: readonly Published[], applied: Applied | undefined): PromiseLike<Lags[]> {
  return sql<Lags[]>`
    select round(extract(epoch from received - source) * 1000, 3)::float8 as source_to_received,
           round(extract(epoch from first_published - received) * 1000, 3)::float8 as received_to_published,
           round(extract(epoch from applied - coalesce(published, first_published)) * 1000, 3)::float8 as published_to_applied,
           round(extract(epoch from applied - received) * 1000, 3)::float8 as received_to_applied
    from (select ${received.source_time}::text::timestamptz as source, ${received.received_at}::text::timestamptz as received,
                 ${applied?.consumer_update_time ?? null}::text::timestamptz as applied) as times
    cross join lateral (
      select min(at) as first_published, max(at) filter (where at <= applied) as published
      from unnest(${published.map(({ producer_publish_time: at }) => at)}::text[]) as texts(text) cross join lateral (select text::timestamptz as at) as typed
    ) as publishings`
}
