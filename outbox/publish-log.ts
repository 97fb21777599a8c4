import type { PendingQuery, Row } from 'postgres'
import type { Sql } from './sql.ts'

/**
 * The parts of a statement that write publish_log for its CTE `gone` (position, seq_id, attempt, status, failure,
 * partition, "offset", kind, origin: as outbox.event has them) and move the flag "latest".
 *
 * An event's first position is its seq_id, so only a later publication of the same change (a new position) has an earlier
 * row to take the flag from. Records of failures and changes of other origins never have it, nor have retries that were not
 * published: their change was, and when it heals they leave without a further word.
 */
export function writePublishLog(sql: Sql): PendingQuery<Row[]> {
  return sql`
    told as materialized (
      select g.position, g.seq_id, g.attempt, g.status, g.failure, g.partition, g."offset",
             nullif(g.kind, 'change') as kind, nullif(g.origin, d.origin) as origin,
             g.kind <> 'error' and (g.kind = 'change' or g.status = 'PUBLISHED') and (g.origin is null or g.origin = d.origin) as counts
      from gone g cross join outbox.database d
    ), earlier as (
      update auditlog.publish_log l set latest = false
      from told t where t.position <> t.seq_id and t.counts and l.seq_id = t.seq_id and l.latest and l.position < t.position
      returning l.position
    ), logged as (
      insert into auditlog.publish_log
        (position, seq_id, attempt, producer_publish_status, producer_failure_log, partition, "offset", kind, origin)
      select t.position, t.seq_id, t.attempt, t.status, t.failure, t.partition, t."offset", t.kind, t.origin
      from told t where t.counts and (select count(*) from earlier) >= 0 -- earlier must have run: "latest" is unique per change
      order by t.position desc
      on conflict do nothing
      returning position
    ), overtaken as (
      -- A later publication of the same change was acked before, or is in this batch.
      insert into auditlog.publish_log
        (position, seq_id, attempt, producer_publish_status, producer_failure_log, partition, "offset", kind, origin, latest)
      select t.position, t.seq_id, t.attempt, t.status, t.failure, t.partition, t."offset", t.kind, t.origin, false
      from told t where t.position not in (select l.position from logged l)
      on conflict do nothing
    )`
}
