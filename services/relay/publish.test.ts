import { randomUUID } from 'node:crypto'
import test from 'ava'
import type { ExecutionContext } from 'ava'
import kafkajs from 'kafkajs'
import type { Kafka } from 'kafkajs'
import { beginJoin, decodeChunk, join } from '../../outbox/chunk.ts'
import { decodeIdentity } from '../../outbox/record.ts'
import type { PendingEvent } from '../../outbox/pending.ts'
import { readTopic } from '../../test/support/events.ts'
import type { ReadRecord } from '../../test/support/events.ts'
import { administrate, brokers, createTopic, setTopicLimit, STOCK_LIMIT } from '../../test/support/kafka.ts'
import { ensureTopic, isTooLarge, openKafka } from '../runtime/kafka.ts'
import { openLog } from '../runtime/log.ts'
import { openPublisher } from './publish.ts'
import type { Publisher } from './publish.ts'

const log = openLog('test', 'silent')

async function place(t: ExecutionContext, { limit = STOCK_LIMIT, kafka = openKafka(brokers(), log) }: { limit?: number; kafka?: Kafka } = {}) {
  const topic = `publish.${randomUUID()}`
  await ensureTopic(kafka, topic, 2, log)
  await setTopicLimit(topic, limit)
  const publisher: Publisher = openPublisher({ kafka, partitions: 2, log })
  await publisher.partitions(topic)
  t.teardown(async () => {
    await publisher.close()
    await administrate((admin) => admin.deleteTopics({ topics: [topic] }))
  })
  return { topic, publisher }
}

/** An event whose value has `bytes` bytes, of characters of one to four. */
function event(seqId: number, bytes: number): PendingEvent {
  const text = 'aé日😀'
  const value = text.repeat(Math.floor(bytes / 10)) + 'x'.repeat(bytes % 10)
  return {
    lane: 1, position: String(seqId), bytes, topicname: 'topic', id: `1:${seqId}:0`, version: `1:5:${seqId}`,
    key: `["app","test","${seqId}"]`, value, traceparent: '00-0123456789abcdef0123456789abcdef-0123456789abcdef-01',
  }
}

/** Reads `count` records from the beginning, and puts the chunks among them together. */
async function chunksOf(topic: string, count: number): Promise<{ whole: Buffer | undefined; headers: (string | undefined)[]; keys: string[]; sizes: number[] }> {
  const kafka = new kafkajs.Kafka({ brokers: brokers(), logLevel: kafkajs.logLevel.NOTHING, retry: { retries: 8 } })
  const consumer = kafka.consumer({ groupId: `read.${topic}.${randomUUID()}`, maxWaitTimeInMs: 50 })
  const seen: { header: string | undefined; key: string; value: Buffer; id: string | undefined }[] = []
  const all = Promise.withResolvers<void>()
  await consumer.connect()
  await consumer.subscribe({ topic, fromBeginning: true })
  await consumer.run({
    autoCommit: false,
    eachMessage: async ({ message }) => {
      const { headers, key, value } = message
      seen.push({ header: headers?.['deltapost-chunk']?.toString(), key: String(key), value: Buffer.from(value ?? ''), id: decodeIdentity(headers)?.seqId })
      if (seen.length === count) all.resolve()
    },
  })
  await all.promise
  await consumer.disconnect()
  let whole: Buffer | undefined
  let joining: ReturnType<typeof beginJoin> | undefined
  for (const { header, value } of seen) {
    const chunk = decodeChunk(header === undefined ? {} : { 'deltapost-chunk': header })
    if (typeof chunk !== 'object') continue
    if (chunk.index === 0) joining = beginJoin(chunk)
    if (joining !== undefined && join(joining, chunk, value)) whole = joining.value
  }
  return { whole, headers: seen.map(({ header }) => header), keys: seen.map(({ key }) => key), sizes: seen.map(({ value }) => value.length) }
}

const high = async (topic: string, partition: number): Promise<number> => {
  let offset = -1
  await administrate(async (admin) => { offset = Number((await admin.fetchTopicOffsets(topic)).find((one) => one.partition === partition)?.high) })
  return offset
}

test('an event above the limit of a stock topic goes in chunks of its own key and headers, and the offset is that of the first', async (t) => {
  const { topic, publisher } = await place(t)
  t.is(await publisher.send(topic, 1, [event(1, 100)]), 0n)
  const large = event(2, 5_000_003)
  t.is(await publisher.send(topic, 1, [large]), 1n)
  t.is(await publisher.send(topic, 1, [event(3, 100)]), 6n)
  const { whole, headers, keys, sizes } = await chunksOf(topic, 7)
  t.deepEqual(headers, [undefined, '0:5:5000003', '1:5:5000003', '2:5:5000003', '3:5:5000003', '4:5:5000003', undefined])
  t.true(whole?.equals(Buffer.from(large.value ?? '')))
  t.deepEqual(new Set(keys.slice(1, 6)), new Set(['["app","test","2"]']))
  t.true(Math.max(...sizes) <= STOCK_LIMIT)
  const records: ReadRecord[] = await readTopic(topic, (all) => all.length === 7)
  t.deepEqual(Object.keys(records[1]!.headers).toSorted(), ['deltapost-chunk', 'deltapost-id', 'deltapost-version', 'traceparent'])
  t.deepEqual(Object.keys(records[0]!.headers).toSorted(), ['deltapost-id', 'deltapost-version', 'traceparent'])
})

test('a value goes whole up to the very limit of the topic, and in two chunks above it', async (t) => {
  const { topic, publisher } = await place(t, { limit: 100_000 })
  for (let bytes = 99_600; bytes <= 100_020; bytes += 20) await publisher.send(topic, 0, [event(bytes, bytes)])
  const written = await high(topic, 0)
  const { sizes } = await chunksOf(topic, written)
  t.true(Math.max(...sizes) > 99_600, `the largest whole one had ${Math.max(...sizes)} bytes`)
  t.is(sizes.reduce((sum, size) => sum + size, 0), Array.from({ length: 22 }, (_, n) => 99_600 + 20 * n).reduce((sum, size) => sum + size, 0))
})

test('several events that are too large together are refused before anything is written', async (t) => {
  const { topic, publisher } = await place(t)
  const error = await t.throwsAsync(publisher.send(topic, 0, [event(1, 10), event(2, 3_000_000)]))
  t.true(isTooLarge(error))
  t.is(await high(topic, 0), 0)
})

test('I5 chunks stop when the lane is lost, and whoever sends the event again begins with the first', async (t) => {
  const { topic, publisher } = await place(t)
  const large = event(1, 4_500_000)
  let asked = 0
  // Asked before each chunk but the first, and before each request: for two chunks three times.
  await t.throwsAsync(publisher.send(topic, 0, [large], () => ++asked < 4), { code: 'CHUNKS_INTERRUPTED' })
  t.is(await high(topic, 0), 2)
  t.is(await publisher.send(topic, 0, [large]), 2n)
  const { whole, headers } = await chunksOf(topic, 7)
  t.deepEqual(headers.map((header) => header?.[0]), ['0', '1', '0', '1', '2', '3', '4'])
  t.true(whole?.equals(Buffer.from(large.value ?? '')))
})

test('a limit that was lowered is found at the refusal, one that was raised at the next count', async (t) => {
  const { topic, publisher } = await place(t)
  await setTopicLimit(topic, 200_000)
  t.is(await publisher.send(topic, 0, [event(1, 900_000)]), 0n)
  const written = await high(topic, 0)
  t.true(written >= 5)
  t.deepEqual((await chunksOf(topic, written)).whole, Buffer.from(event(1, 900_000).value ?? ''))
  await setTopicLimit(topic, STOCK_LIMIT)
  await publisher.recount(topic)
  await publisher.send(topic, 0, [event(2, 900_000)])
  t.is(await high(topic, 0), written + 1)
})

test('where the limit may not be read, events go all the same, in smaller chunks if need be', async (t) => {
  const real = openKafka(brokers(), log)
  const kafka: Kafka = {
    ...real, producer: real.producer, consumer: real.consumer, logger: real.logger,
    admin: (config) => ({
      ...real.admin(config),
      describeConfigs: async () => { throw Object.assign(new Error('not for this user'), { type: 'TOPIC_AUTHORIZATION_FAILED' }) },
    }),
  }
  const { topic, publisher } = await place(t, { limit: 300_000, kafka })
  const large = event(1, 2_500_000)
  t.is(await publisher.send(topic, 0, [large]), 0n)
  t.true((await chunksOf(topic, await high(topic, 0))).whole?.equals(Buffer.from(large.value ?? '')))
})

test('a topic that cannot be had keeps no other from being counted anew', async (t) => {
  const { topic, publisher } = await place(t)
  const gone = `publish.${randomUUID()}`
  await administrate((admin) => createTopic(admin, gone, 1))
  await publisher.partitions(gone)
  await administrate((admin) => admin.deleteTopics({ topics: [gone] }))
  // The broker makes no topic whose name differs from another's in dots and underscores only.
  const twin = gone.replaceAll('.', '_')
  await administrate((admin) => createTopic(admin, twin, 1))
  t.teardown(() => administrate((admin) => admin.deleteTopics({ topics: [twin] })))
  const behind = `publish.${randomUUID()}`
  await administrate((admin) => createTopic(admin, behind, 1))
  t.is(await publisher.partitions(behind), 1)
  await administrate((admin) => admin.createPartitions({ topicPartitions: [{ topic: behind, count: 3 }] }))
  await t.throwsAsync(publisher.recount(topic))
  t.is(await publisher.partitions(behind), 3)
  await administrate((admin) => admin.deleteTopics({ topics: [behind] }))
})
