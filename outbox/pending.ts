import { isSideLane, withSideRecords } from './side-record.ts'
import type { Sql } from './sql.ts'

/**
 * An event as the relay sends it. `position` is a bigint as text; `key` and `value` are the record's JSON texts. All from
 * topicname on are null where there is nothing to send: a change that is not in producer_log any more, or an event that
 * is `obsolete`, a retry or the record of a failure whose change healed meanwhile.
 */
export type PendingEvent = {
  lane: number
  position: string
  bytes: number
  topicname: string | null
  id: string | null
  version: string | null
  key: string | null
  value: string | null
  traceparent: string | null
  obsolete?: true
}

/** A lane to read from: above `floor`, without the positions in flight. */
export type ReadableLane = { lane: number; floor: string; inflight: ReadonlySet<string> }

/** How much one read takes at most. One event is always taken, however large. */
export type ReadLimits = { rows: number; bytes: number }

/**
 * Reads what is pending in the lanes, in (lane, position) order, without what is in flight.
 *
 * Rows are the truth and there is no cursor: an event that commits late with a low position is found like any other.
 * The lanes that have something share `rows` evenly, so that one full lane does not keep the others waiting.
 * Only the index entries are looked at until the limits are applied; a payload beyond them is never read.
 *
 * The positions in flight are taken out after a limit that leaves room for them, and not in the same scan: the planner
 * thinks that `<> all` of thousands leaves nothing, and then sorts each lane instead of walking its index (10 times
 * slower).
 *
 * The value is the posted text with our members in front. It is an object, so it has a `"` unless it is empty: that tells
 * whether a comma is needed without looking through megabytes (ltrim of 20 MB takes 240 MB).
 *
 * What retries and records of failures need besides comes by a statement of its own, run only where there are some:
 * joined in here it cost the plain ones 10 %.
 */
export async function nextEvents(sql: Sql, lanes: readonly ReadableLane[], limits: ReadLimits): Promise<PendingEvent[]> {
  if (lanes.length === 0) return []
  const flying = lanes.flatMap(({ inflight }) => [...inflight])
  const events = await sql<PendingEvent[]>`
    with mine as materialized (
      select c.lane, c.floor, c.flying
      from unnest(${list(lanes.map(({ lane }) => lane))}::smallint[], ${list(lanes.map(({ floor }) => floor))}::bigint[],
                  ${list(lanes.map(({ inflight }) => inflight.size))}::integer[]) as c(lane, floor, flying)
      where exists (
        select from (
          select e.position from outbox.event e
          where e.lane = c.lane and e.position > c.floor and (e.due_at is null or e.due_at <= now())
          order by e.position limit c.flying + 1
        ) e
        where e.position <> all (${list(flying)}::bigint[])
      )
    ), ahead as materialized (
      select e.*, row_number() over (partition by e.lane order by e.position) as turn
      from mine cross join lateral (
        select e.lane, e.position, e.seq_id, e.attempt, e.bytes
        from outbox.event e
        where e.lane = mine.lane and e.position > mine.floor and (e.due_at is null or e.due_at <= now())
        order by e.position
        limit mine.flying + (select ceil(${limits.rows}::numeric / count(*)) from mine)
      ) e
      where e.position <> all (${list(flying)}::bigint[])
    ), taken as materialized (
      select t.lane, t.position, t.seq_id, t.attempt, t.bytes
      from (select a.*, sum(a.bytes::bigint) over (order by a.turn, a.lane rows unbounded preceding) as so_far from ahead a) t
      where t.so_far - t.bytes < ${limits.bytes}::bigint -- the one that passes the limit is taken, or it would hide all behind it
      order by t.turn, t.lane
      limit ${limits.rows}
    )
    select t.lane, t.position, t.bytes, p.topicname, p.traceparent,
           p.origin || ':' || t.seq_id || ':' || t.attempt as id,
           p.epoch || ':' || (extract(epoch from p.source_time) * 1000000)::bigint || ':' || t.seq_id as version,
           '[' || to_json(p.schema_name) || ',' || to_json(p.table_name)
             || case when p.row_key is null or p.row_key = '[]' then ']' else ',' || substr(p.row_key, 2) end as key,
           '{"SEQ_ID":"' || t.seq_id || '","TOPICNAME":' || to_json(p.topicname) || ',"SOURCE":' || to_json(p.source)
             || ',"RECEIVED_AT":"' || to_char(p.received_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') || '"'
             || case when strpos(p.body, '"') > 0 then ',' else '' end || substr(p.body, strpos(p.body, '{') + 1) as value
    from taken t
    left join lateral (
      select l.topicname, l.traceparent, l.origin, l.epoch, l.source_time, l.received_at, l.schema_name, l.table_name, l.row_key, l.source,
             coalesce(l.clean_payload, l.producer_payload::text) as body
      from auditlog.producer_log l where l.seq_id = t.seq_id limit 1
    ) p on true
    order by t.lane, t.position`
  return events.some(({ lane }) => isSideLane(lane)) ? withSideRecords(sql, events) : events
}

/**
 * A literal that the server reads straight into the array type: the driver's own array code costs more than the statement
 * at 2,000 elements, and through ::text it was no constant for the planner and was parsed for each row.
 */
function list(values: readonly (string | number)[]): string {
  return `{${values.join()}}`
}
