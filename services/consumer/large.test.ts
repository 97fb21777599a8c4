import test from 'ava'
import type { ExecutionContext } from 'ava'
import kafkajs from 'kafkajs'
import { pino } from 'pino'
import { boundsOf, chunkHeader, cut } from '../../outbox/chunk.ts'
import { encodeIdentity } from '../../outbox/record.ts'
import { connect, freshDatabase } from '../../test/support/database.ts'
import { administrate, brokers, freshTopic } from '../../test/support/kafka.ts'
import { until } from '../../test/support/until.ts'
import { readConfig } from '../runtime/config.ts'
import { openKafka } from '../runtime/kafka.ts'
import { openSlot } from '../runtime/slot.ts'
import { openChunks } from './chunks.ts'
import { openLending } from './lending.ts'
import { consumerLoop } from './loop.ts'
import { runConsumer } from './main.ts'
import { raiseTerm } from './position.ts'
import { openRelations } from './relations.ts'
import { openRounds } from './rounds.ts'
import { superviseConsumer } from './supervise.ts'
import { SILENT, tendOpen } from './unfinished.ts'

type Row = Record<string, unknown>

const log = pino({ level: 'silent' })

/** A record as a relay writes it: a change, or a part of one. */
type Given = { partition: number; seq: number; value: Buffer; chunk?: { index: number; count: number; total: number } }

const valueOf = (seq: number, text: string): Buffer => Buffer.from(JSON.stringify({
  SEQ_ID: String(seq), TIME: '2026-01-01T00:00:00.1Z', SCHEMANAME: 'app', TABLENAME: 'document', OPERATION: 'INSERT', DATA: { id: String(seq), body: text },
}))
const small = (partition: number, seq: number): Given => ({ partition, seq, value: valueOf(seq, 'small') })
const chunksOf = (partition: number, seq: number, text: string, most: number): Given[] =>
  [...cut(valueOf(seq, text), most)].map(({ chunk, bytes }) => ({ partition, seq, value: bytes, chunk }))
/** The first chunk of a change of `total` bytes that goes no further; the memory for it is set aside and never touched. */
const begun = (partition: number, seq: number, total: number): Given => {
  const chunk = { index: 0, count: Math.ceil(total / 1_000), total }
  return { partition, seq, value: Buffer.alloc(boundsOf(chunk).to), chunk }
}

/** A database, a topic, and consumers of one group over them. */
async function place(t: ExecutionContext, partitions: number) {
  const database = await freshDatabase()
  const { topic, drop } = await freshTopic('chunks', partitions)
  const sql = connect(database.url, { max: 2 })
  const client = new kafkajs.Kafka({ brokers: brokers(), clientId: 'test', logLevel: kafkajs.logLevel.NOTHING, retry: { retries: 8 } })
  const producer = client.producer({ createPartitioner: kafkajs.Partitioners.DefaultPartitioner })
  await producer.connect()
  const stops: (() => Promise<void>)[] = []
  t.timeout(120_000)
  t.teardown(async () => {
    await Promise.all(stops.map((stop) => stop()))
    await producer.disconnect()
    await sql.end({ timeout: 5 })
    await database.drop()
    await drop()
  })
  await sql`create schema app`
  await sql`create table app.document (id integer primary key, body text)`
  const config = readConfig({ DATABASE_URL: database.url, KAFKA_BROKERS: brokers().join(), TOPIC: topic, CONSUMER_GROUP: topic, TOPIC_PARTITIONS: String(partitions) })

  function start(holder: string, openBytes?: number): { stop: () => Promise<void> } {
    const stopping = new AbortController()
    const { signal } = stopping
    const ended = openBytes === undefined ? runConsumer({ config: { ...config, holder }, log, signal }) : consumeWithin(holder, openBytes, signal)
    const stop = async (): Promise<void> => { stopping.abort(); await ended }
    stops.push(stop)
    return { stop }
  }
  async function consumeWithin(holder: string, openBytes: number, signal: AbortSignal): Promise<void> {
    const slots = Array.from({ length: 4 }, () => openSlot({ url: database.url, name: 'test' }))
    const lending = openLending(slots)
    const relations = openRelations({ source: config.source, destination: config.destination, autoCreate: true, log })
    const apply = openRounds(lending, slots.length, { ...config, course: config, relations, log })
    await superviseConsumer({
      kafka: openKafka(brokers(), log), log, signal, topic, group: topic, atOnce: 4, ready: () => undefined, prepareTopic: async () => undefined,
      loop: (seek) => consumerLoop({ group: topic, holder, slots: lending, apply, openBytes, seek, log, keepForeign: async () => undefined }),
    })
    await Promise.all(slots.map((slot) => slot.close()))
  }
  async function produce(...records: Given[]): Promise<void> {
    for (const { partition, seq, value, chunk } of records) {
      const identity = { origin: 1, seqId: String(seq), attempt: 0, epoch: 1, time: String(seq), seq: String(seq) }
      await producer.send({
        topic, acks: -1,
        messages: [{ partition, key: '["app","document"]', value, headers: { ...encodeIdentity(identity), ...(chunk === undefined ? {} : chunkHeader(chunk)) } }],
      })
    }
  }
  const rows = async (text: string): Promise<Row[]> => (await sql.unsafe(text)).map((row) => ({ ...row }))
  const applied = async (...seqs: number[]): Promise<boolean> => (await sql`select 1 from inbox.applied where seq_id = any(${seqs})`).length === seqs.length
  const positions = () => rows(`select partition, next_offset::int as next from inbox.position where topic = '${topic}' order by partition`)
  return { sql, topic, url: database.url, start, produce, rows, applied, positions }
}

const text = 'é日😀 "quoted" \\ '.repeat(2_000)

test('I6 a consumer that is restarted between chunks: the change and those around it are applied once, and the position waits for it', async (t) => {
  const { start, produce, rows, applied, positions, topic } = await place(t, 1)
  const [one, two, three, ...rest] = chunksOf(0, 2, text, 10_000)
  const first = start('one')
  await produce(small(0, 1), one!, small(0, 3), two!, small(0, 4), three!)
  await until(() => applied(1, 3, 4), { within: 30_000 })
  t.deepEqual(await positions(), [{ partition: 0, next: 1 }])
  await first.stop()
  t.deepEqual(await positions(), [{ partition: 0, next: 1 }])
  await administrate(async (admin) => {
    const [mirror] = await admin.fetchOffsets({ groupId: topic, topics: [topic] })
    t.true(Number(mirror?.partitions[0]?.offset) <= 1, 'what Kafka shows as committed')
  })
  start('two')
  await produce(...rest, small(0, 5))
  await until(() => applied(1, 2, 3, 4, 5), { within: 30_000 })
  t.deepEqual(await rows('select id, length(body) as length from app.document order by id'), [1, 2, 3, 4, 5].map((id) => ({ id, length: id === 2 ? [...text].length : 5 })))
  t.deepEqual(await rows('select body from app.document where id = 2'), [{ body: text }])
  t.deepEqual(await rows('select seq_id::int as seq, status, "offset"::int from inbox.applied order by seq_id'), [
    [1, 0], [2, 5 + rest.length], [3, 2], [4, 4], [5, 6 + rest.length],
  ].map(([seq, offset]) => ({ seq, status: 'APPLIED', offset })))
  await until(async () => (await positions())[0]?.['next'] === 7 + rest.length)
})

test('I6 repetitions of chunks of what is applied are nothing new, also to another consumer', async (t) => {
  const { start, produce, rows, applied, positions } = await place(t, 1)
  const large = chunksOf(0, 1, text, 10_000)
  const first = start('one')
  await produce(small(0, 9), ...large)
  await until(() => applied(1), { within: 30_000 })
  await first.stop()
  start('two')
  await produce(...large.slice(2), ...large, small(0, 2))
  await until(() => applied(2), { within: 30_000 })
  t.is((await positions())[0]?.['next'], 3 * large.length)
  t.deepEqual(await rows('select status, count(*)::int as n from inbox.applied group by 1'), [{ status: 'APPLIED', n: 3 }])
  t.deepEqual(await rows('select reason from auditlog.rejected_request'), [])
})

test('I6 a relay that died between chunks: the next one sends all of them, and the change is applied once', async (t) => {
  const { start, produce, rows, applied, positions } = await place(t, 1)
  const [large, other] = [chunksOf(0, 1, text, 10_000), chunksOf(0, 1, text, 17_000)]
  start('one')
  await produce(large[0]!, large[1]!, small(0, 2), other[0]!, large[0]!, ...large, large.at(-1)!, other[1]!, small(0, 3))
  await until(() => applied(1, 2, 3), { within: 30_000 })
  t.deepEqual(await rows('select body from app.document where id = 1'), [{ body: text }])
  await until(async () => (await positions())[0]?.['next'] === 8 + large.length, { what: 'the position behind all of it' })
  t.deepEqual(await rows('select reason from auditlog.rejected_request'), [])
})

test('I6 chunks of two changes that lie among each other are put together each', async (t) => {
  const { start, produce, rows, applied } = await place(t, 1)
  const [a, b] = [chunksOf(0, 1, `${text}a`, 9_000), chunksOf(0, 2, `${text}b`, 13_000)]
  start('one')
  for (let at = 0; at < Math.max(a.length, b.length); at++) await produce(...a.slice(at, at + 1), ...b.slice(at, at + 1), small(0, 10 + at))
  await until(() => applied(1, 2), { within: 30_000 })
  t.deepEqual(await rows('select body from app.document where id <= 2 order by id'), [{ body: `${text}a` }, { body: `${text}b` }])
})

test('I11 chunks whose first is gone are kept as rejected, once for the change, and hold up nothing', async (t) => {
  const { start, produce, rows, applied, positions } = await place(t, 1)
  const [, ...tail] = chunksOf(0, 1, text, 10_000)
  const first = start('one')
  await produce(...tail, { ...small(0, 9), chunk: { index: 0, count: 1, total: 3 } }, small(0, 2))
  await until(() => applied(2), { within: 30_000 })
  await first.stop()
  start('two')
  await produce(...tail, small(0, 3))
  await until(() => applied(3), { within: 30_000 })
  t.deepEqual(await rows(`select reason, state, headers ->> 'deltapost-id' as id, octet_length(body) as bytes from auditlog.rejected_request order by reason`), [
    { reason: 'incomplete_chunks', state: 'WAITING', id: '1:1:0', bytes: tail[0]!.value.length },
    { reason: 'invalid_record', state: 'WAITING', id: null, bytes: small(0, 9).value.length },
  ])
  t.is((await positions())[0]?.['next'], 2 * tail.length + 3)
})

test('memory for open changes is bounded: one that has none is passed over, waits for it when it is all there, and is applied', async (t) => {
  const { start, produce, rows, applied, positions } = await place(t, 2)
  const large = chunksOf(1, 2, text, 10_000)
  start('one', 100_000)
  await produce(begun(0, 1, 99_000), small(0, 3))
  await until(() => applied(3), { within: 30_000 })
  await produce(large[0]!, small(1, 4))
  await until(() => applied(4), { within: 30_000 })
  await produce(...large.slice(1))
  await until(async () => (await rows(`select waiting_for from inbox.position where partition = 1`))[0]?.['waiting_for'] !== null, { within: 30_000 })
  t.regex(String((await rows('select waiting_for from inbox.position where partition = 1'))[0]?.['waiting_for']), /no memory .* begins at offset 0/)
  t.false(await applied(2))
  await until(() => applied(2), { within: 40_000, what: 'the memory of the silent one to be given' })
  t.deepEqual(await rows('select body from app.document where id = 2'), [{ body: text }])
  t.deepEqual(await positions(), [{ partition: 0, next: 0 }, { partition: 1, next: large.length + 1 }])
})

test('I9 a change that never comes whole holds its position and says so; an outcome on record lets it go on', async (t) => {
  const { sql, url, topic, rows, positions } = await place(t, 1)
  const slot = openSlot({ url, name: 'test' })
  t.teardown(() => slot.close())
  const { term } = await slot.run((one) => raiseTerm(one, topic, topic, 0, 'test'))
  let now = 0
  const chunks = openChunks(() => true, () => now)
  const identity = { origin: 1, seqId: '7', attempt: 0, epoch: 1, time: '7', seq: '7' }
  const { value, chunk } = begun(0, 7, 5_000)
  chunks.take(40n, identity, chunk!, value)
  const tend = () => tendOpen(slot, { group: topic, topic, partition: 0, term }, { from: 50n, chunks })
  const waiting = () => rows('select waiting_for as why, waiting_seq_id::int as seq from inbox.position')
  await tend()
  t.deepEqual(await waiting(), [{ why: null, seq: null }])
  now = SILENT
  await tend()
  t.like((await waiting())[0], { seq: 7 })
  t.regex(String((await waiting())[0]?.['why']), /^only 1 of 5 chunks of change 1:7:0 have come, from offset 40 on;/)
  t.is(chunks.hold(), 40n)
  await sql`insert into inbox.applied (origin, seq_id, status, statement, partition, "offset", failure) values (1, 7, 'SKIPPED', 0, 0, 40, 'its event was removed by hand')`
  await tend()
  t.is(chunks.hold(), undefined)
  t.deepEqual(await waiting(), [{ why: null, seq: null }])
  t.deepEqual(await positions(), [{ partition: 0, next: 50 }])
})
