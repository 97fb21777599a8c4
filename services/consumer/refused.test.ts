import test from 'ava'
import type { ExecutionContext } from 'ava'
import { arrival, consumerRig } from '../../test/support/arrivals.ts'
import type { Rig, RigOptions } from '../../test/support/arrivals.ts'
import { connect, freshDatabase } from '../../test/support/database.ts'
import { until } from '../../test/support/until.ts'
import type { Arrival } from './element.ts'

const account = 'create table app.account (id integer primary key, name varchar(10), photo text)'
const TOO_LONG = 'more than ten characters'

async function rig(t: ExecutionContext, ddl: string[] = [account], options: RigOptions = {}): Promise<Rig & { url: string }> {
  const database = await freshDatabase()
  const made = await consumerRig(database.url, options)
  t.teardown(async () => {
    await made.close()
    await database.drop()
  })
  for (const statement of ['create schema if not exists app', ...ddl]) await made.rows(statement)
  return { ...made, url: database.url }
}

/** The same change as the relay publishes it for its next attempt. */
const again = (change: Arrival, attempt: number): Arrival => ({ ...change, identity: { ...change.identity, attempt } })
const accounts = 'select id, name, photo from app.account order by id'

test('I8 a refused change is parked with its bytes, and its neighbours in the batch, before and behind it, are applied', async (t) => {
  const { apply, rows, statuses } = await rig(t)
  const refused = arrival('account', 'INSERT', 2, { id: '2', name: TOO_LONG }, 2)
  await apply(0, arrival('account', 'INSERT', 1, { id: '1', name: 'a' }, 1), refused, arrival('account', 'INSERT', 3, { id: '3', name: 'c' }, 3))
  t.deepEqual(await rows(accounts), [{ id: 1, name: 'a', photo: null }, { id: 3, name: 'c', photo: null }])
  t.deepEqual(await statuses(), { 1: 'APPLIED', 2: 'RETRYING', 3: 'APPLIED' })
  t.deepEqual(await rows('select next_offset from inbox.position'), [{ next_offset: '4' }])
  const [parked] = await rows('select key, reason, sqlstate, attempts, payload, retry_at > now() as later from inbox.parked')
  t.deepEqual(parked, { key: '2', reason: 'REFUSED', sqlstate: '22001', attempts: 0, payload: refused.record().value, later: true })
  const [audit] = await rows('select consumer_deploy_status, consumer_failure_log from auditlog.consumer_log where seq_id = 2')
  t.is(audit?.['consumer_deploy_status'], 'RETRYING')
  t.regex(String(audit?.['consumer_failure_log']), /^REFUSED 22001: value too long/)
})

test('I8 a batch of which every tenth change is refused: the good ones are applied, also where only a constraint refuses', async (t) => {
  const { apply, rows } = await rig(t, ['create table app.account (id integer primary key, name varchar(10) not null check (name <> \'bad\'), photo text)'])
  const changes = Array.from({ length: 1_000 }, (_, n) => arrival('account', 'INSERT', n + 1, {
    id: String(n), name: n % 10 !== 0 ? 'good' : [TOO_LONG, 'bad', null][(n / 10) % 3]!,
  }))
  for (let at = 0; at < changes.length; at += 250) await apply(0, ...changes.slice(at, at + 250))
  t.deepEqual(await rows('select count(*)::int as n from app.account'), [{ n: 900 }])
  t.deepEqual(await rows('select sqlstate, count(*)::int as n from inbox.parked group by 1 order by 1'),
    [{ sqlstate: '22001', n: 34 }, { sqlstate: '23502', n: 33 }, { sqlstate: '23514', n: 33 }])
})

test('I8 a newer full image of a parked row is applied and settles it', async (t) => {
  const { apply, rows, statuses } = await rig(t)
  await apply(0, arrival('account', 'INSERT', 1, { id: '1', name: TOO_LONG }, 1))
  await apply(0, arrival('account', 'UPDATE', 2, { id: ['1', '1'], name: [TOO_LONG, 'b'], photo: ['NULL', 'p'] }, 2))
  t.deepEqual(await rows(accounts), [{ id: 1, name: 'b', photo: 'p' }])
  t.deepEqual(await statuses(), { 1: 'SUPERSEDED', 2: 'APPLIED' })
  t.deepEqual(await rows('select seq_id from inbox.parked'), [])
  await apply(0, arrival('account', 'UPDATE', 3, { id: ['1', '1'], name: ['b', 'c'] }, 3))
  t.deepEqual(await rows(accounts), [{ id: 1, name: 'c', photo: 'p' }], 'and the row is parked no more')
})

test('I8 partial images wait behind a parked change of their row and follow it in order; an older full image does not', async (t) => {
  const { apply, rows, statuses, tend, retryAll } = await rig(t)
  await apply(0, arrival('account', 'UPDATE', 5, { id: ['1', '1'], name: ['x', TOO_LONG], photo: ['p', 'q'] }, 5))
  await apply(0, arrival('account', 'UPDATE', 6, { id: ['1', '1'], name: [TOO_LONG, 'f'] }, 6), arrival('account', 'INSERT', 7, { id: '2', name: 'other' }, 7))
  await apply(1, arrival('account', 'UPDATE', 8, { id: ['1', '1'], photo: ['q', 'r'] }, 8))
  t.deepEqual(await rows('select seq_id, reason from inbox.parked order by 1'), [{ seq_id: '5', reason: 'REFUSED' }, { seq_id: '6', reason: 'BEHIND' }, { seq_id: '8', reason: 'BEHIND' }])
  await apply(0, arrival('account', 'INSERT', 4, { id: '1', name: 'x', photo: 'p' }, 4))
  t.deepEqual(await rows(accounts), [{ id: 1, name: 'x', photo: 'p' }, { id: 2, name: 'other', photo: null }])
  await rows('alter table app.account alter column name type text')
  await tend()
  await retryAll()
  await tend()
  t.deepEqual(await rows(accounts), [{ id: 1, name: 'f', photo: 'r' }, { id: 2, name: 'other', photo: null }])
  t.deepEqual(await statuses(), { 4: 'APPLIED', 5: 'APPLIED', 6: 'APPLIED', 7: 'APPLIED', 8: 'APPLIED' })
})

test('I8 a partial image is not applied while its predecessor is being parked in another partition', async (t) => {
  const { apply, rows, url } = await rig(t)
  await apply(0, arrival('account', 'INSERT', 1, { id: '1', name: 'a', photo: 'p' }, 1))
  const sql = connect(url, { max: 1 })
  t.teardown(() => sql.end({ timeout: 1 }))
  await sql`begin`
  await sql`select from inbox.row_version where key = '1' for update`
  const partial = apply(1, arrival('account', 'UPDATE', 3, { id: ['1', '1'], photo: ['q', 'r'] }, 3))
  await until(async () => (await rows(`select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()`)).length > 0)
  // What inbox.set_aside does for the change in between.
  await sql`update inbox.row_version set parked = true where key = '1'`
  await sql`insert into inbox.applied (origin, seq_id, status, statement, partition, "offset", failure) select 1, 2, 'RETRYING', max(id), 0, 2, 'REFUSED' from inbox.statement`
  await sql`insert into inbox.parked (origin, seq_id, relation, key, epoch, time, reason, message, topic, payload) select 1, 2, relation, '1', 1, 2, 'REFUSED', '', '', '{}' from inbox.row_version`
  await sql`commit`
  t.is(await partial, 'OK')
  t.deepEqual(await rows(accounts), [{ id: 1, name: 'a', photo: 'p' }])
  t.deepEqual(await rows('select seq_id, reason from inbox.parked order by 1'), [{ seq_id: '2', reason: 'REFUSED' }, { seq_id: '3', reason: 'BEHIND' }])
})

test('a change is tried MAX_RETRIES times more, then FAILED and told to the error topic once; a retry counts only if it is the next', async (t) => {
  const { apply, rows } = await rig(t)
  const change = arrival('account', 'INSERT', 1, { id: '1', name: TOO_LONG }, 1)
  const state = async (): Promise<unknown> => (await rows('select a.status, a.attempt, p.retry_at is not null as due from inbox.applied a join inbox.parked p using (origin, seq_id)'))[0]
  await apply(0, change)
  await apply(0, change)
  t.deepEqual(await state(), { status: 'RETRYING', attempt: 0, due: true }, 'a record that is delivered again is no attempt')
  await apply(0, again(change, 2))
  t.deepEqual(await state(), { status: 'RETRYING', attempt: 0, due: true }, 'not the next one')
  await apply(0, again(change, 1))
  await apply(0, again(change, 1))
  t.deepEqual(await state(), { status: 'RETRYING', attempt: 1, due: true })
  t.deepEqual(await rows('select 1 from outbox.event'), [])
  await apply(0, again(change, 2))
  t.deepEqual(await state(), { status: 'FAILED', attempt: 2, due: false })
  await apply(0, again(change, 3))
  await apply(0, again(change, 2))
  const [event, ...others] = await rows('select kind, topic, attempt, origin, head from outbox.event')
  t.deepEqual(others, [])
  t.like(event, { kind: 'error', topic: 'errors', attempt: 2, origin: null })
  const head = JSON.parse(`{${String(event?.['head'])}}`) as { recipients: string[]; error: Record<string, unknown> }
  t.deepEqual(head.recipients, ['admin@abc.com'])
  t.like(head.error, { code: 'REFUSED', sqlstate: '22001', side: 'deploy', attempts: 2 })
  await rows('alter table app.account alter column name type text')
  await apply(0, arrival('account', 'UPDATE', 2, { id: ['1', '1'], name: ['x', 'y'], photo: ['NULL', 'NULL'] }, 2))
  t.deepEqual(await rows('select status, attempt from inbox.applied order by seq_id'), [{ status: 'SUPERSEDED', attempt: 2 }, { status: 'APPLIED', attempt: 0 }])
})

test('a retry that succeeds is APPLIED with its attempt, and has its effect once', async (t) => {
  const { apply, rows } = await rig(t)
  const change = arrival('account', 'INSERT', 1, { id: '1', name: TOO_LONG }, 1)
  await apply(0, change)
  await rows('alter table app.account alter column name type text')
  await Promise.all([apply(0, again(change, 1)), apply(1, again(change, 1))])
  t.deepEqual(await rows('select status, attempt, partition from inbox.applied'), [{ status: 'APPLIED', attempt: 1, partition: 0 }])
  t.deepEqual(await rows('select id, name from app.account'), [{ id: 1, name: TOO_LONG }])
  t.deepEqual(await rows('select seq_id from inbox.parked union all select 1 from inbox.row_version where parked'), [])
})

test('a change whose publishing needed a second attempt is applied like any other', async (t) => {
  const { apply, statuses } = await rig(t)
  await apply(0, again(arrival('account', 'INSERT', 1, { id: '1', name: 'a' }, 1), 2), again(arrival('account', 'INSERT', 1, { id: '2', name: TOO_LONG }, 2), 1))
  t.deepEqual(await statuses(), { 1: 'APPLIED', 2: 'RETRYING' })
})

test('what is due goes into the outbox for its next attempt, once', async (t) => {
  const { apply, rows } = await rig(t, [account], { course: { maxRetries: 3, retryBackoff: 1, errorTopic: 'errors', errorRecipients: [] } })
  await apply(0, arrival('account', 'INSERT', 1, { id: '1', name: TOO_LONG }, 1))
  await until(async () => Number((await rows('select inbox.publish_due(10) as n'))[0]?.['n']) === 1)
  t.deepEqual(await rows('select inbox.publish_due(10) as n'), [{ n: 0 }])
  t.deepEqual(await rows('select kind, lane, seq_id, attempt, origin, due_at from outbox.event'), [{ kind: 'retry', lane: 10_001, seq_id: '1', attempt: 1, origin: null, due_at: null }])
})

test('with the policy skip a refused change is SKIPPED at once, holds up nothing, and never comes back', async (t) => {
  const { apply, rows, statuses, tend } = await rig(t)
  await apply(0, arrival('account', 'INSERT', 1, { id: '1', name: 'a', photo: 'p' }, 1))
  await rows(`update outbox.relation set on_refusal = 'skip'`)
  const skipped = arrival('account', 'UPDATE', 2, { id: ['1', '1'], name: ['a', TOO_LONG], photo: ['p', 'q'] }, 2)
  await apply(0, skipped)
  await apply(0, arrival('account', 'UPDATE', 3, { id: ['1', '1'], photo: ['q', 'r'] }, 3))
  await rows('alter table app.account alter column name type text')
  await apply(0, skipped)
  await tend()
  t.deepEqual(await rows(accounts), [{ id: 1, name: 'a', photo: 'r' }])
  t.deepEqual(await statuses(), { 1: 'APPLIED', 2: 'SKIPPED', 3: 'APPLIED' })
  t.deepEqual(await rows('select 1 from outbox.event'), [])
})

test('what was given up stays given up when its record comes again, also where its key cannot be read', async (t) => {
  const { apply, rows, statuses } = await rig(t)
  await apply(0, arrival('account', 'INSERT', 1, { id: '1', name: 'a' }, 1))
  await rows(`update outbox.relation set on_refusal = 'skip'`)
  const skipped = arrival('account', 'INSERT', 2, { id: 'two', name: 'b' }, 2)
  await apply(0, skipped)
  await rows(`update outbox.relation set on_refusal = 'park'`)
  await apply(0, skipped)
  t.deepEqual(await statuses(), { 1: 'APPLIED', 2: 'SKIPPED' })
})

test('a failure is told once, also when the change is tried again because of its row and refused again', async (t) => {
  const { apply, rows, statuses, tend } = await rig(t)
  const change = arrival('account', 'UPDATE', 5, { id: ['1', '1'], name: ['x', TOO_LONG] }, 5)
  await apply(0, change)
  await apply(0, again(change, 1))
  await apply(0, again(change, 2))
  await apply(0, arrival('account', 'INSERT', 4, { id: '1', name: 'x', photo: 'p' }, 4))
  t.deepEqual(await rows('select reason from inbox.parked'), [{ reason: 'BEHIND' }], 'it is its turn')
  await tend()
  t.deepEqual(await statuses(), { 4: 'APPLIED', 5: 'FAILED' })
  t.deepEqual(await rows('select kind, attempt from outbox.event'), [{ kind: 'error', attempt: 2 }])
})

test('a foreign key and a second unique key make a change wait without an attempt, until the other row is there or gone', async (t) => {
  const { apply, rows, statuses, tend } = await rig(t, [account, 'alter table app.account add unique (name)', 'create table app.child (id integer primary key, parent integer references app.account)'])
  await apply(0, arrival('child', 'INSERT', 1, { id: '1', parent: '1' }, 1))
  await apply(0, arrival('account', 'INSERT', 2, { id: '2', name: 'taken' }, 2), arrival('account', 'INSERT', 3, { id: '3', name: 'taken' }, 3))
  t.deepEqual(await statuses(), { 1: 'PARKED', 2: 'APPLIED', 3: 'PARKED' })
  t.deepEqual(await rows('select attempts, reason from inbox.parked'), [{ attempts: 0, reason: 'WAITING' }, { attempts: 0, reason: 'WAITING' }])
  await apply(0, arrival('account', 'INSERT', 4, { id: '1', name: 'parent' }, 4), arrival('account', 'DELETE', 5, { id: '2' }, 5))
  await until(async () => {
    await tend()
    return (await rows('select 1 from inbox.parked')).length === 0
  })
  t.deepEqual(await statuses(), { 1: 'APPLIED', 2: 'APPLIED', 3: 'APPLIED', 4: 'APPLIED', 5: 'APPLIED' })
  t.deepEqual(await rows('select id from app.account order by id'), [{ id: 1 }, { id: 3 }])
})

test('an update that comes before its insert, which a NOT NULL column refuses, follows it by itself', async (t) => {
  const { apply, rows, statuses, tend } = await rig(t, ['create table app.account (id integer primary key, name text not null, photo text)'])
  await apply(0, arrival('account', 'UPDATE', 2, { id: ['1', '1'], photo: ['p', 'q'] }, 2))
  t.deepEqual(await statuses(), { 2: 'RETRYING' })
  await apply(1, arrival('account', 'INSERT', 1, { id: '1', name: 'a', photo: 'p' }, 1))
  await tend()
  t.deepEqual(await rows(accounts), [{ id: 1, name: 'a', photo: 'q' }])
  t.deepEqual(await statuses(), { 1: 'APPLIED', 2: 'APPLIED' })
})

test('I11 a value that Postgres cannot store in any text is parked as it came, and the batch around it applied', async (t) => {
  const { apply, rows, statuses } = await rig(t)
  const bad = [arrival('account', 'INSERT', 1, { id: '1', name: 'a\0b' }, 1), arrival('account', 'INSERT', 2, { id: '2', name: 'half \ud800' }, 2)]
  await apply(0, arrival('account', 'INSERT', 3, { id: '3', name: 'good' }, 3), ...bad, arrival('account', 'INSERT', 4, { id: 'four', name: 'key' }, 4))
  t.deepEqual(await statuses(), { 1: 'RETRYING', 2: 'RETRYING', 3: 'APPLIED', 4: 'RETRYING' })
  t.deepEqual(await rows('select seq_id, key, sqlstate, payload from inbox.parked order by 1'), [
    { seq_id: '1', key: '1', sqlstate: '22P05', payload: bad[0]!.record().value },
    { seq_id: '2', key: '2', sqlstate: '22P05', payload: bad[1]!.record().value },
    { seq_id: '4', key: null, sqlstate: '22P02', payload: (await rows('select payload from inbox.parked where seq_id = 4'))[0]!['payload'] },
  ])
})

test('without a key a refused change is parked alone, and the table ends right once it is taken up', async (t) => {
  const { apply, rows, statuses, retryAll } = await rig(t, ['create table app.log (line varchar(10), n integer)'])
  await apply(0, arrival('log', 'INSERT', 1, { line: 'a', n: '1' }, 1), arrival('log', 'INSERT', 2, { line: TOO_LONG, n: '2' }, 2), arrival('log', 'INSERT', 3, { line: 'c', n: '3' }, 3))
  await rows('alter table app.log alter column line type text')
  await apply(0, arrival('log', 'UPDATE', 4, { line: [TOO_LONG, 'b'], n: ['2', '2'] }, 4))
  t.deepEqual(await statuses(), { 1: 'APPLIED', 2: 'RETRYING', 3: 'APPLIED', 4: 'APPLIED' })
  await retryAll()
  t.deepEqual(await rows('select line, n from app.log order by n'), [{ line: 'a', n: 1 }, { line: 'b', n: 2 }, { line: 'c', n: 3 }])
  t.deepEqual(await rows('select 1 from inbox.owed'), [])
})

test('a key change that is refused leaves its old key only when it is applied, or when a newer image of the new key comes', async (t) => {
  const { apply, rows, statuses } = await rig(t)
  await apply(0, arrival('account', 'INSERT', 1, { id: '1', name: 'a', photo: 'p' }, 1))
  await apply(0, arrival('account', 'UPDATE', 2, { id: ['1', '2'], name: ['a', TOO_LONG], photo: ['p', 'p'] }, 2))
  t.deepEqual(await rows(accounts), [{ id: 1, name: 'a', photo: 'p' }])
  await apply(0, arrival('account', 'UPDATE', 3, { id: ['2', '2'], name: [TOO_LONG, 'c'], photo: ['p', 'p'] }, 3))
  t.deepEqual(await rows(accounts), [{ id: 2, name: 'c', photo: 'p' }])
  t.deepEqual(await statuses(), { 1: 'APPLIED', 2: 'SUPERSEDED', 3: 'APPLIED' })
})
