import type { Sql } from './sql.ts'

/**
 * Ends the leases that lie further ahead than any lease does, `leaseMs` from now: those who live renew them until then.
 * True where some are left: their rows are locked, by an ack as it may be, and nobody else would find them.
 */
export async function endLeases(sql: Sql, leaseMs: number): Promise<boolean> {
  const [row] = await sql<{ left: boolean }[]>`
    with far as materialized (
      select l.lane from outbox.lane l where l.held_until > now() + ${leaseMs}::integer * interval '2 ms'
    ), ended as (
      update outbox.lane l set held_until = now() + ${leaseMs}::integer * interval '1 ms'
      from (select x.lane from outbox.lane x where x.lane in (select far.lane from far) order by x.lane for update skip locked) as free
      where l.lane = free.lane
      returning l.lane
    )
    select (select count(*) from ended) < (select count(*) from far) as left`
  return row?.left ?? false
}

/**
 * Ends what waits by a clock of the database that has stepped back since: it would wait for as long as the step was. Whatever
 * was to be tried again at some moment is due now, since nobody can say any more when that is: a try too early costs an
 * attempt, an hour too late is an hour. Events have a moment in the lanes of retries and records of failures only.
 *
 * Rows that are locked are left out. They are being written, by the clock as it is.
 */
export async function endWaits(sql: Sql): Promise<void> {
  await sql`
    with events as (
      update outbox.event e set due_at = now()
      from (select x.lane, x.position from outbox.event x where x.lane >= 10000 and x.due_at > now() for update skip locked) as far
      where e.lane = far.lane and e.position = far.position
    ), parked as (
      update inbox.parked p set retry_at = now()
      from (select x.origin, x.seq_id from inbox.parked x where x.retry_at > now() for update skip locked) as far
      where p.origin = far.origin and p.seq_id = far.seq_id
    ), queues as (
      update outbox.relation r set queue_closed_until = now()
      from (select x.id from outbox.relation x where x.queue_closed_until > now() for update skip locked) as far
      where r.id = far.id
    ), shippers as (
      update inbox.shipper s set held_until = now()
      from (select x.origin from inbox.shipper x where x.held_until > now() for update skip locked) as far
      where s.origin = far.origin
    )
    update outbox.notice_channel c set held_until = least(c.held_until, now()), next_at = least(c.next_at, now())
    from (select x.channel from outbox.notice_channel x where x.held_until > now() or x.next_at > now() for update skip locked) as far
    where c.channel = far.channel`
}
