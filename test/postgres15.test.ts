import { chmodSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import test from 'ava'
import { ack } from '../outbox/ack.ts'
import { claimLanes } from '../outbox/claim.ts'
import { insertGroup } from '../outbox/intake.ts'
import { nextEvents } from '../outbox/pending.ts'
import { embeddedPostgres } from '../scripts/stack/embedded-postgres.ts'
import { migrate } from '../services/jobs/migrate.ts'
import { openSlot } from '../services/runtime/slot.ts'
import { arrival, consumerRig } from './support/arrivals.ts'

const programs = process.env['DELTAPOST_TEST_POSTGRES15_BIN']
const on15 = programs === undefined ? test.skip : test

on15('the schema and every statement of the way run on PostgreSQL 15', async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'deltapost-pg15-'))
  chmodSync(directory, 0o755)
  const server = await embeddedPostgres({ directory, programs: dirname(programs ?? '') })
  t.teardown(async () => {
    await server.stop()
    rmSync(directory, { recursive: true, force: true })
  })
  const url = server.url('postgres')
  const quiet = { log: () => undefined }
  await migrate(url, quiet)
  await migrate(url, { ...quiet, direction: 'down', count: Infinity })
  await migrate(url, quiet)

  const slot = openSlot({ url, name: 'fifteen' })
  const rig = await consumerRig(url)
  t.teardown(() => Promise.all([slot.close(), rig.close()]))
  const [version] = await rig.rows('show server_version_num')
  t.regex(String(version?.['server_version_num']), /^15/)
  const inserted = await slot.run((sql) => insertGroup(sql, [{
    eventKey: '00000000-0000-0000-0000-000000000001', contentHash: null, topic: 't', source: 'INFORMIX', schema: 'app', table: 'account',
    operation: 'INSERT', dialect: 'v1', payload: '{"a":1}', clean: null, rowKey: '["1"]', time: '2026-01-01 00:00:00.000005+00', traceparent: null,
  }]))
  const claims = await slot.run((sql) => claimLanes(sql, 'fifteen', 64, 60_000))
  const events = await slot.run((sql) => nextEvents(sql, claims.map((claim) => ({ ...claim, inflight: new Set<string>() })), { rows: 10, bytes: 1_000_000 }))
  t.deepEqual(events.map((event) => event.position), inserted.map(({ seqId }) => seqId))
  const { count } = await slot.run((sql) => ack(sql, 'fifteen', claims, events.map(({ lane, position }) => ({ lane, position, partition: 0, offset: '0' }))))
  t.is(count, 1)

  await rig.rows('create schema app')
  await rig.rows('create table app.account (id integer primary key, name text)')
  await rig.apply(0, arrival('account', 'INSERT', 1, { id: '1', name: 'a' }, Number(inserted[0]?.seqId)),
    arrival('account', 'UPDATE', 2, { id: ['1', '2'], name: ['a', 'b'] }, 100), arrival('log', 'INSERT', 1, { line: 'x' }, 101), arrival('log', 'DELETE', 2, { line: 'x' }, 102))
  t.deepEqual(await rig.rows('select id, name from app.account'), [{ id: 2, name: 'b' }])
  t.deepEqual(await rig.rows('select line from app.log'), [])
  // Types of extensions have their operators in their own schema; the npm package of 18 has no extensions to try.
  if ((await rig.rows(`select from pg_available_extensions where name = 'citext'`)).length > 0) {
    await rig.rows('create extension citext')
    await rig.rows('create table app.code (code citext primary key, note citext)')
    await rig.apply(0, arrival('code', 'INSERT', 1, { code: 'AB', note: 'N' }), arrival('code', 'INSERT', 1, { code: 'CD', note: 'N' }))
    await rig.apply(0, arrival('code', 'DELETE', 2, { code: 'ab' }))
    await rig.apply(0, arrival('code', 'UPDATE', 3, { code: ['cd', 'ef'], note: ['n', 'n'] }))
    t.deepEqual(await rig.rows('select code::text from app.code'), [{ code: 'ef' }])
  }
  t.deepEqual(await rig.rows('select producer_publish_status, consumer_deploy_status from auditlog.audit_log'),
    [{ producer_publish_status: 'PUBLISHED', consumer_deploy_status: 'APPLIED' }])
})
