import { randomUUID } from 'node:crypto'
import type { Kafka } from 'kafkajs'

import { CHUNK_HEADER } from '../../../outbox/chunk.ts'
import { decodeIdentity } from '../../../outbox/record.ts'
import { withAdmin } from '../../../services/runtime/kafka.ts'
import { changeHash, changeId } from '../driver.ts'

/** A record as far as an oracle needs it; `id` is that of `changeId`, `hash` is that of the change in it, undefined for a part of one. */
export type TopicRecord = { id: string; attempt: number; key: string; hash: string | undefined; partition: number; offset: bigint }

/** Reads a topic from its first record to the last that is there now, each partition in order. Records that are not ours count as `foreign`. */
export async function readTopic(kafka: Kafka, topic: string, onRecord: (record: TopicRecord) => void): Promise<{ records: number; foreign: number }> {
  const left = await endsOf(kafka, topic)
  const counts = { records: 0, foreign: 0 }
  if (left.size === 0) return counts
  const consumer = kafka.consumer({ groupId: `oracle-${randomUUID()}`, maxWaitTimeInMs: 100, maxBytesPerPartition: 4 << 20 })
  const done = Promise.withResolvers<void>()
  await consumer.connect()
  try {
    await consumer.subscribe({ topic, fromBeginning: true })
    await consumer.run({
      autoCommit: false,
      eachBatch: async ({ batch }) => {
        for (const { offset, key, value, headers } of batch.messages) {
          counts.records += 1
          const identity = decodeIdentity(headers)
          if (identity === undefined) {
            counts.foreign += 1
            continue
          }
          const hash = headers?.[CHUNK_HEADER] === undefined ? postedHash(value ?? Buffer.alloc(0)) : undefined
          onRecord({ id: changeId(identity.origin, identity.seqId), attempt: identity.attempt, key: key?.toString('latin1') ?? '', hash, partition: batch.partition, offset: BigInt(offset) })
        }
        if (BigInt(batch.lastOffset()) + 1n >= (left.get(batch.partition) ?? 0n)) left.delete(batch.partition)
        if (left.size === 0) done.resolve()
      },
    })
    await done.promise
  } finally {
    await consumer.disconnect()
  }
  return counts
}

/** Partitions that hold records, with the offset behind the last one. */
async function endsOf(kafka: Kafka, topic: string): Promise<Map<number, bigint>> {
  return withAdmin(kafka, async (admin) => {
    if (!(await admin.listTopics()).includes(topic)) return new Map<number, bigint>()
    const offsets = await admin.fetchTopicOffsets(topic)
    return new Map(offsets.flatMap(({ partition, high, low }) => (BigInt(high) > BigInt(low) ? [[partition, BigInt(high)] as const] : [])))
  })
}

const FRONT = /^\{"SEQ_ID":"\d+","TOPICNAME":"(?:[^"\\]|\\.)*","SOURCE":"(?:[^"\\]|\\.)*","RECEIVED_AT":"[^"]*",?/

/** The hash of what was posted: the value without the members that the relay puts in front. */
function postedHash(value: Buffer): string {
  const text = value.toString('utf8')
  return changeHash(text.replace(FRONT, '{'))
}
