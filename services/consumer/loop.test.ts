import test from 'ava'
import type { ExecutionContext } from 'ava'
import kafkajs, { type EachBatchPayload } from 'kafkajs'
import { pino } from 'pino'
import { encodeIdentity } from '../../outbox/record.ts'
import { startRole } from '../../scripts/commands/role-process.ts'
import { connect, freshDatabase } from '../../test/support/database.ts'
import { administrate, brokers, createTopic, freshTopic } from '../../test/support/kafka.ts'
import { until } from '../../test/support/until.ts'
import { readConfig } from '../runtime/config.ts'
import { openSlot } from '../runtime/slot.ts'
import { openLending } from './lending.ts'
import { consumerLoop } from './loop.ts'
import { runConsumer } from './main.ts'

type Row = Record<string, unknown>

/** A database, a topic, and consumers of one group over them. */
async function place(t: ExecutionContext, partitions: number) {
  const database = await freshDatabase()
  const { topic, drop } = await freshTopic('consume', partitions)
  const sql = connect(database.url, { max: 2 })
  const kafka = new kafkajs.Kafka({ brokers: brokers(), clientId: 'test', logLevel: kafkajs.logLevel.NOTHING, retry: { retries: 8 } })
  const producer = kafka.producer({ createPartitioner: kafkajs.Partitioners.DefaultPartitioner })
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
  await sql`create table app.account (id integer primary key, name varchar(20))`

  const config = readConfig({ DATABASE_URL: database.url, KAFKA_BROKERS: brokers().join(), TOPIC: topic, CONSUMER_GROUP: topic, TOPIC_PARTITIONS: String(partitions) })
  function start(holder: string): { ready: Promise<void>; stop: () => Promise<void> } {
    const { promise: ready, resolve } = Promise.withResolvers<void>()
    const stopping = new AbortController()
    const ended = runConsumer({ config: { ...config, holder }, log: pino({ level: 'silent' }), signal: stopping.signal, onReady: resolve })
    const stop = async (): Promise<void> => { stopping.abort(); await ended }
    stops.push(stop)
    return { ready, stop }
  }
  async function produce(partition: number, ...changes: { id: number; name: string; seq: number; time?: number }[]): Promise<void> {
    await producer.send({
      topic, acks: -1,
      messages: changes.map(({ id, name, seq, time = seq }) => ({
        partition, key: JSON.stringify(['app', 'account', String(id)]), timestamp: String(Date.now()),
        headers: encodeIdentity({ origin: 1, seqId: String(seq), attempt: 0, epoch: 1, time: String(time), seq: String(seq) }),
        value: JSON.stringify({ SEQ_ID: String(seq), TIME: '2026-01-01T00:00:00.1Z', SCHEMANAME: 'app', TABLENAME: 'account', OPERATION: 'INSERT', DATA: { id: String(id), name } }),
      })),
    })
  }
  const rows = async (text: string): Promise<Row[]> => (await sql.unsafe(text)).map((row) => ({ ...row }))
  return { sql, url: database.url, topic, start, produce, producer, rows }
}

test('records that are not changes are kept as rejected, once, and hold up nothing', async (t) => {
  const { start, produce, producer, rows, topic } = await place(t, 1)
  await producer.send({ topic, acks: -1, messages: [{ partition: 0, value: 'not json' }, { partition: 0, value: null }] })
  await produce(0, { id: 1, name: 'a', seq: 1 })
  start('one')
  await until(async () => (await rows('select 1 from app.account')).length === 1, { within: 30_000 })
  t.deepEqual(await rows(`select reason, convert_from(body, 'UTF8') as body from auditlog.rejected_request order by id`),
    [{ reason: 'no_identity', body: 'not json' }, { reason: 'no_identity', body: '' }])
})

test('I8 a change the target refuses holds up its own row, and a relation that stops goes on by itself once its table is back', async (t) => {
  const { start, produce, rows, sql } = await place(t, 1)
  await produce(0, { id: 1, name: 'fits', seq: 1 }, { id: 2, name: 'longer than twenty characters', seq: 2 }, { id: 3, name: 'behind it', seq: 3 })
  start('one')
  await until(async () => (await rows('select 1 from inbox.applied')).length === 3, { within: 30_000 })
  t.deepEqual(await rows('select id from app.account order by id'), [{ id: 1 }, { id: 3 }])
  t.deepEqual(await rows('select seq_id, status from inbox.applied order by seq_id'), [{ seq_id: '1', status: 'APPLIED' }, { seq_id: '2', status: 'RETRYING' }, { seq_id: '3', status: 'APPLIED' }])
  await sql`alter table app.account rename to moved`
  await produce(0, { id: 4, name: 'queued', seq: 4 })
  await until(async () => (await rows(`select 1 from outbox.relation where state = 'STOPPED'`)).length === 1, { within: 30_000 })
  await sql`alter table app.moved rename to account`
  await until(async () => (await rows('select 1 from app.account where id = 4')).length === 1, { within: 30_000 })
  await until(async () => (await rows(`select 1 from outbox.relation where state = 'ACTIVE'`)).length === 1, { within: 30_000 })
})

test('I6 a second consumer takes over partitions in mid-stream and a stored position wins over Kafka\'s committed offset', async (t) => {
  const { start, produce, rows, topic } = await place(t, 4)
  const first = start('one')
  await first.ready
  for (let seq = 1; seq <= 400; seq += 4) {
    await Promise.all([0, 1, 2, 3].map((partition) => produce(partition, { id: seq + partition, name: 'x', seq: seq + partition })))
    if (seq === 101) start('two')
  }
  await until(async () => (await rows('select 1 from inbox.applied')).length === 400, { within: 60_000 })
  await first.stop()
  await produce(0, { id: 1_000, name: 'after', seq: 1_000 })
  await until(async () => (await rows('select 1 from app.account where id = 1000')).length === 1, { within: 60_000 })
  t.deepEqual(await rows('select status, count(*)::int as n from inbox.applied group by 1'), [{ status: 'APPLIED', n: 401 }])
  t.deepEqual(await rows(`select sum(next_offset)::int as records from inbox.position where topic = '${topic}'`), [{ records: 401 }])
})

test('what Kafka shows as committed is where the partitions stand once nothing more comes', async (t) => {
  const { start, produce, rows, topic } = await place(t, 2)
  const { ready } = start('one')
  await ready
  for (let seq = 1; seq <= 20; seq += 1) await produce(seq % 2, { id: seq, name: 'x', seq })
  await until(async () => (await rows('select 1 from inbox.applied')).length === 20, { within: 30_000 })
  await until(async () => {
    let offsets: string[] = []
    await administrate(async (admin) => {
      const [mirrored] = await admin.fetchOffsets({ groupId: topic, topics: [topic] })
      offsets = (mirrored?.partitions ?? []).map(({ offset }) => offset)
    })
    return String(offsets) === '10,10'
  }, { within: 30_000 })
  t.pass()
})

test('a topic that was deleted and made anew is read from its beginning', async (t) => {
  const { start, produce, rows, topic } = await place(t, 1)
  const first = start('one')
  await produce(0, { id: 1, name: 'a', seq: 1 }, { id: 2, name: 'b', seq: 2 })
  await until(async () => (await rows('select 1 from app.account')).length === 2, { within: 30_000 })
  await first.stop()
  await administrate((admin) => admin.deleteTopics({ topics: [topic] }))
  await until(async () => { await administrate((admin) => createTopic(admin, topic, 1)); return true }, { within: 30_000 })
  await produce(0, { id: 3, name: 'c', seq: 3 }, { id: 4, name: 'd', seq: 4 }, { id: 5, name: 'e', seq: 5 })
  start('two')
  await until(async () => (await rows('select 1 from app.account')).length === 5, { within: 40_000 })
  t.pass()
})

test('a heartbeat that fails is followed by the next while a call is under way', async (t) => {
  const { sql, url } = await place(t, 1)
  const slot = openSlot({ url, name: 'beat', lockTimeout: 0, deadline: 60_000 })
  t.teardown(() => slot.close())
  const log = pino({ level: 'silent' })
  const loop = consumerLoop({
    group: 'beat', holder: 'one', slots: openLending([slot]), apply: () => Promise.resolve('OK'), seek: () => undefined, keepForeign: () => Promise.resolve(), log,
  })
  let beats = 0
  const payload = {
    batch: { topic: 'beat', partition: 0, messages: [{ offset: '0', headers: {}, key: null, value: null, timestamp: '0' }] },
    isRunning: () => true, isStale: () => false, pause: () => () => undefined, resolveOffset: () => undefined,
    uncommittedOffsets: () => ({ topics: [] }), commitOffsetsIfNecessary: () => Promise.resolve(),
    heartbeat: () => ++beats === 1 ? Promise.reject(new Error('the coordinator is away')) : Promise.resolve(),
  } as unknown as EachBatchPayload // as much of it as the loop uses
  let taken: Promise<void> | undefined
  await sql.begin(async (tx) => {
    await tx`lock table inbox.position`
    taken = loop.eachBatch(payload)
    await until(() => beats >= 3, { within: 30_000 })
  })
  await t.notThrowsAsync(taken ?? Promise.reject(new Error('no batch was taken')))
})

test('a consumer whose call is stuck ends with 0 within its time to shut down, and what it did not finish is applied after the next start', async (t) => {
  const { sql, url, start, produce, rows, topic } = await place(t, 1)
  const stuck = startRole('consumer', {
    PATH: process.env['PATH'] ?? '', DATABASE_URL: url, KAFKA_BROKERS: brokers().join(), TOPIC: topic, CONSUMER_GROUP: topic, TOPIC_PARTITIONS: '1', SHUTDOWN_TIMEOUT: '4s',
  }, () => undefined)
  t.teardown(stuck.stop)
  await produce(0, { id: 1, name: 'a', seq: 1 })
  await until(async () => (await rows('select 1 from app.account')).length === 1, { within: 30_000 })
  await sql.begin(async (tx) => {
    await tx`lock table inbox.position`
    await produce(0, { id: 2, name: 'b', seq: 2 })
    await until(async () => (await rows(`select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()`)).length > 0)
    process.kill(stuck.pid, 'SIGTERM')
    t.is(await stuck.exited, 0, 'with 1 it ends at the limit')
  })
  start('two')
  await until(async () => (await rows('select 1 from app.account')).length === 2, { within: 30_000 })
  t.deepEqual(await rows(`select next_offset::int as next from inbox.position where topic = '${topic}'`), [{ next: 2 }])
})
