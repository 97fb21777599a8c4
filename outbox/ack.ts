import type { PendingQuery, Row } from 'postgres'
import type { Claim } from './claim.ts'
import { writePublishLog } from './publish-log.ts'
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
 * claim, and with it the successor's claim skips the lane.
 */
export async function ack(
  sql: Sql,
  holder: string,
  claims: readonly Pick<Claim, 'lane' | 'term'>[],
  published: readonly Published[],
): Promise<{ held: number[]; count: number }> {
  const [row] = await sql<{ held: number[]; count: number }[]>`
    with held as materialized (${shareHeld(sql, holder, claims)}), gone as (
      delete from outbox.event e
      using unnest(${list(published.map(({ lane }) => lane))}::smallint[], ${list(published.map(({ position }) => position))}::bigint[],
                   ${list(published.map(({ partition }) => partition))}::integer[], ${list(published.map(({ offset }) => offset))}::bigint[])
              as a(lane, position, partition, "offset")
      where e.lane = a.lane and e.position = a.position and a.lane = any (array(select h.lane from held h))
      returning e.position, e.seq_id, e.attempt, 'PUBLISHED' as status, null as failure, a.partition, a."offset", e.kind, e.origin
    ), ${writePublishLog(sql)}
    select coalesce((select array_agg(h.lane::integer) from held h), '{}') as held, (select count(*)::integer from gone) as count`
  if (row === undefined) throw new Error('an aggregate without a row')
  return row
}

/**
 * Removes events of which nothing is left to send, and writes nothing: their changes healed meanwhile. Returns what ack
 * does.
 */
export async function discard(
  sql: Sql,
  holder: string,
  claims: readonly Pick<Claim, 'lane' | 'term'>[],
  events: readonly { lane: number; position: string }[],
): Promise<{ held: number[]; count: number }> {
  const [row] = await sql<{ held: number[]; count: number }[]>`
    with held as materialized (${shareHeld(sql, holder, claims)}), gone as (
      delete from outbox.event e
      using unnest(${list(events.map(({ lane }) => lane))}::smallint[], ${list(events.map(({ position }) => position))}::bigint[]) as a(lane, position)
      where e.lane = a.lane and e.position = a.position and a.lane in (select h.lane from held h)
      returning e.position
    )
    select coalesce((select array_agg(h.lane::integer) from held h), '{}') as held, (select count(*)::integer from gone) as count`
  if (row === undefined) throw new Error('an aggregate without a row')
  return row
}

/** The part of a statement that names the lanes of these claims that are still held, and keeps them so until it ends. */
export function shareHeld(sql: Sql, holder: string, claims: readonly Pick<Claim, 'lane' | 'term'>[]): PendingQuery<Row[]> {
  return sql`
    select l.lane from outbox.lane l
    join unnest(${list(claims.map(({ lane }) => lane))}::smallint[], ${list(claims.map(({ term }) => term))}::bigint[]) as c(lane, term)
      on c.lane = l.lane and c.term = l.term
    where l.holder = ${holder}
    order by l.lane for share of l`
}

/** A literal that the server reads; the driver's own array code costs more than the statement at 2,000 elements. */
function list(values: readonly (string | number)[]): string {
  return `{${values.join()}}`
}
