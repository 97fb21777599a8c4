import { spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { fileURLToPath } from 'node:url'
import test from 'ava'
import type { ExecutionContext } from 'ava'
import { decodeIdentity } from '../../outbox/record.ts'
import { publishAgain } from '../../outbox/refused.ts'
import type { Sql } from '../../outbox/sql.ts'
import { freshDatabase } from '../../test/support/database.ts'
import { outboxConnection, readTopic, writeEvents } from '../../test/support/events.ts'
import type { ReadRecord } from '../../test/support/events.ts'
import { administrate, brokers, createTopic, setTopicLimit, STOCK_LIMIT } from '../../test/support/kafka.ts'
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
  return {
    ...readConfig({
      DATABASE_URL: url, KAFKA_BROKERS: brokers().join(), TOPIC: topic,
      MAX_RETRIES: '2', RETRY_BACKOFF_MS: '20', ERROR_TOPIC: `${topic}.error`, ERROR_RECIPIENTS: '["admin@abc.com"]',
    }),
    holder,
  }
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
  await until(async () => (await shares(at.sql))['one'] === 72)
  relay(t, at, 'two')
  await until(async () => JSON.stringify(await shares(at.sql)) === '{"one":36,"two":36}')
  relay(t, at, 'three')
  await until(async () => {
    const all = await shares(at.sql)
    return Object.keys(all).length === 3 && Object.values(all).every((count) => count >= 20 && count <= 25)
  })
  await one.stop()
  t.is((await shares(at.sql))['one'], undefined)
  await until(async () => JSON.stringify(await shares(at.sql)) === '{"three":36,"two":36}')
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
  await until(async () => (await shares(at.sql))['other'] === 72, { within: 20_000 })
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

/** A further topic of the place, which goes with it. */
async function another(t: ExecutionContext, at: Place, name: string): Promise<string> {
  const topic = `${at.topic}.${name}`
  const log = openLog('relay', 'silent')
  await ensureTopic(openKafka(brokers(), log), topic, 3, log)
  t.teardown(() => administrate((admin) => admin.deleteTopics({ topics: [topic] })))
  return topic
}

const sized = (bytes: number): string => JSON.stringify({ DATA: 'x'.repeat(bytes) })

async function logOf(sql: Sql, seqId: string): Promise<[status: string, kind: string | null, latest: boolean][]> {
  const rows = await sql<{ status: string; kind: string | null; latest: boolean }[]>`
    select producer_publish_status as status, kind, latest from auditlog.publish_log where seq_id = ${seqId} order by position`
  return rows.map(({ status, kind, latest }) => [status, kind, latest])
}

test('a batch above the record limit of the topic goes in smaller ones, in order, and a record above it in chunks among them', async (t) => {
  const at = await place(t)
  await setTopicLimit(at.topic, STOCK_LIMIT)
  const seqIds = await writeEvents(at.sql, Array.from({ length: 40 }, () => ({ topic: at.topic, key: '1', payload: sized(300_000) })))
  const [large] = await writeEvents(at.sql, [{ topic: at.topic, key: '1', payload: sized(3_500_000) }])
  const others = await writeEvents(at.sql, Array.from({ length: 100 }, (_, key) => ({ topic: at.topic, key: String(key) })))
  const one = relay(t, at, 'one')
  const records = await readTopic(at.topic, everyOne([...seqIds, large!, ...others]))
  t.deepEqual(outOfOrder(records), [])
  t.deepEqual(records.filter((record) => seqIdOf(record) === large).map(({ headers }) => String(headers['deltapost-chunk']).slice(0, 4)), ['0:4:', '1:4:', '2:4:', '3:4:'])
  await until(async () => (await left(at.sql)) === 0)
  const [first] = await at.sql<{ partition: number; offset: string }[]>`select partition, "offset" from auditlog.publish_log where seq_id = ${large!}`
  const lies = records.find((record) => seqIdOf(record) === large)
  t.deepEqual({ ...first }, { partition: lies?.partition, offset: lies?.offset })
  await one.stop()
})

/** Below a limit like this no record is cut into chunks, so the broker refuses what is larger. */
const TINY = 1_100

test('I8 I9 a record the broker refuses is tried again, then FAILED, with its payload on the error topic; those behind it in its lane go on, and put back it goes out', async (t) => {
  const at = await place(t)
  await setTopicLimit(at.topic, TINY)
  const errors = await another(t, at, 'error')
  const events = (count: number) => Array.from({ length: count }, () => ({ topic: at.topic, key: '1', payload: sized(100) }))
  const before = await writeEvents(at.sql, events(20))
  const [bad = ''] = await writeEvents(at.sql, [{ topic: at.topic, key: '1', payload: sized(2_000) }])
  const behind = await writeEvents(at.sql, events(200))
  const one = relay(t, at, 'one')
  const records = await readTopic(at.topic, everyOne([...before, ...behind]))
  t.deepEqual(outOfOrder(records), [])
  const [failure] = await readTopic(errors, (some) => some.length === 1)
  t.is(failure!.headers['deltapost-id']!.toString(), `1:${bad}:2`)
  const { recipients, error, DATA: data } = JSON.parse(failure!.value) as Record<string, unknown>
  t.deepEqual(recipients, ['admin@abc.com'])
  t.like(error, { code: 'MESSAGE_TOO_LARGE', sqlstate: null, side: 'publish', attempts: 2 })
  t.is(String(data).length, 2_000)
  await until(async () => (await left(at.sql)) === 0)
  const failed = [['RETRYING', null, false], ['RETRYING', null, false], ['FAILED', null, true], ['PUBLISHED', 'error', false]] as const
  t.deepEqual(await logOf(at.sql, bad), failed.map((line) => [...line]))

  await setTopicLimit(at.topic, STOCK_LIMIT)
  t.deepEqual(await publishAgain(at.sql, [bad]), [bad])
  await readTopic(at.topic, everyOne([bad]))
  await until(async () => (await logOf(at.sql, bad)).at(-1)?.join() === 'PUBLISHED,,true')
  await one.stop()
})

test('I3 an error record that the broker refuses leaves after its tries, and the others of its lane go on', async (t) => {
  const at = await place(t)
  const errors = await another(t, at, 'error')
  await setTopicLimit(errors, TINY)
  const sizes = [2_000, 10, 2_000, 10]
  const seqIds = await writeEvents(at.sql, sizes.map((size) => ({ topic: at.topic, payload: sized(size) })))
  await at.sql`update outbox.event set kind = 'error', lane = 20002, topic = ${errors}, head = '"recipients":[],"error":{}', attempt = 3`
  const one = relay(t, at, 'one')
  const records = await readTopic(errors, everyOne([seqIds[1]!, seqIds[3]!]))
  await until(async () => (await left(at.sql)) === 0)
  t.is(records.length, 2)
  t.deepEqual(await logOf(at.sql, seqIds[0]!), [['RETRYING', 'error', false], ['RETRYING', 'error', false], ['FAILED', 'error', false]])
  await one.stop()
})

test('I3 I4 I10 a topic that cannot be written delays no event of another in its lanes and uses no attempt; when it can be, it goes out in order', async (t) => {
  const at = await place(t)
  const away = await another(t, at, 'away')
  const one = relay(t, at, 'one')
  const first = await writeHot(at.sql, away, 1, 1)
  await readTopic(away, everyOne(first))
  await administrate((admin) => admin.deleteTopics({ topics: [away] }))
  const dead = await writeHot(at.sql, away, 500, 25)
  const seqIds = await writeHot(at.sql, at.topic, 50, 25)
  const records = await readTopic(at.topic, everyOne(seqIds))
  t.deepEqual(outOfOrder(records), [])
  // Fewer where this takes so long that the relay itself has made the topic again, which it tries once a minute.
  await until(async () => (await left(at.sql)) <= dead.length)
  t.is((await at.sql`select from outbox.event where attempt > 0`).length, 0)
  await administrate((admin) => admin.createTopics({ topics: [{ topic: away, numPartitions: 3 }], waitForLeaders: false }))
  t.deepEqual(outOfOrder(await readTopic(away, everyOne(dead))), [])
  await until(async () => (await left(at.sql)) === 0, { within: 20_000 })
  await one.stop()
})

test('I3 error topics that cannot be made lose nothing and delay nobody; one that can be later gets its records', async (t) => {
  const at = await place(t)
  // The broker makes no topic whose name differs from another's in dots and underscores only.
  const refused = `${at.topic}.refused`
  const twin = refused.replaceAll('.', '_')
  await administrate((admin) => createTopic(admin, twin, 1))
  const topics = [`${at.topic}.error`, refused, 'no topic has this name!']
  const failures = await writeEvents(at.sql, Array.from({ length: 240 }, () => ({ topic: at.topic })))
  await at.sql`
    update outbox.event set kind = 'error', lane = outbox.side_lane('error', seq_id / 3), head = '"recipients":[],"error":{}',
      topic = (${topics}::text[])[seq_id % 3 + 1]`
  const one = relay(t, at, 'one')
  await one.ready
  const to = (n: bigint): string[] => failures.filter((seqId) => BigInt(seqId) % 3n === n)
  await readTopic(at.topic, everyOne(await writeHot(at.sql, at.topic, 50, 25)))
  await readTopic(`${at.topic}.error`, everyOne(to(0n)))
  await until(async () => (await left(at.sql)) === 160)
  await administrate((admin) => admin.deleteTopics({ topics: [twin] }))
  await until(async () => (await left(at.sql)) === 80, { within: 30_000 })
  await readTopic(refused, everyOne(to(1n)))
  t.is((await at.sql`select from outbox.event where attempt > 0`).length, 0)
  await one.stop()
  await administrate((admin) => admin.deleteTopics({ topics: topics.slice(0, 2) }))
})

test('a parked change that is due is published again in full, under its next attempt; one that healed is not', async (t) => {
  const at = await place(t)
  const [seqId = '', healed = ''] = await writeEvents(at.sql, [{ topic: at.topic }, { topic: at.topic }])
  await at.sql`delete from outbox.event`
  await at.sql`
    insert into inbox.parked (origin, seq_id, relation, epoch, time, reason, message, retry_at, topic, record_key, payload)
    select 1, s::bigint, 1, 1, 1, 'REFUSED', 'no', now(), ${at.topic}, '["app","test"]', '{"DATA":1}' from unnest(array[${seqId}, ${healed}]::text[]) as s`
  await at.sql`select inbox.publish_due(1000)`
  await at.sql`delete from inbox.parked where seq_id = ${healed}`
  await at.sql`
    update inbox.parked set retry_at = now() + interval '1 second', attempts = 1`
  const one = relay(t, at, 'one')
  const records = await readTopic(at.topic, (some) => some.length === 2)
  t.deepEqual(records.map(({ headers, value, key }) => [headers['deltapost-id']!.toString(), value, key]).toSorted(), [
    [`1:${seqId}:1`, '{"DATA":1}', '["app","test"]'], [`1:${seqId}:2`, '{"DATA":1}', '["app","test"]']])
  await until(async () => (await left(at.sql)) === 0)
  t.deepEqual(await logOf(at.sql, healed), [])
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
