import type { PendingEvent } from './pending.ts'
import type { Sql } from './sql.ts'

/** What a retry or the record of a failure has besides; `value` and what goes with it are null where the change is not parked. */
type Side = {
  lane: number
  position: string
  kind: 'change' | 'retry' | 'error'
  id: string
  topic: string | null
  head: string | null
  logged: boolean
  parked_topic: string | null
  version: string | null
  key: string | null
  value: string | null
  traceparent: string | null
}

/** Retries and records of failures have lanes of their own, which outbox.side_lane computes. */
export function isSideLane(lane: number): boolean {
  return lane >= 10_000
}

/**
 * Completes retries and records of failures, which nextEvents read with what producer_log has under their seq_id.
 *
 * A retry is the parked record as it was consumed, under the number of its next attempt. The record of a failure is the
 * change's own with `head` in front: the parked one or, where it was never published, that of producer_log. All from
 * topicname on are null where neither table has it: it healed meanwhile.
 */
export async function withSideRecords(sql: Sql, events: readonly PendingEvent[]): Promise<PendingEvent[]> {
  const wanted = events.filter(({ lane }) => isSideLane(lane))
  // Looked up row by row (lateral, limit 1): a hash of 100,000 parked payloads for one of them costs seconds.
  const rows = await sql<Side[]>`
    select e.lane, e.position, e.kind, coalesce(e.origin, d.origin) || ':' || e.seq_id || ':' || e.attempt as id, e.topic, e.head,
           e.kind = 'error' and exists (
             select from auditlog.producer_log l where l.seq_id = e.seq_id and (e.origin is null or l.origin = e.origin)
           ) as logged,
           p.topic as parked_topic, p.version, p.key, p.value, p.traceparent
    from unnest(${`{${wanted.map(({ lane }) => lane).join()}}`}::smallint[], ${`{${wanted.map(({ position }) => position).join()}}`}::bigint[])
      as w(lane, position)
    cross join outbox.database d
    join outbox.event e on e.lane = w.lane and e.position = w.position
    left join lateral (
      select c.topic, c.epoch || ':' || c.time || ':' || c.seq_id as version, c.record_key as key, c.payload as value, c.traceparent
      from inbox.parked c where c.origin = coalesce(e.origin, d.origin) and c.seq_id = e.seq_id limit 1
    ) p on true`
  const sides = new Map(rows.map((row) => [`${row.lane}/${row.position}`, row]))
  return events.flatMap((event) => {
    if (!isSideLane(event.lane)) return [event]
    const side = sides.get(`${event.lane}/${event.position}`)
    return side === undefined ? [] : [complete(event, side)] // one that left meanwhile is read no more
  })
}

function complete(event: PendingEvent, side: Side): PendingEvent {
  const { kind, id, topic, head, parked_topic: parkedTopic, version, key, value, traceparent } = side
  if (kind === 'change') return event // its publishing is tried again
  if (value !== null && kind === 'retry') return { ...event, topicname: parkedTopic, id, version, key, value, traceparent }
  if (value !== null) return { ...event, topicname: topic, id, version, key, value: withHead(head, value), traceparent }
  if (side.logged && event.value !== null) return { ...event, topicname: topic, id, value: withHead(head, event.value) }
  return { ...event, topicname: null, id: null, version: null, key: null, value: null, traceparent: null, obsolete: true }
}

/** A JSON object with members in front of its own. */
function withHead(head: string | null, value: string): string {
  const rest = value.slice(value.indexOf('{') + 1)
  return head === null ? value : `{${head}${/^\s*\}/.test(rest) ? '' : ','}${rest}`
}
