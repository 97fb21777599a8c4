import type { Sql } from 'postgres'

/** Milliseconds. */
export type Latency = { p50: number; p95: number; p99: number; p999: number; max: number }

/** Of values in milliseconds. */
export function latencyOf(values: readonly number[]): Latency {
  const sorted = values.toSorted((a, b) => a - b)
  const at = (share: number): number => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? NaN
  return { p50: at(0.5), p95: at(0.95), p99: at(0.99), p999: at(0.999), max: sorted.at(-1) ?? NaN }
}

/**
 * From the moment a change was due, which is its TIME, to the moment the apply wrote its outcome, both by clocks of this
 * machine. The outcome is written some milliseconds before its commit makes row and outcome visible together. Where the
 * server remembers commits (beside peers it does), it is to that commit.
 */
export async function dueToApplied(sql: Sql, aboveSeqId: bigint): Promise<Latency> {
  const [row] = await sql<Latency[]>`
    select q[1] as p50, q[2] as p95, q[3] as p99, q[4] as p999, q[5] as max from (
      select percentile_disc(array[0.5, 0.95, 0.99, 0.999, 1]) within group (order by extract(epoch from
        case when current_setting('track_commit_timestamp')::boolean then pg_xact_commit_timestamp(a.xmin) else a.applied_at end - p.source_time)::float8 * 1000) as q
      from auditlog.producer_log p join inbox.applied a on a.origin = p.origin and a.seq_id = p.seq_id
      where p.seq_id > ${aboveSeqId.toString()}
    ) x`
  if (row === undefined) throw new Error('an aggregate without a row')
  return row
}

/** The same from the intake's own clock (received_at), which is set within its statement. */
export async function receivedToApplied(sql: Sql, aboveSeqId: bigint): Promise<Latency> {
  const [row] = await sql<Latency[]>`
    select q[1] as p50, q[2] as p95, q[3] as p99, q[4] as p999, q[5] as max from (
      select percentile_disc(array[0.5, 0.95, 0.99, 0.999, 1]) within group (order by extract(epoch from a.applied_at - p.received_at)::float8 * 1000) as q
      from auditlog.producer_log p join inbox.applied a on a.origin = p.origin and a.seq_id = p.seq_id
      where p.seq_id > ${aboveSeqId.toString()}
    ) x`
  if (row === undefined) throw new Error('an aggregate without a row')
  return row
}
