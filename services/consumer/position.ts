import type { Sql } from '../../outbox/sql.ts'

/** A consumer's right to a partition, and where the partition stands. Offsets and seq_ids are text: they are bigint. */
export type Position = {
  term: string
  nextOffset: bigint
  lastOffset: bigint | null
  lastOrigin: number | null
  lastSeqId: string | null
}

/**
 * Takes a partition over: raises its term, so that whoever had it before is refused by inbox.apply from now on.
 *
 * Called lazily, at the first batch after an assignment: kafkajs announces an assignment without waiting for anybody.
 */
export async function raiseTerm(sql: Sql, group: string, topic: string, partition: number, holder: string): Promise<Position> {
  const [row] = await sql<{ term: string; next: string; last: string | null; origin: number | null; seqId: string | null }[]>`
    insert into inbox.position as p (consumer_group, topic, partition, holder)
    values (${group}, ${topic}, ${partition}, ${holder})
    on conflict (consumer_group, topic, partition) do update
    set holder = excluded.holder, term = p.term + 1, raised_at = clock_timestamp()
    returning p.term, p.next_offset as next, p.last_offset as last, p.last_origin as origin, p.last_seq_id as "seqId"`
  if (row === undefined) throw new Error('inbox.position returned no row')
  return {
    term: row.term,
    nextOffset: BigInt(row.next),
    lastOffset: row.last === null ? null : BigInt(row.last),
    lastOrigin: row.origin,
    lastSeqId: row.seqId,
  }
}

/** Stores why the partition does not move, and at which change where it is one; the next successful call takes it away. */
export async function storeWaiting(
  sql: Sql, at: { group: string; topic: string; partition: number; term: string }, why: string, seqId: string | null = null,
): Promise<void> {
  await sql`
    update inbox.position p
    set waiting_since = coalesce(p.waiting_since, clock_timestamp()), waiting_for = ${why}, waiting_seq_id = ${seqId}
    where p.consumer_group = ${at.group} and p.topic = ${at.topic} and p.partition = ${at.partition} and p.term = ${at.term}`
}
