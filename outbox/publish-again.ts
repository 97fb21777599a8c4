import type { Sql } from './sql.ts'

/**
 * What came of a change that was to be published again: it is in the outbox again, waits there already, or is from before
 * the horizon. `deployed` is the outcome it has at the target, null where it has none; it stays as it is.
 */
export type StoredAgain = { origin: number; seq_id: string; result: 'AGAIN' | 'WAITS' | 'OLD'; deployed: string | null }

/**
 * Puts changes of producer_log into the outbox again, whatever became of them, and returns one line for each that is there,
 * by number. For what was published and never applied: its record is gone from the topic, or its event from the outbox.
 *
 * Their attempts start anew and their lane is the row's own. The audit shows them as PENDING until they are published, so
 * the watermark goes back below them. An outcome at the target stays: the consumer recognises the change by (origin, seq_id).
 * `horizon` as in isBehindHorizon. Two at once may both put a change there, which is as harmless as a record read twice.
 */
export async function publishStored(sql: Sql, seqIds: readonly string[], horizon: number | null): Promise<StoredAgain[]> {
  return sql<StoredAgain[]>`
    with x as materialized (
      select pg_current_xact_id()
    ), asked as materialized (
      select p.seq_id, p.origin, p.schema_name, p.table_name, p.row_key, octet_length(coalesce(p.clean_payload, p.producer_payload::text)) as bytes,
             case when exists (select from outbox.event e where e.seq_id = p.seq_id and e.kind = 'change' and e.origin is null) then 'WAITS'
                  when ${isBehindHorizon(sql, horizon)} then 'OLD' else 'AGAIN' end as result
      from x cross join auditlog.producer_log p where p.seq_id = any(${list(seqIds)}::bigint[])
      order by p.seq_id
    ), taken as (
      update auditlog.publish_log l set latest = false
      from asked a where a.result = 'AGAIN' and l.seq_id = a.seq_id and l.latest
    ), lowered as (
      update auditlog.settled s set up_to = least(s.up_to, a.first - 1)
      from (select min(seq_id) as first from asked where result = 'AGAIN') a where a.first is not null
    ), put as (
      insert into outbox.event (lane, position, seq_id, bytes)
      select outbox.lane_of(d.lanes, a.schema_name, a.table_name, a.row_key), nextval('outbox.position'), a.seq_id, a.bytes
      from asked a cross join outbox.database d where a.result = 'AGAIN' order by a.seq_id
    )
    select a.origin, a.seq_id, a.result, (select i.status from inbox.applied i where i.origin = a.origin and i.seq_id = a.seq_id) as deployed
    from asked a order by a.seq_id`
}

/** The changes of these that are in producer_log, by number. */
export async function storedOf(sql: Sql, seqIds: readonly string[]): Promise<{ origin: number; seqId: string }[]> {
  return sql<{ origin: number; seqId: string }[]>`
    select p.origin, p.seq_id as "seqId" from auditlog.producer_log p where p.seq_id = any(${list(seqIds)}::bigint[]) order by p.seq_id`
}

/** Those of the changes that are from before the horizon. */
export async function behindHorizon(sql: Sql, seqIds: readonly string[], horizon: number | null): Promise<Set<string>> {
  const rows = await sql<{ seq_id: string }[]>`
    select p.seq_id from auditlog.producer_log p where p.seq_id = any(${list(seqIds)}::bigint[]) and ${isBehindHorizon(sql, horizon)} order by p.seq_id`
  return new Set(rows.map((row) => row.seq_id))
}

/**
 * The condition that a change, p of producer_log, is from before the horizon: its row may have been deleted since, and the
 * tombstone that would tell so may be gone, so it would bring the row back.
 *
 * `horizon` is milliseconds. 0: none is set, and then only what was pruned with another setting counts; null: its age is
 * of no account, because somebody looked at it.
 */
export function isBehindHorizon(sql: Sql, horizon: number | null): ReturnType<Sql> {
  if (horizon === null) return sql`false`
  const young = horizon === 0 ? sql`` : sql`or p.source_time < clock_timestamp() - ${horizon}::float8 * interval '1 ms'`
  return sql`(p.seq_id <= (select r.behind from auditlog.retention r) ${young})`
}

/** A literal that the server reads; see outbox/ack.ts. */
function list(values: readonly string[]): string {
  return `{${values.join()}}`
}
