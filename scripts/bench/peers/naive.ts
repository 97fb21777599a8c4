import { setTimeout as pause } from 'node:timers/promises'
import type { Kafka } from 'kafkajs'
import postgres, { type Sql } from 'postgres'

/** One change as the naive pipeline takes it: the row, or null where it was deleted. `dueMs`: not before so long after the first. */
export type NaiveChange = { id: number; row: { id: string; n: string; at: string; note: string } | null; payload: string; dueMs?: number }

/** Seconds from the first statement to the last commit, and how long after it was due each change that has a time was in its row. */
export type NaiveRun = { seconds: number; latencies: number[] }

/**
 * The pipeline that audits row by row, as people write it first: a statement, a round trip and a commit for every step of
 * every change, the payload stored again in each log. It has no guard against repeats or disorder, so it needs none of
 * the work that these cost.
 */
const TABLES = `
  create schema naive;
  create table naive.producer_log (seq_id bigint generated always as identity primary key, topicname text, source text, schema_name text,
    table_name text, operation text, payload jsonb, created_at timestamptz default now());
  create table naive.publish_log (seq_id bigint primary key references naive.producer_log, payload jsonb, status text, failure text, published_at timestamptz);
  create table naive.consumer_log (seq_id bigint primary key references naive.producer_log, topicname text, destination text, query text,
    payload jsonb, status text, deployed_at timestamptz);
  create table naive.item (id bigint primary key, n integer not null, at timestamp not null, note text not null)`

export const NAIVE_TABLE = 'naive.item'

/**
 * Moves all changes through Kafka into the target, `atOnce` at a time. Changes of a row go to one worker and one
 * partition, so their order holds.
 */
export async function runNaive(parts: {
  databaseUrl: string; kafka: Kafka; topic: string; atOnce: number; changes: readonly NaiveChange[]; signal: AbortSignal
}): Promise<NaiveRun> {
  const { kafka, topic, atOnce, changes, signal } = parts
  const sql = postgres(parts.databaseUrl, { max: atOnce * 2, onnotice: () => {} })
  const producer = kafka.producer({ allowAutoTopicCreation: false })
  const consumer = kafka.consumer({ groupId: `${topic}.naive`, maxWaitTimeInMs: 100 })
  try {
    await sql.unsafe(TABLES)
    await Promise.all([producer.connect(), consumer.connect()])
    await consumer.subscribe({ topic, fromBeginning: true })
    let left = changes.length
    const latencies: number[] = []
    const all = Promise.withResolvers<void>()
    signal.addEventListener('abort', () => all.reject(new Error('interrupted')), { once: true })
    all.promise.catch(() => undefined) // whoever waits for it below sees it
    const assigned = Promise.withResolvers<void>()
    consumer.on('consumer.group_join', () => assigned.resolve())
    await consumer.run({
      autoCommitInterval: 1_000,
      partitionsConsumedConcurrently: atOnce,
      eachMessage: async ({ message }) => {
        const { visible, due } = await applyOne(sql, topic, String(message.value))
        if (due !== undefined) latencies.push(visible - due)
        left -= 1
        if (left === 0) all.resolve()
      },
    })
    await Promise.race([assigned.promise, all.promise])
    const begun = performance.now()
    const publish = Array.from({ length: atOnce }, async (_, worker) => {
      for (const change of changes) {
        if (change.id % atOnce !== worker) continue
        signal.throwIfAborted()
        const due = change.dueMs === undefined ? undefined : begun + change.dueMs
        if (due !== undefined && due > performance.now()) await pause(due - performance.now(), undefined, { signal })
        await publishOne(sql, topic, { ...change, due }, (partition, value) => producer.send({ topic, acks: -1, messages: [{ key: String(change.id), partition, value }] }), atOnce)
      }
    })
    await Promise.all([...publish, all.promise])
    return { seconds: (performance.now() - begun) / 1_000, latencies }
  } finally {
    await Promise.all([producer.disconnect(), consumer.disconnect()])
    await sql.end({ timeout: 5 })
  }
}

async function publishOne(sql: Sql, topic: string, change: NaiveChange & { due: number | undefined }, send: (partition: number, value: string) => Promise<unknown>, partitions: number): Promise<void> {
  const [logged] = await sql<{ seq_id: string }[]>`
    insert into naive.producer_log (topicname, source, schema_name, table_name, operation, payload)
    values (${topic}, 'INFORMIX', 'bench', 'item', ${change.row === null ? 'DELETE' : 'UPSERT'}, ${change.payload}::text::jsonb) returning seq_id`
  const seqId = logged?.seq_id ?? ''
  await sql`insert into naive.publish_log (seq_id, payload, status) values (${seqId}, ${change.payload}::text::jsonb, 'PENDING')`
  await send(change.id % partitions, JSON.stringify({ seqId, id: change.id, row: change.row, due: change.due }))
  await sql`update naive.publish_log set status = 'PUBLISHED', published_at = now() where seq_id = ${seqId}`
}

/** Times are those of this process, which does all of it; `visible` is when the commit of the row was answered. */
async function applyOne(sql: Sql, topic: string, value: string): Promise<{ visible: number; due: number | undefined }> {
  const { seqId, id, row, due } = JSON.parse(value) as { seqId: string; id: number; row: NaiveChange['row']; due?: number } // written by publishOne
  await sql`
    insert into naive.consumer_log (seq_id, topicname, destination, query, payload, status)
    values (${seqId}, ${topic}, 'POSTGRESQL', 'upsert naive.item', ${value}::text::jsonb, 'PENDING')`
  if (row === null) await sql`delete from naive.item where id = ${id}`
  else {
    await sql`
      insert into naive.item (id, n, at, note) values (${row.id}, ${row.n}, ${row.at}, ${row.note})
      on conflict (id) do update set n = excluded.n, at = excluded.at, note = excluded.note`
  }
  const visible = performance.now()
  await sql`update naive.consumer_log set status = 'DEPLOYED', deployed_at = now() where seq_id = ${seqId}`
  return { visible, due }
}
