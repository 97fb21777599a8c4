import { randomUUID } from 'node:crypto'
import { createRequire } from 'node:module'
import test from 'ava'
import kafkajs from 'kafkajs'
import type { Producer } from 'kafkajs'
import pino from 'pino'
import { administrate, brokers, setTopicLimit } from '../../test/support/kafka.ts'
import { batchBytes, checkedSend, ensureTopic, isTooLarge, openKafka, openProducer, roomFor, topicLimit } from './kafka.ts'
import { openLog } from './log.ts'

const log = openLog('test', 'silent')
const kafka = openKafka(brokers(), log)
const made: string[] = []

async function topicOf(partitions: number): Promise<string> {
  const topic = `runtime.${randomUUID()}`
  made.push(topic)
  await ensureTopic(kafka, topic, partitions, log)
  return topic
}
test.after.always(() => administrate((admin) => admin.deleteTopics({ topics: made })))

const message = (value: string) => ({ key: Buffer.from('k'), value: Buffer.from(value), timestamp: String(Date.now()), headers: { 'deltapost-id': '1:1:0' } })

test('a missing topic is created, an existing one is taken as it is, and two may create it at once', async (t) => {
  const topic = `runtime.${randomUUID()}`
  made.push(topic)
  t.deepEqual(await Promise.all([ensureTopic(kafka, topic, 5, log), ensureTopic(kafka, topic, 5, log)]), [5, 5])
  t.is(await ensureTopic(kafka, topic, 12, log), 5)
})

test('a send returns the offset of its first record, and the records lie in the partition that was named', async (t) => {
  const topic = await topicOf(3)
  const producer = await openProducer(kafka)
  t.deepEqual(await checkedSend(producer, topic, [{ partition: 2, messages: [message('a'), message('b')] }]), [0n])
  t.deepEqual(await checkedSend(producer, topic, [{ partition: 2, messages: [message('c')] }]), [2n])
  await producer.disconnect()
  await administrate(async (admin) => {
    const offsets = await admin.fetchTopicOffsets(topic)
    t.deepEqual(offsets.toSorted((a, b) => a.partition - b.partition).map(({ high }) => high), ['0', '0', '3'])
  })
})

test('the limit of a topic is read from the broker; a batch that is as large as its size here says passes it', async (t) => {
  const topic = await topicOf(1)
  await setTopicLimit(topic, 50_000)
  t.is(await topicLimit(kafka, topic, log), 50_000)
  t.is(await topicLimit(kafka, `${topic}.missing`, log), undefined)
  const { key, headers, timestamp } = message('')
  const value = Buffer.alloc(roomFor(50_000, key, headers))
  t.is(batchBytes([{ key, value, headers }]), 50_000)
  const producer = await openProducer(kafka)
  t.deepEqual(await checkedSend(producer, topic, [{ partition: 0, messages: [{ key, value, headers, timestamp }] }]), [0n])
  const above = { key, value: Buffer.alloc(value.length + 50), headers, timestamp }
  t.true(isTooLarge(await t.throwsAsync(checkedSend(producer, topic, [{ partition: 0, messages: [above] }]))))
  await producer.disconnect()
})

test('a send to a partition that does not exist fails, though kafkajs resolves it', async (t) => {
  const topic = await topicOf(1)
  const producer = await openProducer(kafka)
  t.deepEqual(await producer.send({ topic, acks: -1, messages: [{ ...message('a'), partition: 7 }] }), [])
  await t.throwsAsync(checkedSend(producer, topic, [{ partition: 7, messages: [message('a')] }]), { code: 'SEND_UNCONFIRMED' })
  await producer.disconnect()
})

const answers: Record<string, object[]> = {
  'nothing': [],
  'another partition only': [{ partition: 1, errorCode: 0, baseOffset: '5' }],
  'an error': [{ partition: 0, errorCode: 6, baseOffset: '-1' }],
  'no offset': [{ partition: 0, errorCode: 0 }],
  'the offset −1': [{ partition: 0, errorCode: 0, baseOffset: '-1' }],
}
for (const [name, answer] of Object.entries(answers)) {
  test(`I3 a send that is answered with ${name} is not taken for acknowledged`, async (t) => {
    // A broker that answers so cannot be had at will; this is what kafkajs would resolve with.
    const producer = { send: async () => answer.map((one) => ({ topicName: 'x', ...one })) } as unknown as Producer
    await t.throwsAsync(checkedSend(producer, 'x', [{ partition: 0, messages: [message('a')] }]), { code: 'SEND_UNCONFIRMED' })
  })
}

test('a record above the limit of the topic is told from other failures', async (t) => {
  const topic = await topicOf(1)
  await setTopicLimit(topic, 2_000)
  const producer = await openProducer(kafka)
  t.true(isTooLarge(await t.throwsAsync(checkedSend(producer, topic, [{ partition: 0, messages: [message('x'.repeat(5_000))] }]))))
  t.false(isTooLarge(await t.throwsAsync(checkedSend(producer, `${topic}.missing`, [{ partition: 0, messages: [message('x')] }]))))
  await producer.disconnect()
})

test('zstd batches of others can be read', async (t) => {
  const topic = await topicOf(1)
  const producer = await openProducer(kafka)
  await producer.send({ topic, compression: kafkajs.CompressionTypes.ZSTD, messages: [{ value: 'x'.repeat(10_000), partition: 0 }] })
  await producer.disconnect()
  // A new broker makes its coordinator at the first question for it.
  const consumer = kafka.consumer({ groupId: `g.${topic}`, maxWaitTimeInMs: 50, retry: { retries: 10, initialRetryTime: 100 } })
  await consumer.connect()
  await consumer.subscribe({ topic, fromBeginning: true })
  const value = await new Promise<string>((resolve, reject) => {
    consumer.run({ eachMessage: async ({ message }) => resolve(String(message.value)) }).catch(reject)
  })
  t.is(value, 'x'.repeat(10_000))
  await consumer.disconnect()
})

test('an idle connection has no timer that fires all the time', (t) => {
  const Queue = createRequire(import.meta.url)('kafkajs/src/network/requestQueue') as new (options: object) => { checkPendingRequests(): void; throttleCheckTimeoutId: unknown }
  const queue = new Queue({ logger: { debug: () => undefined } })
  queue.checkPendingRequests()
  t.is(queue.throttleCheckTimeoutId, null)
})

test('a broker that is away is one warning, not one a try', async (t) => {
  const lines: { level: number; msg: string }[] = []
  const loud = pino({ level: 'warn' }, { write: (line: string) => lines.push(JSON.parse(line) as { level: number; msg: string }) })
  const away = openKafka(['127.0.0.1:9'], loud)
  for (let n = 0; n < 3; n++) await t.throwsAsync(openProducer(away))
  t.true(lines.length > 0)
  t.is(new Set(lines.map(({ msg }) => msg.replace(/\d+/g, '#'))).size, lines.length)
  t.true(lines.every(({ level }) => level === pino.levels.values['warn']))
})
