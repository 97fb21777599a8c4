import { DeltapostError } from '../../outbox/errors.ts'
import type { Sql } from '../../outbox/sql.ts'
import type { Log } from '../runtime/log.ts'
import { openSlot, type Slot } from '../runtime/slot.ts'
import type { Tail } from './topic-tail.ts'

export type RaiseOrigin = {
  /** The database that was restored. */
  databaseUrl: string
  /** The other one, where there are two. */
  otherUrl: string | undefined
  /** What stands at the end of each partition of the topic; empty where there is no topic yet. */
  tails: readonly Tail[]
  topic: string
  group: string
  /** Do not apply what was published after the backup and is still in Kafka. */
  leaveOut: boolean
  log: Log
}

export type Raised = { was: number; origin: number; nextAbove: string; settled: string; epochs: number; positions: number }

/** Numbers that were handed out and seen by nobody we can ask: they waited in the outbox that is gone. */
const MARGIN = 1_000_000n

/**
 * Makes a database that was restored from an older backup a new origin, before anything runs on it again. Everything in it
 * went back together: changes, outcomes, versions, positions, target rows. What did not go back is Kafka, the senders, and
 * the second database where there is one.
 *
 * - The origin is one above every origin known anywhere. Kafka has records (origin, seq_id) of changes that this database
 *   forgot, and will hand out the same numbers again: with the old origin a new change would be taken for one of those,
 *   and be lost (I6).
 * - Numbers go on above the highest one that can be found here, in the other database and at the ends of the topic, and a
 *   million more: versions of one microsecond are decided by them, and people read them.
 * - The epoch of a relation grows where its capture has no time of its own. Posts keep theirs: their source did not go
 *   back, so TIME still orders what Kafka has, what is posted now, and what is posted again. With a higher epoch an old
 *   post that was sent late would win over a newer record that only Kafka has (I7).
 * - Lanes belong to nobody and have no floor; the watermark stands below every change that waits.
 * - Positions stay where the backup had them, so what was published since then is read and applied again: that is how the
 *   target gets back what this database lost. With `leaveOut` they go to the end of the topic. Terms are raised, so
 *   that a consumer of before is refused.
 *
 * Throws SERVICES_RUNNING while a listener, relay or consumer is connected: it would go on under the old numbers.
 */
export async function raiseOrigin(job: RaiseOrigin): Promise<Raised> {
  const slot = openSlot({ url: job.databaseUrl, name: 'origin', deadline: 60_000 })
  const other = job.otherUrl === undefined ? undefined : openSlot({ url: job.otherUrl, name: 'origin', deadline: 60_000 })
  try {
    await slot.run(refuseWhileRunning)
    const own = await slot.run(ownOrigins)
    const there = job.tails.filter(({ last }) => last !== undefined && own.includes(last.origin)).map(({ highest }) => highest)
    const known = await Promise.all([slot, other].flatMap((one) => one?.run((sql) => knownNumbers(sql, own)) ?? []))
    const origin = Math.max(...known.map((numbers) => numbers.origin), ...job.tails.map(({ last }) => last?.origin ?? 0)) + 1
    const past = [...known.map(({ highest }) => BigInt(highest)), ...there].reduce((most, number) => (number > most ? number : most), 0n) + MARGIN
    const [row] = await slot.run((sql) => sql<{ was: number; past_now: string; settled_up_to: string; raised: number }[]>`
      select * from outbox.raise_origin(${origin}::smallint, ${String(past)}::bigint)`)
    if (row === undefined) throw new Error('a function without a row')
    const positions = job.leaveOut ? await leaveOut(slot, job) : 0
    const raised = { was: row.was, origin, nextAbove: row.past_now, settled: row.settled_up_to, epochs: row.raised, positions }
    job.log.info(raised, 'origin raised')
    return raised
  } finally {
    await Promise.all([slot, other].flatMap((one) => one?.close() ?? []))
  }
}

async function refuseWhileRunning(sql: Sql): Promise<void> {
  const running = await sql<{ name: string }[]>`
    select distinct application_name as name from pg_stat_activity
    where datname = current_database() and application_name ~ '^deltapost (listener|relay|consumer)' order by 1`
  if (running.length === 0) return
  throw new DeltapostError('SERVICES_RUNNING', `connected to the restored database: ${running.map(({ name }) => name).join(', ')}`,
    'stop listener, relay and consumer, then the same command')
}

async function ownOrigins(sql: Sql): Promise<number[]> {
  return (await sql<{ origin: number }[]>`select origin from outbox.own_origin order by origin`).map(({ origin }) => origin)
}

/** The highest origin a database knows of any, and the highest number of these origins. Each is the end of an index, or of a small table. */
async function knownNumbers(sql: Sql, own: readonly number[]): Promise<{ origin: number; highest: string }> {
  const [row] = await sql<{ origin: number; highest: string }[]>`
    select greatest((select max(o.origin) from outbox.own_origin o), (select max(a.origin) from inbox.applied a),
                    (select max(p.last_origin) from inbox.position p)) as origin,
           greatest(0, (select max(x.most) from unnest(${`{${own.join()}}`}::smallint[]) as o(origin)
                        cross join lateral (select max(a.seq_id) as most from inbox.applied a where a.origin = o.origin) as x),
                    (select max(p.last_seq_id) from inbox.position p where p.last_origin = any(${`{${own.join()}}`}::smallint[])),
                    case when (select d.origin from outbox.database d) = any(${`{${own.join()}}`}::smallint[]) then greatest(
                      (select s.last_value from outbox.position s), (select max(p.seq_id) from auditlog.producer_log p),
                      (select max(l.position) from auditlog.publish_log l), (select max(e.position) from outbox.event e)) end) as highest`
  if (row === undefined) throw new Error('a select without a row')
  return row
}

/** Positions at the ends of the topic. A partition whose last record is not ours is left: nothing would tell it from a new topic. */
async function leaveOut(slot: Slot, { tails, topic, group }: RaiseOrigin): Promise<number> {
  const ends = tails.filter(({ last }) => last !== undefined).map(({ partition, end, last }) => ({ partition, end: String(end), ...last }))
  const rows = await slot.run((sql) => sql`
    insert into inbox.position as p (consumer_group, topic, partition, next_offset, last_offset, last_origin, last_seq_id, holder)
    select ${group}, ${topic}, e.partition, e."end", e."offset", e.origin, e."seqId", 'origin raise'
    from json_to_recordset(${JSON.stringify(ends)}::text::json) as e(partition integer, "end" bigint, "offset" bigint, origin smallint, "seqId" bigint)
    on conflict (consumer_group, topic, partition) do update
    set next_offset = excluded.next_offset, last_offset = excluded.last_offset, last_origin = excluded.last_origin, last_seq_id = excluded.last_seq_id`)
  return rows.count
}
