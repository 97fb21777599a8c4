import type { Claim } from './claim.ts'
import type { Sql } from './sql.ts'

/** An event that the broker acknowledged, and where it lies; position and offset are bigints as text. */
export type Published = { lane: number; position: string; partition: number; offset: string }

/**
 * Removes acknowledged events from the outbox and writes publish_log, in one statement.
 *
 * Returns the lanes that were still held, and how many events left. A lane of `claims` that is missing is fenced: its
 * claim ended and its events stay. The count says nothing of that; an event acked twice is counted once.
 *
 * The lanes are locked first, in order: without the lock a relay that stalled here could delete under a successor's
 * claim, and with it the successor's claim skips the lane. An event's first position is its seq_id, so only a later
 * publication of the same change (a new position) has an earlier publish_log row to take `latest` from.
 */
export async function ack(
  sql: Sql,
  holder: string,
  claims: readonly Pick<Claim, 'lane' | 'term'>[],
  published: readonly Published[],
): Promise<{ held: number[]; count: number }> {
  const [row] = await sql<{ held: number[]; count: number }[]>`
    with held as materialized (
      select l.lane from outbox.lane l
      join unnest(${list(claims.map(({ lane }) => lane))}::smallint[], ${list(claims.map(({ term }) => term))}::bigint[]) as c(lane, term)
        on c.lane = l.lane and c.term = l.term
      where l.holder = ${holder}
      order by l.lane for share of l
    ), gone as (
      delete from outbox.event e
      using unnest(${list(published.map(({ lane }) => lane))}::smallint[], ${list(published.map(({ position }) => position))}::bigint[],
                   ${list(published.map(({ partition }) => partition))}::integer[], ${list(published.map(({ offset }) => offset))}::bigint[])
              as a(lane, position, partition, "offset")
      where e.lane = a.lane and e.position = a.position and a.lane in (select h.lane from held h)
      returning e.position, e.seq_id, e.attempt, a.partition, a."offset"
    ), earlier as (
      update auditlog.publish_log l set latest = false
      from gone where gone.position <> gone.seq_id and l.seq_id = gone.seq_id and l.latest and l.position < gone.position
      returning l.position
    ), logged as (
      insert into auditlog.publish_log (position, seq_id, attempt, producer_publish_status, partition, "offset")
      select g.position, g.seq_id, g.attempt, 'PUBLISHED', g.partition, g."offset"
      from gone g where (select count(*) from earlier) >= 0 -- earlier must have run: "latest" is unique per change
      order by g.position desc
      on conflict do nothing
      returning position
    ), overtaken as (
      -- A later publication of the same change was acked before, or is in this batch.
      insert into auditlog.publish_log (position, seq_id, attempt, producer_publish_status, partition, "offset", latest)
      select g.position, g.seq_id, g.attempt, 'PUBLISHED', g.partition, g."offset", false
      from gone g where g.position not in (select l.position from logged l)
      on conflict do nothing
    )
    select coalesce((select array_agg(h.lane::integer) from held h), '{}') as held, (select count(*)::integer from gone) as count`
  if (row === undefined) throw new Error('an aggregate without a row')
  return row
}

/** A literal that the server reads; the driver's own array code costs more than the statement at 2,000 elements. */
function list(values: readonly (string | number)[]): string {
  return `{${values.join()}}`
}
