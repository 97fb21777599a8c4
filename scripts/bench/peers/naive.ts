import type { Kafka } from 'kafkajs'
import postgres, { type Sql } from 'postgres'

/** One change as the naive pipeline takes it: the row, or null where it was deleted. */
export type NaiveChange = { id: number; row: { id: string; n: string; at: string; note: string } | null; payload: string }

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
 * Moves all changes through Kafka into the target, `atOnce` at a time, and returns the seconds from the first statement to
 * the last commit. Changes of a row go to one worker and one partition, so their order holds.
 */
export async function runNaive(parts: {
  databaseUrl: string; kafka: Kafka; topic: string; atOnce: number; changes: readonly NaiveChange[]; signal: AbortSignal
}): Promise<number> {
  const { kafka, topic, atOnce, changes, signal } = parts
  const sql = postgres(parts.databaseUrl, { max: atOnce * 2, onnotice: () => {} })
  const producer = kafka.producer({ allowAutoTopicCreation: false })
  const consumer = kafka.consumer({ groupId: `${topic}.naive`, maxWaitTimeInMs: 100 })
  try {
    await sql.unsafe(TABLES)
    await Promise.all([producer.connect(), consumer.connect()])
    await consumer.subscribe({ topic, fromBeginning: true })
    let left = changes.length
    const all = Promise.withResolvers<void>()
    signal.addEventListener('abort', () => all.reject(new Error('interrupted')), { once: true })
    all.promise.catch(() => undefined) // whoever waits for it below sees it
    const assigned = Promise.withResolvers<void>()
    consumer.on('consumer.group_join', () => assigned.resolve())
    await consumer.run({
      autoCommitInterval: 1_000,
      partitionsConsumedConcurrently: atOnce,
      eachMessage: async ({ message }) => {
        await applyOne(sql, topic, String(message.value))
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
        await publishOne(sql, topic, change, (partition, value) => producer.send({ topic, acks: -1, messages: [{ key: String(change.id), partition, value }] }), atOnce)
      }
    })
    await Promise.all([...publish, all.promise])
    return (performance.now() - begun) / 1_000
  } finally {
    await Promise.all([producer.disconnect(), consumer.disconnect()])
    await sql.end({ timeout: 5 })
  }
}

async function publishOne(sql: Sql, topic: string, change: NaiveChange, send: (partition: number, value: string) => Promise<unknown>, partitions: number): Promise<void> {
  const [logged] = await sql<{ seq_id: string }[]>`
    insert into naive.producer_log (topicname, source, schema_name, table_name, operation, payload)
    values (${topic}, 'INFORMIX', 'bench', 'item', ${change.row === null ? 'DELETE' : 'UPSERT'}, ${change.payload}::text::jsonb) returning seq_id`
  const seqId = logged?.seq_id ?? ''
  await sql`insert into naive.publish_log (seq_id, payload, status) values (${seqId}, ${change.payload}::text::jsonb, 'PENDING')`
  await send(change.id % partitions, JSON.stringify({ seqId, id: change.id, row: change.row }))
  await sql`update naive.publish_log set status = 'PUBLISHED', published_at = now() where seq_id = ${seqId}`
}

async function applyOne(sql: Sql, topic: string, value: string): Promise<void> {
  const { seqId, id, row } = JSON.parse(value) as { seqId: string; id: number; row: NaiveChange['row'] } // written by publishOne
  await sql`
    insert into naive.consumer_log (seq_id, topicname, destination, query, payload, status)
    values (${seqId}, ${topic}, 'POSTGRESQL', 'upsert naive.item', ${value}::text::jsonb, 'PENDING')`
  if (row === null) await sql`delete from naive.item where id = ${id}`
  else {
    await sql`
      insert into naive.item (id, n, at, note) values (${row.id}, ${row.n}, ${row.at}, ${row.note})
      on conflict (id) do update set n = excluded.n, at = excluded.at, note = excluded.note`
  }
  await sql`update naive.consumer_log set status = 'DEPLOYED', deployed_at = now() where seq_id = ${seqId}`
}
