import { randomBytes } from 'node:crypto'
import type { Consumer, Kafka } from 'kafkajs'
import { decodeIdentity } from '../../outbox/record.ts'
import { DeltapostError } from '../../outbox/errors.ts'
import { CONSUMER_TIMES, KAFKA_RETRY, withAdmin } from '../runtime/kafka.ts'

/**
 * The end of a partition: the offset that comes next, the last of our records before it, and the highest number among those
 * that were read. `last` is undefined where none of them is ours.
 */
export type Tail = { partition: number; end: bigint; last: { offset: string; origin: number; seqId: string } | undefined; highest: bigint }

/** So many records of each partition are looked at: numbers grow within a partition, but for repeats and late commits. */
const LOOK_AT = 200n
const WITHIN = 60_000

/** Reads the ends of all partitions of a topic; none where the topic is not there. Throws TOPIC_UNREAD after a minute. */
export async function readTails(kafka: Kafka, topic: string): Promise<Tail[]> {
  const group = `deltapost-tail-${randomBytes(6).toString('hex')}`
  return withAdmin(kafka, async (admin) => {
    if (!(await admin.listTopics()).includes(topic)) return []
    const offsets = await admin.fetchTopicOffsets(topic)
    const tails = new Map(offsets.map(({ partition, high }): [number, Tail] => [partition, { partition, end: BigInt(high), last: undefined, highest: 0n }]))
    const filled = offsets.filter(({ low, high }) => BigInt(high) > BigInt(low))
    if (filled.length > 0) {
      const consumer = kafka.consumer({ ...CONSUMER_TIMES, groupId: group, allowAutoTopicCreation: false, retry: { ...KAFKA_RETRY, retries: 5 } })
      try {
        await readEnds(consumer, topic, filled.map(({ partition, low }) => ({ partition, low: BigInt(low) })), tails)
      } finally {
        await consumer.disconnect()
        await admin.deleteGroups([group])
      }
    }
    return [...tails.values()].sort((a, b) => a.partition - b.partition)
  })
}

async function readEnds(consumer: Consumer, topic: string, from: readonly { partition: number; low: bigint }[], tails: ReadonlyMap<number, Tail>): Promise<void> {
  const open = new Set(from.map(({ partition }) => partition))
  const { promise: done, resolve, reject } = Promise.withResolvers<void>()
  consumer.on(consumer.events.CRASH, ({ payload }) => reject(payload.error))
  await consumer.connect()
  await consumer.subscribe({ topic, fromBeginning: true })
  await consumer.run({
    autoCommit: false,
    eachMessage: async ({ partition, message }) => {
      const tail = tails.get(partition)
      if (tail === undefined || BigInt(message.offset) >= tail.end) return
      const identity = decodeIdentity(message.headers)
      if (identity !== undefined) {
        tail.last = { offset: message.offset, origin: identity.origin, seqId: identity.seqId }
        if (BigInt(identity.seqId) > tail.highest) tail.highest = BigInt(identity.seqId)
      }
      if (BigInt(message.offset) >= tail.end - 1n) open.delete(partition)
      if (open.size === 0) resolve()
    },
  })
  for (const { partition, low } of from) {
    const end = tails.get(partition)?.end ?? 0n
    consumer.seek({ topic, partition, offset: String(end - LOOK_AT > low ? end - LOOK_AT : low) })
  }
  const timer = setTimeout(() => reject(new DeltapostError('TOPIC_UNREAD', `the end of ${topic} could not be read within ${WITHIN / 1_000} s: partitions ${[...open].join(', ')}`,
    'deltapost doctor, then the same command', { retry: true })), WITHIN)
  await done.finally(() => clearTimeout(timer))
}
