import test from 'ava'
import { freshDatabase } from '../test/support/database.ts'
import { outboxConnection, writeEvents } from '../test/support/events.ts'
import type { Sql } from './sql.ts'
import { passOver } from './waiting.ts'

async function given(t: { teardown: (end: () => Promise<void>) => void }): Promise<{ sql: Sql; laneOf: (key: string) => Promise<number> }> {
  const { url, drop } = await freshDatabase()
  const sql = outboxConnection(url)
  t.teardown(async () => {
    await sql.end({ timeout: 1 })
    await drop()
  })
  return {
    sql,
    async laneOf(key) {
      const [row] = await sql<{ lane: number }[]>`select outbox.lane_of(64::smallint, 'app', 'test', ${key}) as lane`
      return row!.lane
    },
  }
}

test('the look passes over what waits and what is in flight, and ends below the first other event', async (t) => {
  const { sql, laneOf } = await given(t)
  const lane = await laneOf('1')
  const topics = ['dead', 'dead', 'flying', 'dumb', 'dead', 'good', 'dead']
  const ids = await writeEvents(sql, topics.map((topic) => ({ key: '1', topic })))
  const look = { lane, from: '0', inflight: new Set([ids[2]!]), topics: ['dead', 'dumb'] }
  const [passed, ...rest] = await passOver(sql, [look], 100)
  t.is(rest.length, 0)
  t.is(passed!.upTo, ids[4]!)
  t.false(passed!.more)
  t.deepEqual(Object.fromEntries(passed!.lowest.map(({ topic, position }) => [topic, position])), { dead: ids[0], dumb: ids[3], flying: ids[2] })
  t.deepEqual(await passOver(sql, [{ ...look, from: ids[4]! }], 100), [])
  t.like((await passOver(sql, [look], 1))[0], { upTo: ids[1], more: true }) // one, and room for what is in flight
})

test('the look ends at an event that is due later, and at one without its change', async (t) => {
  const { sql, laneOf } = await given(t)
  const ids = await writeEvents(sql, [{ key: '1', topic: 'dead' }, { key: '1', topic: 'dead', dueIn: '1 hour' }, { key: '1', topic: 'dead' }])
  const look = { lane: await laneOf('1'), from: '0', inflight: new Set<string>(), topics: ['dead'] }
  t.is((await passOver(sql, [look], 100))[0]!.upTo, ids[0]!)
  await sql`update outbox.event set due_at = null`
  t.is((await passOver(sql, [look], 100))[0]!.upTo, ids[2]!)
  await sql`delete from auditlog.producer_log where seq_id = ${ids[1]!}`
  t.is((await passOver(sql, [look], 100))[0]!.upTo, ids[0]!)
})

test('retries and records of failures wait by the topic they go to', async (t) => {
  const { sql } = await given(t)
  await sql`
    insert into inbox.parked (origin, seq_id, relation, epoch, time, reason, message, topic, payload) values (1, 5, 1, 1, 1, 'REFUSED', 'no', 'dead', '{}')`
  await sql`
    insert into outbox.event (lane, position, seq_id, attempt, kind, bytes, topic)
    values (10001, 11, 5, 1, 'retry', 1, null), (10001, 12, 6, 1, 'retry', 1, null), (20001, 13, 5, 1, 'error', 1, 'dead'), (20001, 14, 5, 1, 'error', 1, 'good')`
  const passed = await passOver(sql, [10001, 20001].map((lane) => ({ lane, from: '0', inflight: new Set<string>(), topics: ['dead'] })), 100)
  t.deepEqual(passed.map(({ lane, upTo }) => [lane, upTo]).toSorted(), [[10001, '11'], [20001, '13']])
})
