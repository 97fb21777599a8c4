import type { Operation } from './change.ts'
import type { Sql } from './sql.ts'

/** One change that was read and is to be put on disk. Keys are uuids, `time` is as microsToTimestamp gives it. */
export type Accepted = {
  eventKey: string
  /** Only for a key that the client chose. */
  contentHash: string | null
  topic: string
  source: string
  schema: string
  table: string
  operation: Operation
  dialect: string
  /** The text as received. */
  payload: string
  /** The text without relay fields, null where it had none. */
  clean: string | null
  rowKey: string | null
  time: string
  traceparent: string | null
}

/** `ordinal` is the place in the group, from 0. */
export type Inserted = { ordinal: number; seqId: string }

/** Above this many characters a change goes alone, its text as a parameter of its own: in the document it is escaped twice. */
export const BIG_CHANGE = 1 << 20

/**
 * Puts a group on disk: catalogue of keys, log and event, all or none. Returns those that were new, with their seq_id; of
 * the rest the event key was there before (lookUpRepeats), or came earlier in the same group.
 *
 * The transaction id is taken before the first number (F3 of the faults seen: a floor could pass a number whose
 * transaction has none). Keys go in in their own order, or two groups with the same keys deadlock. A change above
 * BIG_CHANGE must be a group of one.
 *
 * received_at is by the clock of the database. Where that is behind what it was, for the last change was received later,
 * the clock of this process is believed, as far as TIME or the last receipt bear it out (docs/decisions/0014).
 */
export async function insertGroup(sql: Sql, changes: readonly Accepted[]): Promise<Inserted[]> {
  const [first] = changes
  const alone = changes.length === 1 && first !== undefined && first.payload.length > BIG_CHANGE ? first : undefined
  const document = JSON.stringify(alone === undefined ? changes : [{ ...alone, payload: null, clean: null }])
  return sql<Inserted[]>`
    with x as materialized (
      select pg_current_xact_id() as xid
    ), item as materialized (
      select sorted.*, nextval('outbox.position') as seq_id
      from (
        select t.*, r.change
        from x cross join rows from (
          json_to_recordset(${document}::text::json) as ("eventKey" uuid, "contentHash" uuid, topic text, source text,
            schema text, "table" text, operation text, dialect text, payload text, clean text, "rowKey" text,
            time timestamptz, traceparent text)
        ) with ordinality as t(event_key, content_hash, topic, source, schema_name, table_name, operation, dialect, payload,
          clean, row_key, source_time, traceparent, ordinal)
        cross join lateral (select coalesce(t.payload, ${alone?.payload ?? null}::text) as change) as r
        order by t.ordinal
      ) as sorted
    ), fresh as (
      insert into outbox.seen (event_key, seq_id, content_hash)
      select event_key, seq_id, content_hash from item order by event_key, seq_id
      on conflict do nothing
      returning event_key, seq_id
    ), numbered as materialized (
      select item.*, coalesce(item.clean, ${alone?.clean ?? null}::text) as clean_change
      from item join fresh on fresh.seq_id = item.seq_id and fresh.event_key = item.event_key
    ), earlier as materialized (
      select l.received_at as at from auditlog.producer_log l order by l.seq_id desc limit 1
    ), logged as (
      insert into auditlog.producer_log (seq_id, origin, topicname, source, schema_name, table_name, operation,
        producer_payload, clean_payload, dialect, row_key, source_time, received_at, epoch, traceparent)
      select n.seq_id, d.origin, n.topic, n.source, n.schema_name, n.table_name, n.operation, n.change::json, n.clean_change,
        n.dialect, n.row_key, n.source_time,
        case when e.at > clock_timestamp() + interval '1 minute'
          then greatest(clock_timestamp(), least(${new Date().toISOString()}::timestamptz, greatest(n.source_time, e.at)))
          else clock_timestamp() end,
        coalesce(r.epoch, 1), n.traceparent
      from numbered n cross join outbox.database d left join earlier e on true
      left join outbox.relation r on r.source_schema = n.schema_name and r.source_table = n.table_name
      order by n.seq_id
      returning seq_id
    ), waiting as (
      insert into outbox.event (lane, position, seq_id, bytes)
      select outbox.lane_of(d.lanes, n.schema_name, n.table_name, n.row_key), n.seq_id, n.seq_id,
        octet_length(coalesce(n.clean_change, n.change))
      from numbered n cross join outbox.database d
      order by n.seq_id
    )
    select (item.ordinal - 1)::integer as ordinal, logged.seq_id as "seqId"
    from logged join item on item.seq_id = logged.seq_id`
}

/** What is known of a key that was there before. */
export type Repeat = { eventKey: string; seqId: string; contentHash: string | null }

/** A statement of its own: in that of insertGroup the rows of another group that committed meanwhile cannot be seen. */
export async function lookUpRepeats(sql: Sql, keys: readonly string[]): Promise<Repeat[]> {
  return sql<Repeat[]>`
    select event_key as "eventKey", seq_id as "seqId", content_hash as "contentHash"
    from outbox.seen where event_key = any(${keys}::uuid[])`
}
