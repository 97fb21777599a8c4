import type { PendingQuery, Row } from 'postgres'
import type { RunStatement } from './floor.ts'
import type { Sql } from './sql.ts'

/**
 * Leaves behind what is older than the horizon: posts that were seen, outcomes, publish_log, tombstones, key changes that
 * were remembered, mended rejects, and the changes themselves.
 *
 * The horizon is counted back from the oldest change that is still on its way, and not from now: that change may be as much
 * older than its receipt as the listener lets through, and the tombstone it must meet has to be there still.
 *
 * A change leaves producer_log first and the other logs after it, or all of them in one statement. The audit is made from
 * producer_log, so it never shows a change as pending because its outcome was pruned (I12).
 *
 * Tables without an order of their own (seen, row_version) are read block by block instead of through one more index, which
 * every change would have to pay for. Each statement looks at BLOCKS blocks and skips rows that somebody has locked, so
 * it neither waits nor can be part of a deadlock; who wants a row it deletes waits for some milliseconds.
 */
export type Pruned = {
  /** What was left behind was received before this moment. */
  cut: string
  partitions: string[]
  /** Somebody read producer_log all the time, so that a partition could not be dropped. */
  busy: boolean
  rows: Record<Swept | 'producer_log', number>
}

export type PruneOptions = {
  /** Milliseconds; above 0. */
  horizon: number
  /** Milliseconds added to the horizon: how much a TIME may lie ahead of its receipt, and clocks apart. */
  grace: number
  /** Nothing is pruned while another process began so many milliseconds ago or less; 0: always. */
  every?: number
  /** A moment before which the other database's changes are all settled; only rows before it are looked at. */
  notAfter?: string | undefined
  signal?: AbortSignal
}

type Swept = 'seen' | 'row_version' | 'shift' | 'applied' | 'publish_log' | 'rejected_request'
type Mark = { cut: string; behind: string; dropped: string }

/** Some thousands of rows of every table. */
const BLOCKS = 64
/** Numbers of changes that leave in one statement, with their payloads. */
const SPAN = 2_000

/** Prunes one database; undefined where another process did so less than `every` ago. Safe at any time and in several processes. */
export async function prune(run: RunStatement, options: PruneOptions): Promise<Pruned | undefined> {
  const mark = await run((sql) => beginPass(sql, options))
  if (mark === undefined) return undefined
  const none = { producer_log: 0, seen: 0, row_version: 0, shift: 0, applied: 0, publish_log: 0, rejected_request: 0 }
  const pruned: Pruned = { cut: mark.cut, partitions: [], busy: false, rows: none }
  await dropPartitions(run, mark, pruned, options.signal)
  if (await run((sql) => isSlow(sql, mark, options.horizon))) await dropSpans(run, mark, pruned, options.signal)
  const now = await run(markOf)
  // Tombstones before outcomes: the outcome tells when a tombstone was written.
  for (const table of ['seen', 'row_version', 'shift', 'applied', 'publish_log', 'rejected_request'] as const) {
    pruned.rows[table] = await sweep(run, table, { ...mark, dropped: now.dropped }, options.signal)
  }
  return pruned
}

/** The moment the horizon counts from, less `horizon` and `grace`: what the other of two databases may be pruned up to. */
export async function cutOf(sql: Sql, { horizon, grace, notAfter }: PruneOptions): Promise<string> {
  const [row] = await sql<{ cut: string }[]>`
    select least(
      least(clock_timestamp(), (
        select p.received_at from auditlog.producer_log p where p.seq_id > (select w.up_to from auditlog.settled w) order by p.seq_id limit 1
      )) - ${horizon + grace}::float8 * interval '1 ms',
      ${notAfter ?? null}::timestamptz) as cut`
  if (row === undefined) throw new Error('a select without a row')
  return row.cut
}

/** Prunes both databases of a pair, or the one there is; `target` is only behind what the first has settled. */
export async function prunePair(first: RunStatement, target: RunStatement | undefined, options: PruneOptions): Promise<Pruned[]> {
  const notAfter = target === undefined ? undefined : await first((sql) => cutOf(sql, options))
  const here = await prune(first, options)
  const there = target === undefined ? undefined : await prune(target, { ...options, notAfter })
  return [here, there].filter((pruned) => pruned !== undefined)
}

async function beginPass(sql: Sql, options: PruneOptions): Promise<Mark | undefined> {
  const claimed = await sql`
    update auditlog.retention r set begun_at = clock_timestamp()
    where r.begun_at <= clock_timestamp() - ${options.every ?? 0}::float8 * interval '1 ms' returning 1`
  if (claimed.length === 0) return undefined
  const cut = await cutOf(sql, options)
  const [row] = await sql<{ behind: string; dropped: string }[]>`
    update auditlog.retention r set behind = greatest(r.behind, (select auditlog.last_before(${cut}::timestamptz)))
    returning r.behind, r.dropped`
  return row === undefined ? undefined : { cut, ...row }
}

async function markOf(sql: Sql): Promise<{ dropped: string }> {
  const [row] = await sql<{ dropped: string }[]>`select r.dropped from auditlog.retention r`
  return row ?? { dropped: '0' }
}

async function dropPartitions(run: RunStatement, { behind }: Mark, pruned: Pruned, signal?: AbortSignal): Promise<void> {
  while (signal?.aborted !== true) {
    const [row] = await run((sql) => sql<{ dropped: string | null }[]>`select auditlog.drop_partition(${behind}::bigint) as dropped`)
    if (row?.dropped == null) return
    pruned.busy = row.dropped === 'BUSY'
    if (pruned.busy) return
    pruned.partitions.push(row.dropped)
  }
}

/**
 * True where the oldest change is a whole horizon behind the horizon: changes come so slowly that their partition would not
 * be full for long. Then they are deleted; else they go with their partition, which costs nothing.
 */
async function isSlow(sql: Sql, { cut }: Mark, horizon: number): Promise<boolean> {
  const [row] = await sql<{ slow: boolean }[]>`
    select p.received_at < ${cut}::timestamptz - ${horizon}::float8 * interval '1 ms' as slow
    from auditlog.producer_log p where p.seq_id > (select r.dropped from auditlog.retention r) order by p.seq_id limit 1`
  return row?.slow === true
}

async function dropSpans(run: RunStatement, { behind }: Mark, pruned: Pruned, signal?: AbortSignal): Promise<void> {
  while (signal?.aborted !== true) {
    const [span] = await run((sql) => sql<{ low: string; high: string }[]>`
      select p.seq_id as low, least(p.seq_id + ${SPAN}, ${behind}::bigint) as high from auditlog.producer_log p
      where p.seq_id > (select r.dropped from auditlog.retention r) and p.seq_id <= ${behind}::bigint order by p.seq_id limit 1`)
    if (span === undefined) return
    pruned.rows.producer_log += await politely(() => run((sql) => dropSpan(sql, span)))
  }
}

/** All rows of the changes among these numbers leave in one statement; later publications of them follow with the sweep. */
async function dropSpan(sql: Sql, { low, high }: { low: string; high: string }): Promise<number> {
  const [row] = await sql<{ count: number }[]>`
    with gone as (
      delete from auditlog.producer_log p
      where p.seq_id between ${low}::bigint and ${high}::bigint and p.seq_id <= (select w.up_to from auditlog.settled w)
        and p.seq_id not in (select auditlog.kept(${low}::bigint, ${high}::bigint))
      returning p.seq_id, p.origin
    ), published as (
      delete from auditlog.publish_log l using gone g where l.seq_id = g.seq_id and l.latest
    ), outcomes as (
      delete from inbox.applied a using gone g where a.origin = g.origin and a.seq_id = g.seq_id
    ), moved as (
      update auditlog.retention r set dropped = greatest(r.dropped, ${high}::bigint)
    )
    select count(*)::integer as count from gone`
  return row?.count ?? 0
}

async function sweep(run: RunStatement, table: Swept, mark: Mark, signal?: AbortSignal): Promise<number> {
  const [size] = await run((sql) => sql<{ blocks: number }[]>`
    select (pg_relation_size(${NAMES[table]}::regclass) / current_setting('block_size')::integer)::integer as blocks`)
  let count = 0
  for (let from = 0; from < (size?.blocks ?? 0) && signal?.aborted !== true; from += BLOCKS) {
    count += await politely(() => run((sql) => sweepBlocks(sql, table, mark, from)))
  }
  return count
}

/** Rests as long as the work took: at most half of one connection's worth is asked of the server. */
async function politely(work: () => Promise<number>): Promise<number> {
  const begun = performance.now()
  const count = await work()
  if (count > 0) await new Promise((resolve) => setTimeout(resolve, performance.now() - begun))
  return count
}

const NAMES: Record<Swept, string> = {
  seen: 'outbox.seen', row_version: 'inbox.row_version', shift: 'inbox.shift', applied: 'inbox.applied',
  publish_log: 'auditlog.publish_log', rejected_request: 'auditlog.rejected_request',
}

async function sweepBlocks(sql: Sql, table: Swept, mark: Mark, from: number): Promise<number> {
  const gone = await sql`
    delete from ${sql(NAMES[table])} x where x.ctid = any(array(
      select s.ctid from ${sql(NAMES[table])} s
      where s.ctid >= ${`(${from},0)`}::tid and s.ctid < ${`(${from + BLOCKS},0)`}::tid and ${leaves(sql, table, mark)}
      for update of s skip locked
    ))`
  return gone.count
}

/** Which rows leave. Look-ups are scalar, so that none is planned as a hash of a whole log. */
function leaves(sql: Sql, table: Swept, { cut, behind, dropped }: Mark): PendingQuery<Row[]> {
  // No partition and no step has taken the change of this row along: it is not of this database, or stays to be looked at.
  const changeless = sql`
    (s.seq_id <= ${dropped}::bigint or s.origin not in (select o.origin from outbox.own_origin o))
    and (select p.seq_id from auditlog.producer_log p where p.seq_id = s.seq_id and p.origin = s.origin) is null`
  // A version of a capture without times (time 0) is as old as its number, where that is one of ours.
  const old = sql`
    case when s.time > 0 then s.time < (extract(epoch from ${cut}::timestamptz) * 1000000)::bigint else s.origin in (select o.origin from outbox.own_origin o) end`
  const oldest = {
    seen: () => sql`s.seq_id <= ${behind}::bigint`,
    // Whatever is parked may still come back to the row: with its key, or without one where the relation was stopped.
    row_version: () => sql`
      s.deleted and not s.parked and ${old} and (s.time > 0 or s.seq <= ${behind}::bigint)
      and coalesce((select a.applied_at from inbox.applied a where a.origin = s.origin and a.seq_id = s.seq) < ${cut}::timestamptz, true)
      and (select 1 from inbox.parked k where k.relation = s.relation and k.key = s.key limit 1) is null
      and (select 1 from inbox.parked k where k.relation = s.relation and k.key is null limit 1) is null`,
    shift: () => sql`
      ${old} and (s.time > 0 or s.seq_id <= ${behind}::bigint)
      and (select 1 from inbox.parked k where k.relation = s.relation and k.key = s.key limit 1) is null
      and (select 1 from inbox.parked k where k.relation = s.relation and k.key is null limit 1) is null`,
    applied: () => sql`
      s.status in ('APPLIED', 'SUPERSEDED', 'SKIPPED') and s.applied_at < ${cut}::timestamptz and ${changeless}
      and (select 1 from inbox.parked k where k.origin = s.origin and k.seq_id = s.seq_id) is null
      and (select 1 from inbox.receipt r where r.origin = s.origin and r.seq_id = s.seq_id) is null`,
    publish_log: () => sql`
      s.producer_publish_time < ${cut}::timestamptz and case when s.origin is null
        then s.seq_id <= ${dropped}::bigint and (select p.seq_id from auditlog.producer_log p where p.seq_id = s.seq_id) is null
        else true end`,
    rejected_request: () => sql`s.state = 'RETRIED' and s.retried_at < ${cut}::timestamptz`,
  }
  return oldest[table]()
}
