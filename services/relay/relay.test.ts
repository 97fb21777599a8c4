import { spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import type { ExecutionContext } from 'ava'
import kafkajs from 'kafkajs'
import { decodeIdentity } from '../../outbox/record.ts'
import type { Sql } from '../../outbox/sql.ts'
import { freshDatabase } from '../../test/support/database.ts'
import { outboxConnection, readTopic, writeEvents } from '../../test/support/events.ts'
import type { ReadRecord } from '../../test/support/events.ts'
import { administrate, brokers } from '../../test/support/kafka.ts'
import { until } from '../../test/support/until.ts'
import { readConfig } from '../runtime/config.ts'
import type { Config } from '../runtime/config.ts'
import { ensureTopic, openKafka } from '../runtime/kafka.ts'
import { openLog } from '../runtime/log.ts'
import { openLocalWake } from '../runtime/wake.ts'
import { runRelay } from './main.ts'

type Place = { url: string; sql: Sql; topic: string }

async function place(t: ExecutionContext, partitions = 12): Promise<Place> {
  const topic = `relay.${randomUUID()}`
  const log = openLog('relay', 'silent')
  const [database] = await Promise.all([freshDatabase(), ensureTopic(openKafka(brokers(), log), topic, partitions, log)])
  const sql = outboxConnection(database.url)
  t.teardown(async () => {
    await sql.end({ timeout: 1 })
    await Promise.all([database.drop(), administrate((admin) => admin.deleteTopics({ topics: [topic] }))])
  })
  return { url: database.url, sql, topic }
}

function configOf({ url, topic }: Place, holder: string): Config {
  return { ...readConfig({ DATABASE_URL: url, KAFKA_BROKERS: brokers().join(), TOPIC: topic }), holder }
}

/** A relay of this process; `stop` resolves when it has ended. */
function relay(t: ExecutionContext, at: Place, holder: string, wake = openLocalWake()): { stop: () => Promise<void>; ready: Promise<void> } {
  const stop = new AbortController()
  const ready = Promise.withResolvers<void>()
  const ended = runRelay({ config: configOf(at, holder), log: openLog('relay', 'silent'), signal: stop.signal, wake, onReady: ready.resolve })
  const end = async (): Promise<void> => {
    stop.abort()
    await ended
  }
  t.teardown(end)
  return { stop: end, ready: ready.promise }
}

async function relayProcess(t: ExecutionContext, at: Place): Promise<ChildProcess> {
  const child = spawn(process.execPath, [fileURLToPath(new URL('../../test/support/relay-process.ts', import.meta.url))], {
    env: { ...process.env, DATABASE_URL: at.url, KAFKA_BROKERS: brokers().join(), TOPIC: at.topic },
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  t.teardown(() => { child.kill('SIGKILL') })
  await new Promise((resolve) => child.stdout?.once('data', resolve))
  return child
}

async function left(sql: Sql): Promise<number> {
  const [row] = await sql<{ count: number }[]>`select count(*)::integer as count from outbox.event`
  return row?.count ?? -1
}

async function shares(sql: Sql): Promise<Record<string, number>> {
  const rows = await sql<{ holder: string; count: number }[]>`
    select l.holder, count(*)::integer as count from outbox.lane l where l.held_until > now() group by l.holder order by l.holder`
  return Object.fromEntries(rows.map(({ holder, count }) => [holder, count]))
}

/** Writes one statement after the other, so that positions become visible in their order. */
async function writeHot(sql: Sql, topic: string, statements: number, keys: number): Promise<string[]> {
  const seqIds: string[] = []
  for (let n = 0; n < statements; n++) {
    seqIds.push(...await writeEvents(sql, Array.from({ length: 7 }, (_, k) => ({ topic, key: String((n * 7 + k) % keys) }))))
  }
  return seqIds
}

const seqIdOf = (record: ReadRecord): string => decodeIdentity(record.headers)?.seqId ?? ''

function everyOne(seqIds: readonly string[]): (records: readonly ReadRecord[]) => boolean {
  const missing = new Set(seqIds)
  let seen = 0
  return (records) => {
    for (; seen < records.length; seen++) missing.delete(seqIdOf(records[seen]!))
    return missing.size === 0
  }
}

/** Events of one key, each counted where it first appears: the pairs that are the wrong way round. */
function outOfOrder(records: readonly ReadRecord[]): string[] {
  const seen = new Set<string>()
  const last = new Map<string, bigint>()
  const wrong: string[] = []
  for (const record of records) {
    const seqId = seqIdOf(record)
    if (seen.has(seqId)) continue
    seen.add(seqId)
    const before = last.get(record.key) ?? 0n
    if (BigInt(seqId) < before) wrong.push(`${record.key}: ${seqId} after ${before}`)
    last.set(record.key, BigInt(seqId))
  }
  return wrong
}

test('I4 with three relays over hot keys, one that comes late and one that goes, each lane is published in order and nothing is missing', async (t) => {
  const at = await place(t)
  const first = relay(t, at, 'one')
  const written = writeHot(at.sql, at.topic, 400, 25)
  await first.ready
  const second = relay(t, at, 'two')
  await second.ready
  relay(t, at, 'three')
  await first.stop()
  const seqIds = await written
  const records = await readTopic(at.topic, everyOne(seqIds))
  t.deepEqual(outOfOrder(records), [])
  await until(async () => (await left(at.sql)) === 0)
  const published = await at.sql<{ seq_id: string; partition: number; offset: string }[]>`select seq_id, partition, "offset" from auditlog.publish_log order by seq_id`
  t.deepEqual(published.map((row) => row.seq_id), seqIds)
  const places = new Map(records.map((record) => [`${record.partition}/${record.offset}`, seqIdOf(record)]))
  t.deepEqual(published.filter((row) => places.get(`${row.partition}/${row.offset}`) !== row.seq_id), [])
})

test('I4 an event that commits late, below the highest position read, is published', async (t) => {
  const at = await place(t)
  const late = outboxConnection(at.url)
  t.teardown(() => late.end({ timeout: 1 }))
  const one = relay(t, at, 'one')
  await one.ready
  await late`begin`
  const [low] = await writeEvents(late, [{ topic: at.topic, key: '1' }])
  await writeHot(at.sql, at.topic, 3, 1)
  await until(async () => (await left(at.sql)) === 0)
  await late`commit`
  await until(async () => (await at.sql`select from auditlog.publish_log where seq_id = ${low!}`).length === 1)
  t.is(await left(at.sql), 0)
})

test('relays share the lanes; a third gets its part and a stopped one gives its part back at once', async (t) => {
  const at = await place(t)
  const one = relay(t, at, 'one')
  await until(async () => (await shares(at.sql))['one'] === 64)
  relay(t, at, 'two')
  await until(async () => JSON.stringify(await shares(at.sql)) === '{"one":32,"two":32}')
  relay(t, at, 'three')
  await until(async () => {
    const all = await shares(at.sql)
    return Object.keys(all).length === 3 && Object.values(all).every((count) => count >= 20 && count <= 22)
  })
  await one.stop()
  t.is((await shares(at.sql))['one'], undefined)
  await until(async () => JSON.stringify(await shares(at.sql)) === '{"three":32,"two":32}')
})

test('I3 a relay killed amid sending leaves nothing unpublished: its successor sends all', async (t) => {
  const at = await place(t)
  const child = await relayProcess(t, at)
  const written = writeHot(at.sql, at.topic, 600, 500)
  await until(async () => (await at.sql`select from auditlog.publish_log limit 1`).length === 1)
  child.kill('SIGKILL')
  const seqIds = await written
  t.true((await left(at.sql)) > 0)
  const successor = relay(t, at, 'successor')
  const records = await readTopic(at.topic, everyOne(seqIds))
  t.deepEqual(outOfOrder(records), [])
  await until(async () => (await left(at.sql)) === 0)
  t.is((await at.sql`select from auditlog.publish_log`).length, seqIds.length)
  await successor.stop()
})

test('I5 a relay frozen past its lease loses its lanes to another and, awake again, harms nothing', async (t) => {
  const at = await place(t)
  const child = await relayProcess(t, at)
  const written = writeHot(at.sql, at.topic, 300, 25)
  await until(async () => (await at.sql`select from auditlog.publish_log limit 1`).length === 1)
  child.kill('SIGSTOP')
  const other = relay(t, at, 'other')
  await until(async () => (await shares(at.sql))['other'] === 64, { within: 20_000 })
  child.kill('SIGCONT')
  const seqIds = await written
  const records = await readTopic(at.topic, everyOne(seqIds))
  t.deepEqual(outOfOrder(records), [])
  await until(async () => Object.keys(await shares(at.sql)).length === 2)
  await until(async () => (await left(at.sql)) === 0)
  t.is((await at.sql`select from auditlog.publish_log`).length, seqIds.length)
  await other.stop()
})

test('a ring is answered at once, without waiting for the next look', async (t) => {
  const at = await place(t)
  const wake = openLocalWake()
  const one = relay(t, at, 'one', wake)
  await one.ready
  for (let n = 0; n < 5; n++) {
    await writeEvents(at.sql, [{ topic: at.topic, key: String(n) }])
    wake.ring()
    await until(async () => (await left(at.sql)) === 0)
  }
  t.is((await at.sql`select from auditlog.publish_log`).length, 5)
})

test('a batch above the record limit of the topic goes in smaller ones, in order; a record above it stays and holds up only its lane', async (t) => {
  const at = await place(t)
  await administrate((admin) => admin.alterConfigs({
    validateOnly: false,
    resources: [{ type: kafkajs.ConfigResourceTypes.TOPIC, name: at.topic, configEntries: [{ name: 'max.message.bytes', value: '1000000' }] }],
  }))
  const sized = (bytes: number): string => JSON.stringify({ DATA: 'x'.repeat(bytes) })
  // The first lane of its partition, which is read before the others.
  const [{ key, lane } = { key: '', lane: 0 }] = await at.sql<{ key: string; lane: number }[]>`
    select k.key, l.lane from generate_series(1, 1000) n cross join lateral (select n::text as key) k
    cross join lateral (select outbox.lane_of(64::smallint, 'app', 'test', k.key) as lane) l where l.lane < 12 limit 1`
  const seqIds = await writeEvents(at.sql, Array.from({ length: 40 }, () => ({ topic: at.topic, key, payload: sized(300_000) })))
  const [huge] = await writeEvents(at.sql, [{ topic: at.topic, key, payload: sized(1_500_000) }])
  const others = await writeEvents(at.sql, Array.from({ length: 100 }, (_, key) => ({ topic: at.topic, key: String(key) })))
  const one = relay(t, at, 'one')
  const behind = await at.sql<{ seq_id: string }[]>`
    select e.seq_id from outbox.event e where e.lane = (select h.lane from outbox.event h where h.seq_id = ${huge!}) and e.seq_id > ${huge!}`
  const held = new Set(behind.map((row) => row.seq_id))
  const free = others.filter((seqId) => !held.has(seqId))
  const records = await readTopic(at.topic, everyOne([...seqIds, ...free]))
  t.deepEqual(outOfOrder(records), [])
  t.false(records.some((record) => seqIdOf(record) === huge))
  await until(async () => (await left(at.sql)) <= held.size + 1)
  t.is((await at.sql`select from outbox.event where seq_id = ${huge!}`).length, 1)
  const neighbours = await at.sql<{ key: string }[]>`
    select n::text as key from generate_series(2000, 2200) n cross join lateral (select outbox.lane_of(64::smallint, 'app', 'test', n::text) as lane) l
    where l.lane <> ${lane} and l.lane % 12 = ${lane} % 12`
  await writeEvents(at.sql, neighbours.map((one) => ({ topic: at.topic, key: one.key })))
  await until(async () => (await left(at.sql)) <= held.size + 1, { within: 20_000, what: 'the neighbours in the partition of the refused record' })
  await one.stop()
})

test('a record of 20 MB arrives byte for byte, and a topic that is missing is created', async (t) => {
  const at = await place(t)
  const topic = `${at.topic}.other`
  const payload = `{"DATA":"${'0123456789abcdef é'.repeat(1_100_000)}"}`
  const [seqId] = await writeEvents(at.sql, [{ topic, key: '1', payload }])
  const one = relay(t, at, 'one')
  await until(async () => (await left(at.sql)) === 0, { within: 60_000 })
  const [record] = await readTopic(topic, (records) => records.length === 1)
  t.true(record!.value.startsWith(`{"SEQ_ID":"${seqId}","TOPICNAME":"${topic}","SOURCE":"INFORMIX","RECEIVED_AT":"`))
  t.true(record!.value.endsWith(`",${payload.slice(1)}`))
  await one.stop()
})

test('events whose change is gone hold up their own lane and are not removed', async (t) => {
  const at = await place(t)
  const [orphan] = await writeEvents(at.sql, [{ topic: at.topic, key: 'orphan' }])
  await at.sql`delete from auditlog.producer_log`
  await writeEvents(at.sql, Array.from({ length: 20 }, (_, key) => ({ topic: at.topic, key: String(key) })))
  const one = relay(t, at, 'one')
  await until(async () => {
    const rows = await at.sql<{ position: string; lane: number }[]>`select position, lane from outbox.event order by position`
    return rows[0]?.position === orphan && rows.every(({ lane }) => lane === rows[0]?.lane)
  })
  t.pass()
  await one.stop()
})
