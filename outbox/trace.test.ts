import test from 'ava'

import { freshDatabase } from '../test/support/database.ts'
import { outboxConnection, writeEvents } from '../test/support/events.ts'
import type { Sql } from './sql.ts'
import { traceOf } from './trace.ts'

async function given(t: { teardown: (end: () => Promise<void>) => void }): Promise<Sql> {
  const database = await freshDatabase()
  const sql = outboxConnection(database.url)
  t.teardown(async () => {
    await sql.end({ timeout: 5 })
    await database.drop()
  })
  return sql
}

/** What the consumer leaves of an applied change of app.test, whose table has a numeric key. */
async function apply(sql: Sql, seqId: string, key: string): Promise<void> {
  await sql.unsafe(`
    create schema if not exists app;
    create table if not exists app.test (id numeric primary key, name text)`)
  await sql`select outbox.meet('INFORMIX', 'app', 'test')`
  await sql`
    insert into inbox.statement (relation, revision, topicname, destination, schema_name, table_name, keyed, consumer_query, guard, leave)
    select id, revision, 'topic', 'POSTGRESQL', 'app', 'test', true, 'insert into app.test', '', '' from outbox.relation on conflict do nothing`
  await sql`
    insert into inbox.applied (origin, seq_id, status, statement, partition, "offset")
    select 1, ${seqId}, 'APPLIED', id, 3, 40 from inbox.statement`
  await sql`
    insert into inbox.row_version (relation, key, origin, epoch, time, seq, deleted)
    select id, ${key}, 1, 1, 1000, ${seqId}, false from outbox.relation`
}

async function publish(sql: Sql, seqId: string): Promise<void> {
  await sql`delete from outbox.event where seq_id = ${seqId}`
  await sql`
    insert into auditlog.publish_log (position, seq_id, producer_publish_status, partition, "offset") values (${seqId}, ${seqId}, 'PUBLISHED', 3, 40)`
}

test('a change is followed from its receipt to its row, and steps that have not happened are missing', async (t) => {
  const sql = await given(t)
  const [seqId = ''] = await writeEvents(sql, [{ key: '016', sourceTime: '2026-01-01T00:00:00.000012Z' }])

  const waiting = await traceOf(sql, seqId)
  t.like(waiting?.received, { seq_id: seqId, schema_name: 'app', table_name: 'test', payload: '{"DATA":1}', version: `1:1767225600000012:${seqId}` })
  t.like(waiting?.waiting, { position: seqId, holder: null })
  t.like(waiting, { published: [], applied: null, row_version: null, parked: null })
  t.is(waiting?.lags.received_to_published, null)

  await publish(sql, seqId)
  await apply(sql, seqId, '16')
  const done = await traceOf(sql, seqId)
  t.is(done?.waiting, null)
  t.like(done?.published[0], { position: seqId, producer_publish_status: 'PUBLISHED', partition: 3, offset: '40' })
  t.like(done?.applied, { consumer_deploy_status: 'APPLIED', consumer_query: 'insert into app.test', destination: 'POSTGRESQL' })
  t.like(done?.row_version, { key: '16', seq: seqId, newer: false }, 'posted as 016, the row is 16')
  t.true((done?.lags.received_to_applied ?? -1) > 0)
})

test('a change that was published again counts from the publishing that was applied', async (t) => {
  const sql = await given(t)
  const [seqId = ''] = await writeEvents(sql, [{ key: '1' }])
  await publish(sql, seqId)
  await apply(sql, seqId, '1')
  await sql`update auditlog.publish_log set latest = false`
  await sql`
    insert into auditlog.publish_log (position, seq_id, producer_publish_status, producer_publish_time)
    values (nextval('outbox.position'), ${seqId}, 'PUBLISHED', clock_timestamp() + interval '1 minute')`
  const trace = await traceOf(sql, seqId)
  t.is(trace?.published.length, 2)
  const lag = trace?.lags.published_to_applied ?? -1
  t.true(lag >= 0 && lag < 30_000, `${lag} ms`)
})

test('a parked change shows its reason, a mended one the request it came from', async (t) => {
  const sql = await given(t)
  const [parked = '', mended = ''] = await writeEvents(sql, [{ key: '1' }, { key: '2' }])
  await sql`
    insert into inbox.parked (origin, seq_id, relation, key, epoch, time, reason, message, topic, payload)
    values (1, ${parked}, 1, '1', 1, 0, 'CLOCK_AHEAD', 'too late', 'db.informix.delta', '{}')`
  await sql`
    insert into auditlog.rejected_request (path, headers, body, reason, state, seq_ids)
    values ('/events', '{}', 'x', 'json_syntax', 'RETRIED', array[${mended}]::bigint[])`
  t.like((await traceOf(sql, parked))?.parked, { reason: 'CLOCK_AHEAD', message: 'too late', attempts: 0 })
  t.like((await traceOf(sql, mended))?.rejected[0], { reason: 'json_syntax' })
  t.is(await traceOf(sql, '4711'), undefined)
})
