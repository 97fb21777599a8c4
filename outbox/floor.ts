import { lockHeld } from './claim.ts'
import type { Claim } from './claim.ts'
import type { Sql } from './sql.ts'

/**
 * Raises the floors of lanes, a step a statement; `run` executes each as a transaction of its own.
 *
 * A floor spares the readers the index entries of events that left, which an old snapshot keeps alive (360 ms a read
 * became 6 ms). It may pass a position only when no open transaction can still commit one at or below it:
 *
 * 1. `position`: P, the last number that was handed out. Whoever got a number up to P had its transaction id before.
 * 2. `fence`: X, a transaction id taken after P was read, so every one of those ids is smaller.
 * 3. `raise`: in a snapshot whose xmin is at least X all of them ended, and what they left is visible in it.
 *
 * X is a transaction id of our own and not pg_snapshot_xmax: that is one above the last that *ended*, and the newest
 * transactions that run are not below it. Reading P and X in one statement is wrong too: its snapshot is older than P.
 */
export type Floor = {
  raise: (holder: string, claims: readonly Claim[]) => Promise<{ lane: number; floor: string }[]>
  /** No transaction can commit an event at or below this position any more; what there is of them can be seen. */
  proven: () => string
}

export type RunStatement = <T>(work: (sql: Sql) => PromiseLike<T>) => Promise<T>

export function openFloor(run: RunStatement): Floor {
  let fence: { position: string; xid: string } | undefined
  let finished: string | undefined

  return {
    /** Returns the lanes whose floor moved. Waits for no one: a fence that open transactions hold is tried again. */
    async raise(holder, claims) {
      if (claims.length === 0) return []
      if (fence === undefined) {
        const position = await run(lastPosition)
        const back = claims.filter(({ floor }) => BigInt(floor) > BigInt(position))
        // A floor above the last number: the sequence went back (a restore, a failover), and what it hands out now would
        // never be read. A floor is only a hint, so it begins anew.
        if (back.length > 0) {
          finished = undefined
          return run((sql) => lowerFloors(sql, holder, back, position))
        }
        if (position === finished && claims.every(({ floor }) => BigInt(floor) >= BigInt(position))) return []
        fence = { position, xid: await run(takeTransactionId) }
      }
      const { position, xid } = fence
      const lanes = await run((sql) => raiseFloors(sql, holder, claims, position, xid))
      if (lanes === undefined) return []
      fence = undefined
      finished = position
      return lanes
    },
    proven: () => finished ?? '0',
  }
}

/** The last position handed out; a sequence that was never asked shows 1 but has handed out nothing. */
export async function lastPosition(sql: Sql): Promise<string> {
  const [row] = await sql<{ last: string }[]>`
    select case when s.is_called then s.last_value else s.last_value - 1 end as last from outbox.position s`
  if (row === undefined) throw new Error('a sequence without a row')
  return row.last
}

/** A transaction id that is larger than every one given out before, and whose transaction ended when this returns. */
export async function takeTransactionId(sql: Sql): Promise<string> {
  const [row] = await sql<{ xid: string }[]>`select pg_current_xact_id()::text as xid`
  if (row === undefined) throw new Error('a function without a row')
  return row.xid
}

/** Sets floors above `position` back to 0 and returns their lanes. */
export async function lowerFloors(sql: Sql, holder: string, claims: readonly Claim[], position: string): Promise<{ lane: number; floor: string }[]> {
  return sql<{ lane: number; floor: string }[]>`
    with mine as materialized (${lockHeld(sql, holder, claims)})
    update outbox.lane l set floor = 0 from mine where l.lane = mine.lane and l.floor > ${position}::bigint
    returning l.lane, l.floor`
}

/** The last step, or undefined where a transaction older than `xid` is still open. The lanes that moved are returned. */
export async function raiseFloors(
  sql: Sql,
  holder: string,
  claims: readonly Claim[],
  position: string,
  xid: string,
): Promise<{ lane: number; floor: string }[] | undefined> {
  const [row] = await sql<{ open: boolean; lanes: number[]; floors: string[] }[]>`
    with now_is as materialized (
      select pg_snapshot_xmin(pg_current_snapshot()) >= ${xid}::xid8 as passed
    ), mine as materialized (
      select l.lane, l.floor from outbox.lane l
      join unnest(${`{${claims.map(({ lane }) => lane).join()}}`}::smallint[], ${`{${claims.map(({ term }) => term).join()}}`}::bigint[]) as c(lane, term)
        on c.lane = l.lane and c.term = l.term
      where l.holder = ${holder} and (select n.passed from now_is n)
      order by l.lane for no key update of l
    ), higher as materialized (
      select m.lane, greatest(m.floor, least(${position}::bigint, (
        select e.position - 1 from outbox.event e where e.lane = m.lane and e.position > m.floor order by e.position limit 1
      ))) as floor, m.floor as was
      from mine m
    ), moved as (
      update outbox.lane l set floor = h.floor from higher h where l.lane = h.lane and h.floor > h.was
      returning l.lane, l.floor
    )
    select not (select n.passed from now_is n) as open,
           coalesce((select array_agg(m.lane::integer order by m.lane) from moved m), '{}') as lanes,
           coalesce((select array_agg(m.floor order by m.lane) from moved m), '{}') as floors`
  if (row === undefined) throw new Error('an aggregate without a row')
  if (row.open) return undefined
  return row.lanes.map((lane, at) => ({ lane, floor: row.floors[at] ?? '0' }))
}

/**
 * Moves auditlog.settled over the changes that are published and have an outcome, or could not be published, at most
 * 100,000 numbers a call, and returns where it stands. Any number of relays may call it.
 *
 * Looks from the watermark up and ends at the first change that is still on its way, so it costs what it moves over.
 * The look-ups are scalar because an `exists` here may be planned as a hash of the whole log.
 */
export async function advanceSettled(sql: Sql): Promise<string> {
  const [row] = await sql<{ up_to: string }[]>`
    with moved as (
      update auditlog.settled s set up_to = n.up_to
      from (
        select b.was, b.row_version, coalesce((
          select p.seq_id - 1 from auditlog.producer_log p
          where p.seq_id > b.was and p.seq_id <= b.most
            and ((select l.position from auditlog.publish_log l where l.seq_id = p.seq_id and l.latest) is null
              or ((select a.seq_id from inbox.applied a where a.origin = p.origin and a.seq_id = p.seq_id) is null
                and (select l.producer_publish_status from auditlog.publish_log l where l.seq_id = p.seq_id and l.latest and l.kind is null)
                  is distinct from 'FAILED'))
          order by p.seq_id limit 1
        ), b.most) as up_to
        from (
          select w.up_to as was, w.xmin as row_version, least(w.up_to + 100000, (select min(l.floor) from outbox.lane l where l.kind = 'change')) as most from auditlog.settled w
        ) b
      ) n
      where s.up_to = n.was and s.xmin = n.row_version and n.up_to > n.was -- xmin: a rebuild that waited for may have left the number as it was
      returning s.up_to
    )
    select coalesce((select m.up_to from moved m), (select s.up_to from auditlog.settled s)) as up_to`
  if (row === undefined) throw new Error('a select without a row')
  return row.up_to
}
