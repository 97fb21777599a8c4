import test from 'ava'
import type { ExecutionContext } from 'ava'

import type { Sql } from '../../outbox/sql.ts'
import { pairDatabases } from '../../services/jobs/migrate.ts'
import { arrival, consumerRig } from '../../test/support/arrivals.ts'
import { type Cli, cliWith } from '../../test/support/cli.ts'
import { connect, freshDatabase } from '../../test/support/database.ts'
import { outboxConnection, writeEvents } from '../../test/support/events.ts'
import { brokers, freshTopic } from '../../test/support/kafka.ts'
import { inClone } from './clone.ts'

function cliOn(url: string, settings: Record<string, string> = {}): Cli {
  return cliWith({ DATABASE_URL: url, KAFKA_BROKERS: brokers().join(), ...settings })
}

type Given = { sql: Sql; url: string; cli: Cli }

async function given(t: ExecutionContext, settings: Record<string, string> = {}): Promise<Given> {
  const database = await freshDatabase()
  const sql = outboxConnection(database.url)
  t.teardown(async () => {
    await sql.end({ timeout: 5 })
    await database.drop()
  })
  return { sql, url: database.url, cli: cliOn(database.url, settings) }
}

/** Three published changes: without an outcome, with one, and one that is 10 days old. */
async function threePublished(sql: Sql): Promise<[string, string, string]> {
  const old = new Date(Date.now() - 10 * 86_400_000).toISOString()
  const ids = await writeEvents(sql, [{ key: '1' }, { key: '2' }, { key: '3', sourceTime: old }]) as [string, string, string]
  await sql`delete from outbox.event`
  await sql`insert into auditlog.publish_log (position, seq_id, producer_publish_status) select seq_id, seq_id, 'PUBLISHED' from auditlog.producer_log`
  await sql`insert into inbox.applied (origin, seq_id, status, statement, partition, "offset") values (1, ${ids[1]}, 'APPLIED', 0, 0, 0)`
  return ids
}

const events = async (sql: Sql): Promise<string[]> => (await sql<{ seq_id: string }[]>`select seq_id from outbox.event order by seq_id`).map((row) => row.seq_id)

test('event publish puts changes into the outbox again, says that an outcome stays, and leaves a line of each in the audit', async (t) => {
  const { sql, cli } = await given(t)
  const [lost, applied] = await threePublished(sql)
  const { code, out, err } = await cli('event', 'publish', lost, applied, lost, '--as', 'anna', '--note', 'ticket 12')
  t.is(code, 0, err)
  t.regex(out, new RegExp(`^1:${lost}  to be published again\\n1:${applied}  to be published again; it stays APPLIED\\n2 to be published again, by the relay; 1 .*origin and seq_id`))
  t.deepEqual(await events(sql), [lost, applied])
  const actions = await sql`select command, origin, seq_id, relation, note, outcome from auditlog.action order by id`
  t.like(actions[0], { command: 'publish', origin: 1, seq_id: lost, relation: 'app.test', note: 'ticket 12', outcome: 'to be published again' })
  t.is(actions.length, 2)
  const again = await cli('event', 'publish', lost, '--json')
  t.is(again.code, 0)
  t.deepEqual(JSON.parse(again.out), { origin: 1, seq_id: lost, outcome: 'on its way already', consumer_deploy_status: null })
})

test('event publish does nothing where one of the numbers is no change, and asks for a number', async (t) => {
  const { sql, cli } = await given(t)
  const [lost] = await threePublished(sql)
  const { code, err } = await cli('event', 'publish', lost, '4711')
  t.is(code, 1)
  t.regex(err, /^Error: no change has the number 4711/)
  t.deepEqual(await events(sql), [])
  t.is((await cli('event', 'publish')).code, 2)
  t.is((await cli('event', 'publish', 'four')).code, 2)
})

test('I7 a change from before HORIZON is published again by --old only, also one whose publishing had failed', async (t) => {
  const { sql, cli } = await given(t, { HORIZON: '5d' })
  const [young, , old] = await threePublished(sql)
  const refused = await cli('event', 'publish', old, young)
  t.is(refused.code, 3)
  t.regex(refused.out, new RegExp(`1:${old}  refused: older than HORIZON`))
  t.regex(refused.err, /Try: .*--old/)
  t.deepEqual(await events(sql), [young])
  t.is((await cli('event', 'publish', old, '--old')).code, 0)
  t.deepEqual(await events(sql), [young, old])

  await sql`delete from outbox.event`
  await sql`update auditlog.publish_log set latest = true, producer_publish_status = 'FAILED', producer_failure_log = 'TOO_LARGE: 9 MB' where seq_id = ${old}`
  const parked = await cli('parked', 'retry', '--side', 'publish', '--status', 'FAILED')
  t.is(parked.code, 3)
  t.regex(parked.out, new RegExp(`1:${old}  refused: older than HORIZON.*\\n0 to be published again`))
  t.regex(parked.err, /Try: .*--old/)
  t.deepEqual(await events(sql), [])
  t.regex(String((await sql`select outcome from auditlog.action order by id desc limit 1`)[0]?.['outcome']), /^refused: older than HORIZON/)
  t.is((await cli('parked', 'retry', old, '--old')).code, 0)
  t.deepEqual(await events(sql), [old])
})

test('with two databases event show has from the target what receipts do not carry, and without it what the first knows', async (t) => {
  const { sql, url } = await given(t)
  const target = await freshDatabase()
  const rig = await consumerRig(target.url)
  t.teardown(async () => {
    await rig.close()
    await target.drop()
  })
  await pairDatabases(url, target.url, () => undefined)
  await rig.rows('create schema app')
  await rig.rows('create table app.test (id integer primary key, name varchar(5))')
  const [seqId = ''] = await writeEvents(sql, [{ key: '1' }])
  await rig.apply(0, arrival('test', 'INSERT', 10, { id: '1', name: 'too long' }, Number(seqId)))
  const cli = cliOn(url, { TARGET_DATABASE_URL: target.url })
  const { code, out, err } = await cli('event', 'show', seqId, '--json')
  t.is(code, 0, err)
  const shown = JSON.parse(out) as { parked: object; applied: object; row_version: object }
  t.like(shown.parked, { reason: 'REFUSED', key: '1' })
  t.like(shown.applied, { consumer_deploy_status: 'RETRYING' })
  t.like(shown.row_version, { key: '1', parked: true })
  const away = await cliOn(url, { TARGET_DATABASE_URL: 'postgres://127.0.0.1:1/away' })('event', 'show', seqId)
  t.is(away.code, 0)
  t.regex(away.err, /no answer from the database away.*what follows is what the first database knows/)
})

test('with two databases the key of a table is declared where it is applied and known where changes come in, and the list is the target\'s', async (t) => {
  const { sql, url } = await given(t)
  const target = await freshDatabase()
  const there = connect(target.url)
  t.teardown(async () => {
    await there.end({ timeout: 5 })
    await target.drop()
  })
  await pairDatabases(url, target.url, () => undefined)
  await writeEvents(sql, [{ key: null, payload: '{"DATA": {"id": {"old": "16", "new": "16"}}}' }])
  await sql`update auditlog.producer_log set row_key = null`
  await sql`select outbox.meet('INFORMIX', 'app', 'test')`
  const cli = cliOn(url, { TARGET_DATABASE_URL: target.url })
  const declared = await cli('schema', 'key', 'app.test', 'id')
  t.is(declared.code, 0, declared.err)
  for (const one of [sql, there]) {
    t.deepEqual([...await one`select source_table, key_columns, known_from from outbox.relation`], [{ source_table: 'test', key_columns: ['id'], known_from: 'registered' }])
  }
  t.deepEqual([...await sql`select row_key from auditlog.producer_log`], [{ row_key: '["16"]' }])
  await there`update outbox.relation set state = 'STOPPED', stop_reason = 'TARGET_MISSING'`
  const listed = await cli('schema', 'list', '--json')
  t.like((JSON.parse(listed.out) as object[])[0], { source: 'app.test', state: 'STOPPED' })
  const doctor = await cli('doctor')
  t.regex(doctor.out, /FAIL {2}second relations: app\.test is stopped: TARGET_MISSING\n {6}Try: .*deltapost resume app\.test/)
})

test('doctor has no fault to find with a topic whose records are smaller than MAX_BODY: a larger change travels in chunks', async (t) => {
  const { url } = await given(t)
  const { topic, drop } = await freshTopic('doctor', 1)
  t.teardown(drop)
  const { out } = await cliOn(url, { TOPIC: topic })('doctor')
  t.regex(out, /\nok {4}record limit: .*chunks\n/)
  t.notRegex(out, /waits in the outbox/)
})

test('where there are no packages or scripts of development, the command says that it needs a clone', async (t) => {
  const missing: string = './not-there.ts'
  const error = await t.throwsAsync(inClone('demo', () => import(missing)), { code: 'CLONE_NEEDED' })
  t.regex(error.message, /demo.*clone/)
  await t.throwsAsync(inClone('demo', () => Promise.reject(new TypeError('other'))), { instanceOf: TypeError })
})
