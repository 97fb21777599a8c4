import type { Sql } from './sql.ts'

/** The ways on which failures can be told; the migration has the same words. */
export type ChannelName = 'webhook' | 'mail'

/** A process's right to tell over one channel, for LEASE. */
export type ChannelClaim = { channel: ChannelName; holder: string; term: string }

/** Failures that are alike. Names and codes only; null where the failure says nothing of it. */
export type FailureGroup = {
  kind: 'FAILED' | 'STOPPED' | 'REJECTED'
  relation: string | null
  side: string | null
  reason: string | null
  sqlstate: string | null
  count: number
}

/**
 * What one message tells. `id` stays the same however often it is tried, so a receiver can see a repeat. Times are ISO
 * texts. `at_least`: more wait than one batch takes. `left_out`: groups beyond GROUPS; `counts` has them all.
 */
export type Batch = {
  id: string
  database: string
  since: string
  until: string
  at_least: boolean
  counts: { failed: number; stopped: number; rejected: number }
  groups: FailureGroup[]
  left_out: number
  seq_ids: string[]
}

/** Longer than any telling takes (30 s), so that no second process begins meanwhile. */
const LEASE = '60 seconds'

/** As many failures are folded at once, about 1 s; and as much of them is named. */
const ROWS = 20_000
const GROUPS = 30
const SEQ_IDS = 20

/** What waited longer is no news. As in outbox.put_notice. */
const NEWS = '7 days'

/** While things go on failing, a message comes this often at most; twice as long without one, and it is news again. */
const QUIET = '15 minutes'

/** With a pause that doubles up to QUIET, this many tries take an hour. */
export const TRIES = 8

/**
 * Takes a channel that is due and not held; undefined where it is not. The first call makes it known to outbox.put_notice:
 * failures from before it are not told.
 */
export async function claimChannel(sql: Sql, channel: ChannelName, holder: string): Promise<ChannelClaim | undefined> {
  const [claim] = await sql<ChannelClaim[]>`
    insert into outbox.notice_channel as c (channel, holder, term, held_until)
    values (${channel}, ${holder}, 1, now() + ${LEASE}::interval)
    on conflict (channel) do update
    set holder = excluded.holder, term = c.term + 1, held_until = excluded.held_until, asked_at = excluded.asked_at
    where c.held_until <= now() and c.next_at <= now()
    returning c.channel, c.holder, c.term`
  return claim
}

/**
 * The batch to be told: the one that was not told yet, or else what waits, folded into one and taken out of the queue in
 * the same statement. Undefined where there is nothing, or the claim ended.
 *
 * Whose change it was is looked up here and not in the trigger: a failure must cost its cause as little as can be.
 */
export async function foldNotices(sql: Sql, { channel, holder, term }: ChannelClaim): Promise<Batch | undefined> {
  const [row] = await sql<{ batch: Batch | null }[]>`
    with mine as materialized (
      select c.channel, c.batch is null as free from outbox.notice_channel c
      where c.channel = ${channel} and c.holder = ${holder} and c.term = ${term}::bigint for update
    ), forgotten as (
      delete from outbox.notice n using outbox.notice_channel c
      where c.channel = n.channel and c.channel <> ${channel} and c.asked_at < now() - ${NEWS}::interval
    ), gone as (
      delete from outbox.notice n
      using (select x.id from mine m join outbox.notice x on x.channel = m.channel where m.free order by x.id limit ${ROWS}) d
      where n.channel = ${channel} and n.id = d.id
      returning n.*
    ), named as materialized (
      select g.kind, coalesce(g.relation, k.relation, a.relation, p.relation) as relation, g.side, coalesce(g.reason, k.reason) as reason,
             coalesce(g.sqlstate, k.sqlstate) as sqlstate, g.seq_id, g.id, g.made_at
      from gone g cross join outbox.database d
      left join lateral (
        select r.source_schema || '.' || r.source_table as relation, x.reason, x.sqlstate
        from inbox.parked x join outbox.relation r on r.id = x.relation where x.origin = coalesce(g.origin, d.origin) and x.seq_id = g.seq_id
      ) k on true
      left join lateral (
        select r.source_schema || '.' || r.source_table as relation
        from inbox.applied x join inbox.statement s on s.id = x.statement join outbox.relation r on r.id = s.relation
        where x.origin = coalesce(g.origin, d.origin) and x.seq_id = g.seq_id
      ) a on true
      left join lateral (
        select x.schema_name || '.' || x.table_name as relation
        from auditlog.producer_log x where x.seq_id = g.seq_id and (g.origin is null or x.origin = g.origin)
      ) p on true
      where g.made_at > now() - ${NEWS}::interval
    ), alike as materialized (
      select n.kind, n.relation, n.side, n.reason, n.sqlstate, count(*)::integer as count,
             row_number() over (order by array_position('{STOPPED,FAILED}'::text[], n.kind), count(*) desc, n.relation) as place
      from named n group by n.kind, n.relation, n.side, n.reason, n.sqlstate
    ), batch as (
      select jsonb_build_object(
        'id', (select d.origin from outbox.database d) || '.' || ${channel}::text || '.' || ${term}::text,
        'database', current_database(),
        'since', to_char(min(n.made_at) at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
        'until', to_char(max(n.made_at) at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
        'at_least', (select count(*) from gone) = ${ROWS}::integer,
        'counts', jsonb_build_object('failed', count(*) filter (where n.kind = 'FAILED'), 'stopped', count(*) filter (where n.kind = 'STOPPED'),
                                     'rejected', count(*) filter (where n.kind = 'REJECTED')),
        'groups', (select jsonb_agg(to_jsonb(g) - 'place' order by g.place) from alike g where g.place <= ${GROUPS}),
        'left_out', (select greatest(count(*) - ${GROUPS}::integer, 0) from alike),
        'seq_ids', coalesce((select jsonb_agg(s.seq_id::text order by s.id) from (
                               select x.seq_id, min(x.id) as id from named x where x.seq_id is not null group by 1 order by 2 limit ${SEQ_IDS}
                             ) s), '[]')
      ) as batch
      from named n having count(*) > 0
    )
    update outbox.notice_channel c
    set batch = coalesce(c.batch, (select b.batch from batch b)), tries = case when c.batch is null then 0 else c.tries end
    from mine m where c.channel = m.channel
    returning c.batch`
  return row?.batch ?? undefined
}

/**
 * Closes a batch that was told, and gives the channel back; nothing more is told for `every` milliseconds, and for twice
 * as long each time until QUIET, unless it was calm in between. False where the claim ended meanwhile: then another
 * process tells it again.
 */
export async function closeTold(sql: Sql, { channel, holder, term }: ChannelClaim, every: number): Promise<boolean> {
  const rows = await sql`
    update outbox.notice_channel c
    set batch = null, tries = 0, held_until = '-infinity', told_at = now(), quiet = n.quiet, next_at = now() + n.quiet
    from (
      select x.channel, case when x.told_at < now() - 2 * g.longest then g.shortest else least(greatest(2 * x.quiet, g.shortest), g.longest) end as quiet
      from outbox.notice_channel x
      cross join (select ${seconds(every)}::interval as shortest, greatest(${QUIET}::interval, ${seconds(every)}::interval) as longest) g
    ) n
    where n.channel = c.channel and c.channel = ${channel} and c.holder = ${holder} and c.term = ${term}::bigint
    returning c.channel`
  return rows.length === 1
}

/**
 * Counts a try that failed and gives the channel back until the next is due, `every` milliseconds later and twice as long
 * each time until QUIET. After TRIES the batch is dropped: the failures themselves are in the audit. Tells which it was.
 */
export async function closeFailed(sql: Sql, { channel, holder, term }: ChannelClaim, every: number): Promise<{ tries: number; dropped: boolean } | undefined> {
  const [row] = await sql<{ tries: number; dropped: boolean }[]>`
    update outbox.notice_channel c
    set tries = c.tries + 1, batch = case when c.tries + 1 < ${TRIES}::integer then c.batch end, held_until = '-infinity',
        next_at = now() + least(${seconds(every)}::interval * 2 ^ c.tries, greatest(${QUIET}::interval, ${seconds(every)}::interval))
    where c.channel = ${channel} and c.holder = ${holder} and c.term = ${term}::bigint
    returning c.tries, c.batch is null as dropped`
  return row
}

/** Gives the channel back where there was nothing to tell. */
export async function giveChannelBack(sql: Sql, { channel, holder, term }: ChannelClaim): Promise<void> {
  await sql`
    update outbox.notice_channel set held_until = '-infinity'
    where channel = ${channel} and holder = ${holder} and term = ${term}::bigint`
}

function seconds(ms: number): string {
  return `${ms / 1_000} seconds`
}
