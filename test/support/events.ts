import kafkajs from 'kafkajs'
import type { IHeaders } from 'kafkajs'
import postgres from 'postgres'
import type { Sql } from '../../outbox/sql.ts'
import { connectionOptions } from '../../services/runtime/slot.ts'
import { brokers } from './kafka.ts'

/** What a test says of an event; the rest is the same for all. `key` decides the lane, `payload` is the posted text. */
export type GivenEvent = {
  key?: string | null
  payload?: string
  clean?: string
  topic?: string
  source?: string
  table?: string
  sourceTime?: string
  traceparent?: string
  dueIn?: string
}

/** One connection with the settings of the program, for statements of outbox/ and for transactions held open. */
export function outboxConnection(url: string): Sql {
  return postgres(url, connectionOptions({ url, name: 'test', deadline: 60_000 }))
}

/** Writes events as the intake does, in one statement with the transaction id first, and returns their seq_ids. */
export async function writeEvents(sql: Sql, events: readonly GivenEvent[]): Promise<string[]> {
  const given = events.map((event, ord) => ({ ord, topic: 'topic', source: 'INFORMIX', table: 'test', payload: '{"DATA":1}', ...event }))
  const rows = await sql<{ seq_id: string }[]>`
    with xid as materialized (select pg_current_xact_id()),
    given as materialized (
      select g.* from xid, json_to_recordset(${JSON.stringify(given)}::text::json)
        as g(ord integer, key text, payload text, clean text, topic text, source text, "table" text, "sourceTime" text, traceparent text, "dueIn" text)
      order by g.ord
    ), numbered as materialized (select g.*, nextval('outbox.position') as seq_id from given g),
    logged as (
      insert into auditlog.producer_log (seq_id, origin, topicname, source, schema_name, table_name, operation, producer_payload,
                                         clean_payload, dialect, row_key, source_time, traceparent)
      select n.seq_id, 1, n.topic, n.source, 'app', n."table", 'UPDATE', n.payload::json, n.clean, 'v2', json_build_array(n.key)::text,
             coalesce(n."sourceTime"::timestamptz, now()), n.traceparent
      from numbered n
    ), pending as (
      insert into outbox.event (lane, position, seq_id, bytes, due_at)
      select outbox.lane_of(64::smallint, 'app', n."table", n.key), n.seq_id, n.seq_id,
             octet_length(coalesce(n.clean, n.payload)), now() + n."dueIn"::interval
      from numbered n
    )
    select n.seq_id from numbered n order by n.ord`
  return rows.map((row) => row.seq_id)
}

export type ReadRecord = { partition: number; offset: string; key: string; value: string; headers: IHeaders; timestamp: string }

/** Reads a topic from its beginning, partition by partition in order, until `enough` says so; then whatever came. */
export async function readTopic(topic: string, enough: (records: readonly ReadRecord[]) => boolean, from: string[] = brokers()): Promise<ReadRecord[]> {
  const kafka = new kafkajs.Kafka({ brokers: from, retry: { retries: 10, initialRetryTime: 100 }, logLevel: kafkajs.logLevel.NOTHING })
  const consumer = kafka.consumer({ groupId: `read.${topic}.${Date.now()}`, maxWaitTimeInMs: 50 })
  const records: ReadRecord[] = []
  const done = Promise.withResolvers<void>()
  await consumer.connect()
  await consumer.subscribe({ topic, fromBeginning: true })
  await consumer.run({
    autoCommit: false,
    eachMessage: async ({ partition, message }) => {
      const { offset, key, value, headers, timestamp } = message
      records.push({ partition, offset, key: String(key), value: String(value), headers: headers ?? {}, timestamp })
      if (enough(records)) done.resolve()
    },
  })
  await done.promise
  await consumer.disconnect()
  return records
}
