import test from 'ava'

import { freshDatabase } from '../test/support/database.ts'
import { outboxConnection, writeEvents } from '../test/support/events.ts'
import { until } from '../test/support/until.ts'
import type { Sql } from './sql.ts'
import { statusOf } from './status.ts'

async function given(t: { teardown: (end: () => Promise<void>) => void }): Promise<{ sql: Sql; another: () => Sql }> {
  const database = await freshDatabase()
  const open: Sql[] = []
  const another = (): Sql => {
    const sql = outboxConnection(database.url)
    open.push(sql)
    return sql
  }
  t.teardown(async () => {
    await Promise.all(open.map((sql) => sql.end({ timeout: 5 })))
    await database.drop()
  })
  return { sql: another(), another }
}

test('a new database has nothing on its way and no relay', async (t) => {
  const { sql } = await given(t)
  t.like(await statusOf(sql), {
    origin: 1, free_lanes: 72, relays: [], positions: [], relations: [], default_partition_empty: true, partitions_ahead: 2,
    rejected_waiting: { count: 0, at_least: false },
  })
})

test('what waits is counted where it waits, with the age of the oldest', async (t) => {
  const { sql } = await given(t)
  const ids = await writeEvents(sql, ['1', '2', '3', '4', '5'].map((key) => ({ key })))
  const [first = '', second = '', third = ''] = ids
  await sql`update auditlog.producer_log set received_at = clock_timestamp() - interval '1 hour' where seq_id = ${third}`
  await sql`delete from outbox.event where seq_id in (${first}, ${second})`
  await sql`
    insert into auditlog.publish_log (position, seq_id, producer_publish_status) values (${first}, ${first}, 'PUBLISHED'), (${second}, ${second}, 'PUBLISHED')`
  await sql`
    insert into inbox.applied (origin, seq_id, status, statement, partition, "offset") values (1, ${first}, 'PARKED', 1, 0, 0)`
  await sql`
    insert into inbox.parked (origin, seq_id, relation, epoch, time, reason, message, topic, payload) values (1, ${first}, 1, 1, 1, 'NO_KEY', 'none', 'topic', '{}')`
  await sql`insert into auditlog.rejected_request (path, headers, body, reason) values ('/events', '{}', '', 'empty')`

  const status = await statusOf(sql)
  t.like(status.to_publish, { count: 3, at_least: false })
  t.true((status.to_publish.oldest_age_seconds ?? 0) > 3_599, String(status.to_publish.oldest_age_seconds))
  t.deepEqual(status.to_apply, { count: 1, at_least: false })
  const none = { count: 0, at_least: false }
  t.deepEqual(status.outcomes, { PARKED: { count: 1, at_least: false }, RETRYING: none, FAILED: none, SKIPPED: none, SUPERSEDED: none })
  t.deepEqual(status.parked, [{ reason: 'NO_KEY', count: 1 }])
  t.is(status.rejected_waiting.count, 1)
})

test('changes far above the watermark are not counted one by one, and the count says so', async (t) => {
  const { sql } = await given(t)
  await sql`select setval('outbox.position', 300000)`
  t.true((await statusOf(sql)).to_apply.at_least)
  await sql`update auditlog.settled set up_to = 299999`
  t.false((await statusOf(sql)).to_apply.at_least)
})

test('lanes are shown by the relay that holds them, with their terms', async (t) => {
  const { sql } = await given(t)
  await sql`update outbox.lane set holder = 'one', term = lane + 1, held_until = clock_timestamp() + interval '1 minute' where lane < 10`
  await sql`update outbox.lane set holder = 'gone', term = 7 where lane = 20`
  await sql`insert into outbox.relay (holder, alive_until) values ('one', clock_timestamp() + interval '1 minute'), ('idle', clock_timestamp() + interval '1 minute')`
  const { relays, free_lanes } = await statusOf(sql)
  t.deepEqual(relays, [
    { holder: 'idle', lanes: 0, terms: '-', alive: true },
    { holder: 'one', lanes: 10, terms: '1 to 10', alive: true },
  ])
  t.is(free_lanes, 62)
})

test('the one who holds the floor is named: the oldest transaction with an id, prepared ones too', async (t) => {
  const { sql, another } = await given(t)
  const name = `held-${process.pid}`
  await another().unsafe(`begin; insert into auditlog.rejected_request (path, headers, body, reason) values ('/', '{}', '', 'x'); prepare transaction '${name}'`)
  const held = await until(async () => {
    // Other tests of this run have transactions on the same server; they end.
    const { floor } = await statusOf(sql)
    return floor.holder?.name === name ? floor.holder : undefined
  })
  t.like(held, { kind: 'prepared', state: 'prepared' })
  await sql.unsafe(`rollback prepared '${name}'`)

  const session = another()
  await session.unsafe('begin; select pg_current_xact_id()')
  const open = await until(async () => {
    const { holder } = (await statusOf(sql)).floor
    return holder?.name.startsWith('deltapost test (pid ') ? holder : undefined
  })
  t.is(open.kind, 'session')
})

test('rows that no partition was made for show', async (t) => {
  const { sql } = await given(t)
  await sql`select setval('outbox.position', 40000000)`
  await writeEvents(sql, [{ key: '1' }])
  t.like(await statusOf(sql), { default_partition_empty: false, partitions_ahead: 0 })
})
