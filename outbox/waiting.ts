import type { Sql } from './sql.ts'

/** A lane some of whose topics cannot be written now: read above `from`, without what is in flight. */
export type WaitingLane = { lane: number; from: string; inflight: ReadonlySet<string>; topics: readonly string[] }

/** Up to where nothing of a lane can be sent, the lowest position of each topic up to there, and whether the look ended at its limit. */
export type Passed = { lane: number; upTo: string; lowest: { topic: string; position: string }[]; more: boolean }

/**
 * Looks how far the events of lanes only wait, or are in flight: what is to be read next begins above that. Lanes where
 * the first event is already another one are left out. At most `rows` events, and one of each lane, are looked at, no payload.
 *
 * An event that is due later ends the look, as does one without its change: both must be met again.
 */
export async function passOver(sql: Sql, lanes: readonly WaitingLane[], rows: number): Promise<Passed[]> {
  const flying = `{${lanes.flatMap(({ inflight }) => [...inflight]).join()}}`
  const asked = lanes.map(({ lane, from, inflight, topics }) => ({ lane, past: from, flying: inflight.size, topics }))
  const share = Math.ceil(rows / Math.max(1, lanes.length))
  const found = await sql<(Omit<Passed, 'lowest'> & { topics: string[]; positions: string[] })[]>`
    with asked as materialized (
      select a.lane, a.past, a.flying + ${share}::integer as most, array(select json_array_elements_text(a.topics)) as topics
      from json_to_recordset(${JSON.stringify(asked)}::text::json) as a(lane smallint, past bigint, flying integer, topics json)
    ), seen as materialized (
      select a.lane, a.most, e.position, t.topic,
             e.position <> all (${flying}::bigint[])
               and (coalesce(t.topic <> all (a.topics), true) or coalesce(e.due_at > now(), false)) as ends
      from asked a cross join lateral (
        select e.position, e.seq_id, e.kind, e.origin, e.topic, e.due_at
        from outbox.event e where e.lane = a.lane and e.position > a.past order by e.position limit a.most
      ) e
      cross join lateral (
        select case e.kind
          when 'error' then e.topic
          when 'retry' then (
            select c.topic from inbox.parked c
            where c.origin = coalesce(e.origin, (select d.origin from outbox.database d)) and c.seq_id = e.seq_id limit 1)
          else (select coalesce(e.topic, l.topicname) from auditlog.producer_log l where l.seq_id = e.seq_id limit 1)
        end as topic
      ) t
    ), ended as materialized (
      select s.lane, min(s.position) filter (where s.ends) as at, max(s.position) as last, count(*) = max(s.most) as cut
      from seen s group by s.lane
    ), low as (
      select s.lane, s.topic, min(s.position) as position, max(s.position) as last
      from seen s join ended e on e.lane = s.lane and (e.at is null or s.position < e.at)
      group by s.lane, s.topic
    )
    select l.lane, max(l.last) as "upTo", bool_and(e.at is null and e.cut) as more,
           array_agg(l.topic) as topics, array_agg(l.position) as positions
    from low l join ended e on e.lane = l.lane group by l.lane`
  return found.map(({ lane, upTo, more, topics, positions }) => ({
    lane, upTo, more, lowest: topics.map((topic, at) => ({ topic, position: positions[at] ?? upTo })),
  }))
}
