import type { PendingQuery, Row } from 'postgres'
import type { Sql } from './sql.ts'

/** A relay's right to a lane. `term` names this claim and no other; events at or below `floor` are known to be gone. */
export type Claim = { lane: number; term: string; floor: string }

/**
 * Says that `holder` is alive for `aliveMs` more and returns how many relays are, and how many lanes there are to share.
 *
 * ceil(lanes / living) is the fair share: with it no relay has to know of any other by name.
 *
 * `back`: the clock of the database has stepped back, since some relay said that it is alive for longer than any does. What
 * the others said by the clock of then is put right here, so that one of them finds it; the rest is for endLeases and endWaits.
 */
export async function announce(sql: Sql, holder: string, aliveMs: number): Promise<{ lanes: number; living: number; back: boolean }> {
  const [row] = await sql<{ lanes: number; living: number; back: boolean }[]>`
    with far as materialized (
      select r.holder from outbox.relay r where r.alive_until > now() + ${aliveMs}::integer * interval '2 ms'
    ), me as (
      insert into outbox.relay (holder, alive_until) values (${holder}, now() + ${aliveMs}::integer * interval '1 ms')
      on conflict (holder) do update set alive_until = excluded.alive_until
      returning holder
    ), others as ( -- behind me, or two relays could wait for each other's row
      update outbox.relay r set alive_until = now() + ${aliveMs}::integer * interval '1 ms'
      from (
        select x.holder from outbox.relay x
        where x.holder in (select far.holder from far) and x.holder <> (select me.holder from me) for update skip locked
      ) as x
      where r.holder = x.holder
    )
    select (select count(*)::integer from outbox.lane) as lanes, exists (select from far) as back,
           (select count(*)::integer + 1 from outbox.relay r where r.holder <> ${holder} and r.alive_until > now()) as living`
  if (row === undefined) throw new Error('an aggregate without a row')
  return row
}

/** Takes the holder off the list, with those that died more than a minute ago; the others' share grows at once. */
export async function withdraw(sql: Sql, holder: string): Promise<void> {
  await sql`
    delete from outbox.relay where holder in (
      select r.holder from outbox.relay r
      where r.holder = ${holder} or r.alive_until < now() - interval '1 minute'
      order by r.holder for update skip locked
    )`
}

/**
 * Takes at most `most` free lanes for `holder` until the lease runs out, those free for longest first.
 *
 * SKIP LOCKED is on lanes and never on events, so that two relays cannot work on one lane. The lanes are chosen in a
 * materialized CTE: inside an `in (...)` the plan decides how often `limit` is evaluated.
 */
export async function claimLanes(sql: Sql, holder: string, most: number, leaseMs: number): Promise<Claim[]> {
  return sql<Claim[]>`
    with free as materialized (
      select l.lane from outbox.lane l where l.held_until < now()
      order by l.held_until, l.lane limit ${most} for update skip locked
    )
    update outbox.lane l
    set holder = ${holder}, term = l.term + 1, held_until = now() + ${leaseMs}::integer * interval '1 ms'
    from free where l.lane = free.lane
    returning l.lane, l.term, l.floor`
}

/**
 * The part of a statement that locks the lanes of these claims that are still held, and names them.
 *
 * In lane order, like every statement that locks more than one lane: an ack and a renewal would deadlock.
 */
export function lockHeld(sql: Sql, holder: string, claims: readonly Claim[]): PendingQuery<Row[]> {
  return sql`
    select l.lane from outbox.lane l
    join unnest(${lanesOf(claims)}::smallint[], ${termsOf(claims)}::bigint[]) as c(lane, term) on c.lane = l.lane and c.term = l.term
    where l.holder = ${holder}
    order by l.lane for no key update of l`
}

/** Prolongs the claims and returns the lanes still held; one that is missing belongs to somebody else, or soon will. */
export async function renewLanes(sql: Sql, holder: string, claims: readonly Claim[], leaseMs: number): Promise<number[]> {
  const rows = await sql<{ lane: number }[]>`
    with mine as materialized (${lockHeld(sql, holder, claims)})
    update outbox.lane l set held_until = now() + ${leaseMs}::integer * interval '1 ms'
    from mine where l.lane = mine.lane
    returning l.lane`
  return rows.map((row) => row.lane)
}

/** Gives lanes back, claimable at once. The caller has nothing of theirs in flight. Returns those it still held. */
export async function releaseLanes(sql: Sql, holder: string, claims: readonly Claim[]): Promise<number[]> {
  const rows = await sql<{ lane: number }[]>`
    with mine as materialized (${lockHeld(sql, holder, claims)})
    update outbox.lane l set holder = null, held_until = '-infinity'
    from mine where l.lane = mine.lane
    returning l.lane`
  return rows.map((row) => row.lane)
}

// Arrays go as literals that the server reads: the driver's own array code costs more than the statement at 2,000 elements.
function lanesOf(claims: readonly Claim[]): string {
  return `{${claims.map((claim) => claim.lane).join()}}`
}

function termsOf(claims: readonly Claim[]): string {
  return `{${claims.map((claim) => claim.term).join()}}`
}
