import type { Sql } from './sql.ts'

/** A count that stopped at its limit says so: reading it must stay quick at ten million rows. */
export type Count = { count: number; at_least: boolean }

/** Who keeps the floor where it is: the oldest transaction of the whole server that has an id. */
export type FloorHolder = { kind: 'session' | 'prepared'; name: string; database: string | null; state: string | null; age_seconds: number }

export type Status = {
  origin: number
  last_position: string
  settled_up_to: string
  to_publish: Count & { oldest_age_seconds: number | null }
  to_apply: Count
  /** The oldest of each, by when it was received, parked or rejected. */
  oldest: Oldest
  outcomes: Record<'PARKED' | 'RETRYING' | 'FAILED' | 'SKIPPED' | 'SUPERSEDED', Count>
  parked: { reason: string; count: number }[]
  rejected_waiting: Count
  relays: { holder: string; lanes: number; terms: string; alive: boolean }[]
  free_lanes: number
  floor: { lowest: string; highest: string; behind: string; holder: FloorHolder | null }
  positions: PartitionPosition[]
  relations: RelationLine[]
  partitions_ahead: number
  default_partition_empty: boolean
  partitions: { name: string; low: string; high: string; bytes: string }[]
  /** Changes received before the horizon, and those that left; '0' where nothing was pruned. */
  retention: { behind: string; dropped: string; begun_at: string | null }
  sizes: TableSize[]
}

export type Oldest = Record<'unsettled_seconds' | 'parked_seconds' | 'rejected_seconds', number | null>

/** `dead_rows` are those that wait for a vacuum; all but bytes are estimates of the server's statistics. */
export type TableSize = { table: string; bytes: string; estimated_rows: string; dead_rows: string; vacuumed_at: string | null }

export type PartitionPosition = {
  consumer_group: string
  topic: string
  partition: number
  next_offset: string
  last_seq_id: string | null
  holder: string
  term: string
  raised_at: string
  /** Why the partition does not move, since when, and at which change; null while it moves. */
  waiting_since: string | null
  waiting_for: string | null
  waiting_seq_id: string | null
}

export type RelationLine = {
  source: string
  target: string
  key_columns: string[] | null
  known_from: string
  epoch: number
  state: string
  stop_reason: string | null
}

// Counting further tells an operator nothing new, and 100,000 index entries are read in about 20 ms.
const MOST = 100_000
// Changes above the settled watermark that are looked at one by one, about 200 ms.
const WINDOW = 200_000

/** How things stand: what waits where, who holds what. Every query reads an index or at most WINDOW rows. */
export async function statusOf(sql: Sql): Promise<Status> {
  const [numbers] = await sql<{ origin: number; last_position: string; settled_up_to: string }[]>`
    select (select origin from outbox.database) as origin, last_value as last_position,
           (select up_to from auditlog.settled) as settled_up_to
    from outbox.position`
  if (numbers === undefined) throw new Error('outbox.position has no row')
  return {
    ...numbers,
    to_publish: await toPublish(sql),
    to_apply: await toApply(sql),
    oldest: await oldest(sql),
    outcomes: await outcomes(sql),
    parked: [...await parkedByReason(sql)],
    rejected_waiting: await rejectedWaiting(sql),
    ...await laneHolders(sql),
    floor: await floor(sql),
    positions: [...await positions(sql)],
    relations: [...await relations(sql)],
    ...await partitionsAhead(sql),
    partitions: [...await partitions(sql)],
    retention: await retention(sql),
    sizes: [...await sizes(sql)],
  }
}

/** The oldest event is found by the head of each lane, not by reading them all. */
async function toPublish(sql: Sql): Promise<Status['to_publish']> {
  const [row] = await sql<{ count: number; at_least: boolean; oldest_age_seconds: number | null }[]>`
    select least(n, ${MOST})::integer as count, n > ${MOST} as at_least,
           (select extract(epoch from clock_timestamp() - min(p.received_at))::float8
            from outbox.lane l
            cross join lateral (select e.seq_id from outbox.event e where e.lane = l.lane order by e.position limit 1) as head
            join auditlog.producer_log p on p.seq_id = head.seq_id) as oldest_age_seconds
    from (select count(*) as n from (select from outbox.event limit ${MOST + 1}) as found) as counted`
  return row ?? { count: 0, at_least: false, oldest_age_seconds: null }
}

/** Published and without an outcome, exact for the first WINDOW numbers above the watermark. */
async function toApply(sql: Sql): Promise<Count> {
  const [row] = await sql<Count[]>`
    select (select count(*) from auditlog.pending p
            where p.published and not p.deployed and p.seq_id <= s.up_to + ${WINDOW})::integer as count,
           (select last_value from outbox.position) > s.up_to + ${WINDOW} as at_least
    from auditlog.settled s`
  return row ?? { count: 0, at_least: false }
}

/** A change that is not settled is the first above the watermark or a later one, so its age is at most this. */
async function oldest(sql: Sql): Promise<Oldest> {
  const [row] = await sql<Oldest[]>`
    select extract(epoch from clock_timestamp() - (
             select p.received_at from auditlog.producer_log p where p.seq_id > (select w.up_to from auditlog.settled w) order by p.seq_id limit 1))::float8 as unsettled_seconds,
           extract(epoch from clock_timestamp() - (select min(k.parked_at) from (select parked_at from inbox.parked limit ${MOST}) as k))::float8 as parked_seconds,
           extract(epoch from clock_timestamp() - (
             select r.received_at from auditlog.rejected_request r where r.state = 'WAITING' order by r.id limit 1))::float8 as rejected_seconds`
  return row ?? { unsettled_seconds: null, parked_seconds: null, rejected_seconds: null }
}

async function outcomes(sql: Sql): Promise<Status['outcomes']> {
  const rows = await sql<({ status: keyof Status['outcomes'] } & Count)[]>`
    select wanted.status, least(n, ${MOST})::integer as count, n > ${MOST} as at_least
    from unnest(array['PARKED', 'RETRYING', 'FAILED', 'SKIPPED', 'SUPERSEDED']) as wanted(status)
    cross join lateral (
      select count(*) as n
      from (select from inbox.applied a where a.status = wanted.status and a.status <> 'APPLIED' limit ${MOST + 1}) as found
    ) as counted`
  const none: Count = { count: 0, at_least: false }
  const all = { PARKED: none, RETRYING: none, FAILED: none, SKIPPED: none, SUPERSEDED: none }
  for (const { status, count, at_least } of rows) all[status] = { count, at_least }
  return all
}

function parkedByReason(sql: Sql): PromiseLike<Status['parked']> {
  return sql<Status['parked']>`
    select reason, count(*)::integer as count from (select reason from inbox.parked limit ${MOST}) as found group by reason order by reason`
}

async function rejectedWaiting(sql: Sql): Promise<Count> {
  const [row] = await sql<Count[]>`
    select least(n, ${MOST})::integer as count, n > ${MOST} as at_least
    from (select count(*) as n from (select from auditlog.rejected_request where state = 'WAITING' limit ${MOST + 1}) as found) as counted`
  return row ?? { count: 0, at_least: false }
}

async function laneHolders(sql: Sql): Promise<Pick<Status, 'relays' | 'free_lanes'>> {
  const relays = await sql<Status['relays']>`
    select coalesce(l.holder, r.holder) as holder, count(l.lane)::integer as lanes,
           coalesce(min(l.term)::text || ' to ' || max(l.term)::text, '-') as terms,
           coalesce(bool_or(r.alive_until > clock_timestamp()), false) as alive
    from (select holder, lane, term from outbox.lane where held_until > clock_timestamp()) as l
    full join outbox.relay r on r.holder = l.holder
    where l.holder is not null or r.alive_until > clock_timestamp()
    group by 1 order by 1`
  const [free] = await sql<{ count: number }[]>`
    select count(*)::integer as count from outbox.lane where held_until <= clock_timestamp()`
  return { relays: [...relays], free_lanes: free?.count ?? 0 }
}

/** The floor moves only past transactions that are over, whatever database of the server they run in. */
async function floor(sql: Sql): Promise<Status['floor']> {
  const [numbers] = await sql<{ lowest: string; highest: string; behind: string }[]>`
    select min(floor) as lowest, max(floor) as highest, (select last_value from outbox.position) - min(floor) as behind from outbox.lane`
  const [holder] = await sql<FloorHolder[]>`
    select kind, name, database, state, age_seconds from (
      select 'session' as kind, coalesce(nullif(application_name, ''), 'no name') || ' (pid ' || pid || ')' as name, datname as database, state,
             extract(epoch from clock_timestamp() - xact_start)::float8 as age_seconds, age(backend_xid) as xids
      from pg_stat_activity where backend_xid is not null and pid <> pg_backend_pid()
      union all
      select 'prepared', gid, database, 'prepared', extract(epoch from clock_timestamp() - prepared)::float8, age(transaction)
      from pg_prepared_xacts
    ) as open order by xids desc limit 1`
  return { lowest: '0', highest: '0', behind: '0', ...numbers, holder: holder ?? null }
}

function positions(sql: Sql): PromiseLike<PartitionPosition[]> {
  return sql<PartitionPosition[]>`
    select consumer_group, topic, partition, next_offset, last_seq_id, holder, term, raised_at, waiting_since, waiting_for, waiting_seq_id
    from inbox.position order by consumer_group, topic, partition`
}

/** The catalogue, as `schema list` shows it. */
export function relations(sql: Sql): PromiseLike<RelationLine[]> {
  return sql<RelationLine[]>`
    select source_schema || '.' || source_table as source, target_schema || '.' || target_table as target, key_columns, known_from, epoch, state, stop_reason
    from outbox.relation order by source_schema, source_table`
}

/** Partitions of producer_log that begin above the last position. */
async function partitionsAhead(sql: Sql): Promise<Pick<Status, 'partitions_ahead' | 'default_partition_empty'>> {
  const [row] = await sql<{ partitions_ahead: number; default_partition_empty: boolean }[]>`
    select (select count(*)::integer from auditlog.partition p where p.low > (select last_value from outbox.position)) as partitions_ahead,
           not exists (select from auditlog.producer_log_default) as default_partition_empty`
  return row ?? { partitions_ahead: 0, default_partition_empty: true }
}

function partitions(sql: Sql): PromiseLike<Status['partitions']> {
  return sql<Status['partitions']>`
    select p.name, p.low, p.high, pg_total_relation_size(p.relid) as bytes from auditlog.partition p order by p.low`
}

async function retention(sql: Sql): Promise<Status['retention']> {
  const [row] = await sql<Status['retention'][]>`
    select behind, dropped, case when begun_at > '-infinity' then begun_at end as begun_at from auditlog.retention`
  return row ?? { behind: '0', dropped: '0', begun_at: null }
}

/** Rows are estimates of the last analyze; -1 before the first one, shown as unknown. */
function sizes(sql: Sql): PromiseLike<Status['sizes']> {
  return sql<Status['sizes']>`
    select t.name as table, sum(pg_total_relation_size(p.relid)) as bytes,
           case when bool_and(c.reltuples < 0) then 'unknown' else round(sum(greatest(c.reltuples, 0)))::text end as estimated_rows,
           coalesce(sum(pg_stat_get_dead_tuples(p.relid)), 0) as dead_rows,
           max(greatest(pg_stat_get_last_vacuum_time(p.relid), pg_stat_get_last_autovacuum_time(p.relid))) as vacuumed_at
    from unnest(array['auditlog.producer_log', 'auditlog.publish_log', 'auditlog.rejected_request', 'outbox.event', 'outbox.seen', 'outbox.lane',
                      'inbox.applied', 'inbox.row_version', 'inbox.parked', 'inbox.shift', 'inbox.owed', 'inbox.position']) with ordinality as t(name, place)
    cross join lateral (
      select relid from pg_partition_tree(t.name::regclass) where isleaf
      union select t.name::regclass
    ) as p
    join pg_class c on c.oid = p.relid and c.relkind = 'r'
    group by t.name, t.place order by t.place`
}
