import test, { type ExecutionContext } from 'ava'
import { ack } from '../../outbox/ack.ts'
import { claimLanes } from '../../outbox/claim.ts'
import { nextEvents } from '../../outbox/pending.ts'
import { freshDatabase } from '../../test/support/database.ts'
import { outboxConnection, readTopic, writeEvents } from '../../test/support/events.ts'
import { brokers, freshTopic } from '../../test/support/kafka.ts'
import { startListener } from '../../test/support/listener.ts'
import { until } from '../../test/support/until.ts'
import { runRelay } from '../relay/main.ts'
import { readConfig } from '../runtime/config.ts'
import { openLog } from '../runtime/log.ts'
import { openLocalWake } from '../runtime/wake.ts'
import { changeLanes } from './lanes.ts'
import type { Sql } from '../../outbox/sql.ts'

const log = openLog('job', 'silent')

async function given(t: ExecutionContext): Promise<{ url: string; sql: Sql }> {
  const { url, drop } = await freshDatabase()
  const sql = outboxConnection(url)
  t.teardown(async () => {
    await sql.end({ timeout: 1 })
    await drop()
  })
  return { url, sql }
}

const READ = { rows: 1_000, bytes: 1 << 20 }

test('I4 I5 a change that waits moves to its new lane; the relay that was sending it can no longer ack', async (t) => {
  const { sql } = await given(t)
  const ids = await writeEvents(sql, Array.from({ length: 40 }, (_, n) => ({ key: String(n % 5) })))
  const old = await claimLanes(sql, 'a', 100, 60_000)
  await sql`update outbox.lane set floor = 17 where kind = 'change' and lane % 2 = 0 and lane not in (select lane from outbox.event)`
  const read = await nextEvents(sql, old.map((claim) => ({ ...claim, inflight: new Set<string>() })), READ)
  // As changeLanes calls it, with a rest that no slow machine outlasts.
  t.like((await sql`select * from outbox.set_lanes(3::smallint, 100, '1 hour')`)[0], { outcome: 'OK', was: 64, waiting: 40 })

  const late = await ack(sql, 'a', old, read.map(({ lane, position }) => ({ lane, position, partition: 0, offset: '0' })))
  t.is(late.count, 0)
  t.is((await claimLanes(sql, 'b', 100, 60_000)).length, 0, 'lanes rest until the relay of old has noticed')
  await sql`update outbox.lane set held_until = now() - interval '1 s' where kind = 'change'`
  const fresh = await claimLanes(sql, 'b', 100, 60_000)
  t.deepEqual(fresh.map(({ lane }) => lane).sort(), [0, 1, 2])
  const seen = await nextEvents(sql, fresh.map((claim) => ({ ...claim, inflight: new Set<string>() })), READ)
  t.deepEqual(seen.map(({ position }) => BigInt(position)).sort((a, b) => Number(a - b)), ids.map(BigInt), 'no floor hides what came from another lane')
  for (const lane of [0, 1, 2]) {
    const positions = seen.filter((event) => event.lane === lane).map(({ position }) => BigInt(position))
    t.deepEqual(positions, [...positions].sort((a, b) => Number(a - b)))
  }
  const [wrong] = await sql<{ n: number }[]>`
    select count(*)::int as n from outbox.event e join auditlog.producer_log p using (seq_id) where e.lane <> outbox.lane_of(3::smallint, p.schema_name, p.table_name, p.row_key)`
  t.is(wrong?.n, 0)
})

test('a lane that comes back has a term that no claim had before', async (t) => {
  const { url, sql } = await given(t)
  const old = await claimLanes(sql, 'a', 100, 60_000)
  for (const lanes of [2, 64]) await changeLanes({ databaseUrl: url, lanes, within: 0, log })
  const [row] = await sql<{ lowest: string; count: number }[]>`select min(term) as lowest, count(*)::int as count from outbox.lane where kind = 'change'`
  t.is(row?.count, 64)
  t.true(BigInt(row?.lowest ?? 0) > old.reduce((most, { term }) => (BigInt(term) > most ? BigInt(term) : most), 0n))
  t.is((await sql`select from outbox.lane where kind <> 'change'`).count, 8)
})

test('intake waits for the change, and an intake under way is waited for', async (t) => {
  const { url, sql } = await given(t)
  const other = outboxConnection(url)
  t.teardown(() => other.end({ timeout: 1 }))
  await other`begin`
  await writeEvents(other, [{ key: 'first' }])
  const changing = changeLanes({ databaseUrl: url, lanes: 5, within: 20_000, log })
  await until(async () => (await sql`select from pg_locks l join pg_class c on c.oid = l.relation where c.relname = 'event' and not l.granted`).count > 0)
  await other`commit`
  t.is(await changing, 64)
  const [event] = await sql<{ right: boolean }[]>`select lane = outbox.lane_of(5::smallint, 'app', 'test', '["first"]') as right from outbox.event`
  t.true(event?.right)
})

test('a backlog is not moved while senders wait', async (t) => {
  const { url, sql } = await given(t)
  await sql`insert into outbox.event (lane, position, seq_id, bytes) select 0, n, n, 1 from generate_series(1, 100001) n`
  await t.throwsAsync(changeLanes({ databaseUrl: url, lanes: 5, within: 0, log }), { code: 'LANES_BACKLOG' })
  t.is((await sql`select from outbox.lane where kind = 'change'`).count, 64)
})

test('I3 I4 lanes change under load, with two relays: every row is published first in the order of its changes', async (t) => {
  t.timeout(120_000)
  const { url, sql } = await given(t)
  const { topic, drop } = await freshTopic('lanes', 1)
  t.teardown(drop)
  await sql`create schema app`
  await sql`create table app.test (id text primary key, n text)`
  const listener = await startListener(url, { topic })
  const stop = new AbortController()
  const relays = ['a', 'b'].map((holder) => runRelay({
    config: { ...readConfig({ DATABASE_URL: url, KAFKA_BROKERS: brokers().join(), TOPIC: topic }), holder }, log, signal: stop.signal, wake: openLocalWake(),
  }))
  const posting = new AbortController()
  let posted = 0
  const rows = Array.from({ length: 60 }, async (_, row) => {
    const seqIds: string[] = []
    for (let n = 0; !posting.signal.aborted; n += 1) {
      const time = new Date(Date.now()).toISOString().replace('Z', `${String(n % 1_000).padStart(3, '0')}Z`)
      const answer = await listener.post(JSON.stringify({ TIME: time, SCHEMANAME: 'app', TABLENAME: 'test', OPERATION: 'UPDATE', DATA: { id: `r${row}`, n: String(n) } }))
      t.is(answer.status, 200, answer.text)
      seqIds.push((answer.json as { seq_id: string }).seq_id)
      posted += 1
    }
    return { key: `["app","test","r${row}"]`, seqIds }
  })
  for (const lanes of [7, 96, 1, 64]) {
    const enough = posted + 400
    await until(() => posted > enough, { within: 30_000 })
    await changeLanes({ databaseUrl: url, lanes, within: 20_000, log })
  }
  posting.abort()
  const expected = await Promise.all(rows)
  await until(async () => (await sql`select from outbox.event limit 1`).count === 0, { within: 30_000, what: 'an empty outbox' })
  stop.abort()
  await Promise.all(relays)
  await listener.stop()

  const wanted = new Set(expected.flatMap(({ seqIds }) => seqIds))
  const records = await readTopic(topic, (read) => new Set(read.map(({ headers }) => String(headers['deltapost-id']).split(':')[1])).size === wanted.size)
  for (const { key, seqIds } of expected) {
    const published = [...new Set(records.filter((record) => record.key === key).map(({ headers }) => String(headers['deltapost-id']).split(':')[1]))]
    t.deepEqual(published, seqIds, key)
  }
})
