import test, { type ExecutionContext } from 'ava'
import { addressOf, connect, freshDatabase } from '../../test/support/database.ts'
import { outboxConnection } from '../../test/support/events.ts'
import { brokers, freshTopic } from '../../test/support/kafka.ts'
import { startListener, type TestListener } from '../../test/support/listener.ts'
import { until } from '../../test/support/until.ts'
import { advanceSettled } from '../../outbox/floor.ts'
import type { Sql } from '../../outbox/sql.ts'
import { runConsumer } from '../consumer/main.ts'
import { runRelay } from '../relay/main.ts'
import { readConfig } from '../runtime/config.ts'
import { openKafka } from '../runtime/kafka.ts'
import { openLog } from '../runtime/log.ts'
import { openLocalWake } from '../runtime/wake.ts'
import { raiseOrigin, type Raised } from './origin.ts'
import { readTails } from './topic-tail.ts'

const log = openLog('job', 'silent')

type Running = { listener: TestListener; stop: () => Promise<void> }

/** Listener, relay and consumer of one database; without `publish` the listener alone. */
async function start(url: string, topic: string, publish = true): Promise<Running> {
  const stop = new AbortController()
  const config = { ...readConfig({ DATABASE_URL: url, KAFKA_BROKERS: brokers().join(), TOPIC: topic, CONSUMER_GROUP: topic }) }
  const listener = await startListener(url, { topic })
  const parts = { config, log, signal: stop.signal }
  const roles = publish ? [runRelay({ ...parts, wake: openLocalWake() }), runConsumer(parts)] : []
  return {
    listener,
    async stop() {
      stop.abort()
      await Promise.all([...roles, listener.stop()])
    },
  }
}

const begin = Date.now() - 60_000
/** A change of the source's clock, seconds after the begin. */
function post(second: number, table: string, operation: string, data: Record<string, string>): string {
  const time = new Date(begin + second * 1_000).toISOString().replace(/\.\d+Z/, '.1Z')
  return JSON.stringify({ TIME: time, SCHEMANAME: 'app', TABLENAME: table, OPERATION: operation, DATA: data })
}

async function send(t: ExecutionContext, { listener }: Running, body: string): Promise<string> {
  const answer = await listener.post(body)
  t.is(answer.status, 200, answer.text)
  return (answer.json as { seq_id: string }).seq_id
}

async function settled(sql: Sql): Promise<void> {
  await until(async () => (await sql`select from auditlog.pending limit 1`).count === 0 && (await sql`select from outbox.event limit 1`).count === 0,
    { within: 60_000, what: 'nothing is pending' })
}

async function copyOf(from: string): Promise<{ url: string; drop: () => Promise<void> }> {
  const name = `${new URL(from).pathname.slice(1)}_backup`
  const admin = connect(addressOf(), { max: 1 })
  await admin.unsafe(`create database ${name} template ${new URL(from).pathname.slice(1)}`)
  return {
    url: addressOf(name),
    async drop() {
      await admin.unsafe(`drop database if exists ${name} with (force)`)
      await admin.end({ timeout: 5 })
    },
  }
}

type Restored = { sql: Sql; url: string; topic: string; raised: Raised; lost: string[]; unpublished: string }

/**
 * A system that is backed up, goes on, is restored and raised. After the backup account 1 is changed, 2 deleted, 3 changed
 * twice and 4 and a note inserted, all published; account 5 is accepted and not published.
 */
async function restored(t: ExecutionContext, options: { leaveOut?: boolean } = {}): Promise<Restored> {
  const { url, drop } = await freshDatabase()
  const { topic, drop: dropTopic } = await freshTopic('restore', 3)
  const before = outboxConnection(url)
  await before`create schema app`
  await before`create table app.account (id text primary key, name text)`
  await before`create table app.note (text text)`
  const first = await start(url, topic)
  for (const id of ['1', '2', '3']) await send(t, first, post(Number(id), 'account', 'INSERT', { id, name: 'backed up' }))
  await send(t, first, post(4, 'note', 'INSERT', { text: 'backed up' }))
  await settled(before)
  await first.stop()
  await before.end({ timeout: 5 })
  const backup = await copyOf(url)

  const going = await start(url, topic)
  const lost = [
    await send(t, going, post(10, 'account', 'UPDATE', { id: '1', name: 'lost' })),
    await send(t, going, post(11, 'account', 'DELETE', { id: '2', name: 'backed up' })),
    await send(t, going, post(13, 'account', 'UPDATE', { id: '3', name: 'lost' })),
    await send(t, going, post(14, 'account', 'INSERT', { id: '4', name: 'lost' })),
    await send(t, going, post(15, 'note', 'INSERT', { text: 'lost' })),
  ]
  const watching = outboxConnection(url)
  await settled(watching)
  await going.stop()
  const last = await start(url, topic, false)
  const unpublished = await send(t, last, post(16, 'account', 'INSERT', { id: '5', name: 'unpublished' }))
  await last.stop()
  await watching.end({ timeout: 5 })

  const sql = outboxConnection(backup.url)
  t.teardown(async () => {
    await sql.end({ timeout: 5 })
    await Promise.all([drop(), backup.drop(), dropTopic()])
  })
  const tails = await readTails(openKafka(brokers(), log), topic)
  const raised = await raiseOrigin({ databaseUrl: backup.url, otherUrl: undefined, tails, topic, group: topic, leaveOut: options.leaveOut === true, log })
  return { sql, url: backup.url, topic, raised, lost, unpublished }
}

async function names(sql: Sql): Promise<Record<string, string>> {
  const rows = await sql<{ id: string; name: string }[]>`select id, name from app.account order by id`
  return Object.fromEntries(rows.map(({ id, name }) => [id, name]))
}

async function notes(sql: Sql): Promise<string[]> {
  return (await sql<{ text: string }[]>`select text from app.note order by text`).map(({ text }) => text)
}

test('I6 I7 I9 after a restore and a raised origin nothing is taken for a repeat, no old version wins, and what Kafka has comes back', async (t) => {
  t.timeout(180_000)
  const { sql, url, topic, raised, lost, unpublished } = await restored(t)
  t.like(raised, { was: 1, origin: 2 })
  t.true(BigInt(raised.nextAbove) > BigInt(lost.at(-1) ?? 0))

  const running = await start(url, topic)
  const posted = [
    await send(t, running, post(20, 'account', 'UPDATE', { id: '1', name: 'new' })),
    await send(t, running, post(21, 'note', 'INSERT', { text: 'new' })),
    // What the sender's spool still had: one that was never taken, older than a record that Kafka has of its row.
    await send(t, running, post(12, 'account', 'UPDATE', { id: '3', name: 'spooled' })),
    // Posted again because nobody knows whether it was published.
    await send(t, running, post(16, 'account', 'INSERT', { id: '5', name: 'unpublished' })),
    await send(t, running, post(14, 'account', 'INSERT', { id: '4', name: 'lost' })),
  ]
  await settled(sql)
  await until(async () => (await sql`select from inbox.applied where origin = 1 and seq_id = any(${lost}::bigint[])`).count === lost.length, { within: 30_000 })
  t.deepEqual(await names(sql), { 1: 'new', 3: 'lost', 4: 'lost', 5: 'unpublished' })
  t.deepEqual(await notes(sql), ['backed up', 'lost', 'new'])
  t.is(new Set([...posted, ...lost, unpublished]).size, 11, 'no number was handed out twice')
  const [audit] = await sql<{ received: number; audited: number }[]>`
    select (select count(*)::int from auditlog.producer_log) as received, (select count(*)::int from auditlog.audit_log) as audited`
  t.deepEqual({ ...audit }, { received: 9, audited: 9 })
  // The relay moves it by 100,000 every five seconds; here the same, at once.
  await until(async () => BigInt(await advanceSettled(sql)) > BigInt(raised.nextAbove), { within: 30_000, what: 'a watermark that moves on' })
  await running.stop()
})

test('with what was published since the backup left out, the target goes on from the backup', async (t) => {
  t.timeout(180_000)
  const { sql, url, topic, raised } = await restored(t, { leaveOut: true })
  t.true(raised.positions >= 1)
  const running = await start(url, topic)
  await send(t, running, post(20, 'account', 'UPDATE', { id: '1', name: 'new' }))
  await send(t, running, post(21, 'note', 'INSERT', { text: 'new' }))
  await settled(sql)
  t.deepEqual(await names(sql), { 1: 'new', 2: 'backed up', 3: 'backed up' })
  t.deepEqual(await notes(sql), ['backed up', 'new'])
  await running.stop()
})

test('a restored database that services are connected to is refused', async (t) => {
  const { url, drop } = await freshDatabase()
  const running = await startListener(url)
  t.teardown(async () => {
    await running.stop()
    await drop()
  })
  const job = { databaseUrl: url, otherUrl: undefined, tails: [], topic: 't', group: 'g', leaveOut: false, log }
  await t.throwsAsync(raiseOrigin(job), { code: 'SERVICES_RUNNING', message: /deltapost listener/ })
})

test('an origin is never one that anybody had, and an epoch grows only where the capture has no time', async (t) => {
  const [first, second] = [await freshDatabase(), await freshDatabase()]
  const [sql, other] = [outboxConnection(first.url), outboxConnection(second.url)]
  t.teardown(async () => {
    await Promise.all([sql, other].map((one) => one.end({ timeout: 5 })))
    await Promise.all([first.drop(), second.drop()])
  })
  await other`update outbox.database set origin = 2`
  await other`insert into inbox.applied (origin, seq_id, status, statement, partition, "offset") values (1, 5000000, 'APPLIED', 1, 0, 0), (4, 9000000, 'APPLIED', 1, 0, 1)`
  await sql`
    insert into outbox.relation (source, source_schema, source_table, target_schema, target_table, known_from, capture)
    select 'S', 'app', 'test' || c, 'app', 'test' || c, 'payload', c from unnest(array['posts', 'triggers']) c`
  await sql`update outbox.lane set holder = 'gone', floor = 900, held_until = now() + interval '1 hour'`
  const raised = await raiseOrigin({ databaseUrl: first.url, otherUrl: second.url, tails: [], topic: 't', group: 'g', leaveOut: false, log })
  t.deepEqual(raised, { was: 1, origin: 5, nextAbove: '6000000', settled: '0', epochs: 1, positions: 0 })
  t.deepEqual((await sql<{ epoch: number }[]>`select epoch from outbox.relation order by capture`).map(({ epoch }) => epoch), [1, 2])
  t.is((await sql`select from outbox.lane where holder is null and floor = 0 and held_until < now()`).count, 72)
})
