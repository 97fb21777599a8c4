import { shareHeld } from './ack.ts'
import type { Claim } from './claim.ts'
import { writePublishLog } from './publish-log.ts'
import { isBehindHorizon } from './publish-again.ts'
import type { Sql } from './sql.ts'

/** An event whose record the broker refused for good, and what it said. */
export type Refused = { lane: number; position: string; code: string; message: string }

/** How a refused event goes on: `backoff` milliseconds before the first try, twice as long before each further one. */
export type Course = { maxRetries: number; backoff: number; errorTopic: string; recipients: readonly string[] }

/**
 * Moves refused events out of the way of those behind them, in one statement, and returns what ack does.
 *
 * Each goes to a lane of its kind (retry, or error for the record of a failure) at a new position, to be tried again when
 * due; publish_log shows RETRYING. After `maxRetries` it leaves: publish_log says FAILED, and an event of kind error takes
 * the payload to the error topic. The record of a failure just leaves, or it would breed another one for ever. The change
 * of a retry that leaves is FAILED in the inbox too, since nothing tries it any more.
 *
 * The tries of a change are its attempts. Retries and records of failures carry the attempt of the apply, so theirs are
 * counted in publish_log. The rows are locked before anything is made of them: a statement that is sent again while the
 * first one runs finds nothing. The transaction id comes before the positions (F3 of the faults seen).
 */
export async function refuse(
  sql: Sql,
  holder: string,
  claims: readonly Pick<Claim, 'lane' | 'term'>[],
  refused: readonly Refused[],
  course: Course,
): Promise<{ held: number[]; count: number }> {
  const [row] = await sql<{ held: number[]; count: number }[]>`
    with held as materialized (${shareHeld(sql, holder, claims)}), failing as materialized (
      select e.*, r.code, r.message,
             case e.kind when 'change' then e.attempt else (
               select count(*) from auditlog.publish_log l
               where l.producer_publish_status = 'RETRYING' and l.seq_id = e.seq_id and l.kind = e.kind and l.attempt = e.attempt
                 and l.origin is not distinct from nullif(e.origin, (select d.origin from outbox.database d))
             ) end as tries
      from json_to_recordset(${JSON.stringify(refused)}::text::json) as r(lane smallint, position bigint, code text, message text)
      join outbox.event e on e.lane = r.lane and e.position = r.position
      where e.lane in (select h.lane from held h)
      for update of e
    ), numbered as materialized (
      select f.*, f.tries < ${course.maxRetries}::integer as again, nextval('outbox.position') as next
      from (select pg_current_xact_id()) as x cross join failing f
    ), retried as (
      update outbox.event e
      set lane = outbox.side_lane(case n.kind when 'error' then 'error' else 'retry' end, n.seq_id), position = n.next,
          attempt = e.attempt + case n.kind when 'change' then 1 else 0 end,
          due_at = clock_timestamp() + ${course.backoff}::integer * 2 ^ least(n.tries, 20) * interval '1 ms'
      from numbered n where n.again and e.lane = n.lane and e.position = n.position
    ), given_up as (
      delete from outbox.event e using numbered n where not n.again and e.lane = n.lane and e.position = n.position
    ), told_error as (
      insert into outbox.event (lane, position, seq_id, attempt, kind, bytes, origin, topic, head)
      select outbox.side_lane('error', n.seq_id), n.next, n.seq_id, n.attempt, 'error', n.bytes + octet_length(h.head), n.origin,
             ${course.errorTopic}::text, h.head
      from numbered n
      cross join lateral (select '"recipients":' || ${JSON.stringify(course.recipients)}::text || ',"error":' || json_build_object(
        'code', n.code, 'message', n.message, 'sqlstate', null::text, 'side', 'publish', 'attempts', n.tries)::text as head) h
      where not n.again and n.kind <> 'error'
    ), failed as (
      update inbox.applied a
      set status = 'FAILED', failure = coalesce(a.failure || '; ', '') || 'its retry could not be published: ' || n.code
      from numbered n
      where not n.again and n.kind = 'retry' and a.seq_id = n.seq_id and a.status = 'RETRYING'
        and a.origin = coalesce(n.origin, (select d.origin from outbox.database d))
    ), gone as (
      select n.position, n.seq_id, n.attempt, case when n.again then 'RETRYING' else 'FAILED' end as status,
             n.code || ': ' || n.message as failure, null::integer as partition, null::bigint as "offset", n.kind, n.origin
      from numbered n
    ), ${writePublishLog(sql)}
    select coalesce((select array_agg(h.lane::integer) from held h), '{}') as held, (select count(*)::integer from gone) as count`
  if (row === undefined) throw new Error('an aggregate without a row')
  return row
}

/**
 * Puts changes whose publishing FAILED into the outbox again, with all their attempts, and returns those it put back: the
 * cause is mended, so what was tried before says nothing. The others were published meanwhile, are on their
 * way, or are retries, which `parked retry` puts back.
 *
 * The audit shows them as PENDING until then, so the watermark goes back below them. It is written also where it is below
 * them already: somebody may be moving it over what was FAILED until now. Their lane is the row's own. Those from before the
 * horizon stay as they are; `horizon` as in isBehindHorizon.
 */
export async function publishAgain(sql: Sql, seqIds: readonly string[], horizon: number | null = null): Promise<string[]> {
  const rows = await sql<{ seq_id: string }[]>`
    with x as materialized (
      select pg_current_xact_id()
    ), failed as (
      update auditlog.publish_log l set latest = false
      from x where l.seq_id = any(${`{${seqIds.join()}}`}::bigint[]) and l.latest and l.producer_publish_status = 'FAILED' and l.kind is null
        and exists (select from auditlog.producer_log p where p.seq_id = l.seq_id and not ${isBehindHorizon(sql, horizon)})
      returning l.seq_id
    ), lowered as (
      update auditlog.settled s set up_to = least(s.up_to, f.first - 1)
      from (select min(f.seq_id) as first from failed f) f where f.first is not null
    )
    insert into outbox.event (lane, position, seq_id, bytes)
    select outbox.lane_of(d.lanes, p.schema_name, p.table_name, p.row_key), nextval('outbox.position'), p.seq_id,
           octet_length(coalesce(p.clean_payload, p.producer_payload::text))
    from (select f.seq_id from failed f order by f.seq_id) f
    join auditlog.producer_log p on p.seq_id = f.seq_id
    cross join outbox.database d
    returning seq_id`
  return rows.map((row) => row.seq_id)
}
