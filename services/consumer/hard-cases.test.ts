import test from 'ava'
import type { ExecutionContext } from 'ava'
import { pino } from 'pino'
import { arrival, consumerRig, COURSE } from '../../test/support/arrivals.ts'
import type { Rig, RigOptions } from '../../test/support/arrivals.ts'
import { connect, freshDatabase } from '../../test/support/database.ts'
import { until } from '../../test/support/until.ts'
import { openSlot } from '../runtime/slot.ts'
import type { Arrival } from './element.ts'
import { parkedColumns, takeUp } from './parked.ts'
import type { Parked, TakeUpParts } from './parked.ts'
import { openRelations } from './relations.ts'
import { resumeRelation, stoppedRelations } from './resume.ts'
import { stopRelation } from './stop.ts'
import { unparkDue } from './unpark.ts'

// Faults of earlier shapes of parking and stopping, each once found by an attack on it.

const account = 'create table app.account (id integer primary key, name varchar(10), photo text)'
const accounts = 'select id, name, photo from app.account order by id'
const TOO_LONG = 'more than ten characters'
const log = pino({ level: 'silent' })
const again = (change: Arrival, attempt: number): Arrival => ({ ...change, identity: { ...change.identity, attempt } })

async function rig(t: ExecutionContext, ddl: string[] = [account], options: RigOptions = {}): Promise<Rig & { url: string }> {
  const database = await freshDatabase()
  const made = await consumerRig(database.url, options)
  t.teardown(async () => {
    await made.close()
    await database.drop()
  })
  for (const statement of ['create schema app', ...ddl]) await made.rows(statement)
  return { ...made, url: database.url }
}

function ownParts(t: ExecutionContext, url: string): TakeUpParts & { log: typeof log } {
  const slot = openSlot({ url, name: 'another consumer', lockTimeout: 0, deadline: 60_000 })
  t.teardown(() => slot.close())
  return { slot, clockTolerance: 300_000, course: COURSE, log, relations: openRelations({ source: 'INFORMIX', destination: 'POSTGRESQL', autoCreate: true, log }) }
}

/** A trigger that refuses the name "bad" in the way it is told. */
function refusing(how: string): string[] {
  return [account,
    `create function app.refuse() returns trigger language plpgsql as $$ begin if new.name = 'bad' then ${how}; end if; return new; end $$`,
    'create trigger refuse before insert on app.account for each row execute function app.refuse()']
}

for (const [what, how] of Object.entries({
  'an SQLSTATE of its own': `raise exception 'no' using errcode = 'BANK1'`,
  'an assertion': `assert false, 'no'`,
  'two rows where one is asked for': 'new.photo := (select x::text from generate_series(1, 2) as x)',
})) {
  test(`I8 a trigger that raises ${what} holds up its row only`, async (t) => {
    const { apply, statuses, rows } = await rig(t, refusing(how))
    await apply(0, arrival('account', 'INSERT', 1, { id: '1', name: 'bad' }, 1), arrival('account', 'INSERT', 2, { id: '2', name: 'ok' }, 2))
    t.deepEqual(await statuses(), { 1: 'RETRYING', 2: 'APPLIED' })
    t.deepEqual(await rows('select state from outbox.relation'), [{ state: 'ACTIVE' }])
  })
}

test('I11 what Postgres cannot store in any text blocks nothing: in a key, with a TIME in the future, without a key', async (t) => {
  const { apply, statuses, rows } = await rig(t, ['create table app.account (id text primary key, name text)'])
  await apply(0, arrival('account', 'INSERT', 1, { id: 'a\0b', name: 'x' }, 1), arrival('account', 'INSERT', 2, { id: 'b', name: 'x' }, 2))
  await apply(0, arrival('account', 'INSERT', 9_000_000_000_000_000, { id: '1', name: 'a\0b' }, 3))
  await apply(0, arrival('account', 'INSERT', 4, { name: 'a\0b' }, 4))
  t.deepEqual(await statuses(), { 1: 'RETRYING', 2: 'APPLIED', 3: 'PARKED', 4: 'PARKED' })
  t.deepEqual(await rows('select seq_id, key, reason from inbox.parked order by 1'), [
    { seq_id: '1', key: null, reason: 'REFUSED' }, { seq_id: '3', key: null, reason: 'CLOCK_AHEAD' }, { seq_id: '4', key: null, reason: 'NO_KEY' }])
})

test('I10 a foreign key that is checked at the end makes its change wait, and no other', async (t) => {
  const { apply, statuses } = await rig(t, [account, 'create table app.child (id integer primary key, parent integer references app.account deferrable initially deferred)'])
  await apply(0, arrival('child', 'INSERT', 1, { id: '1', parent: '1' }, 1), arrival('child', 'INSERT', 2, { id: '2', parent: null }, 2))
  t.deepEqual(await statuses(), { 1: 'PARKED', 2: 'APPLIED' })
})

test('I11 a change whose publishing needed a second attempt is parked like any other, without a key or with a TIME in the future', async (t) => {
  const { apply, statuses, rows } = await rig(t)
  await apply(0, again(arrival('account', 'INSERT', 1, { name: 'a' }, 1), 1), again(arrival('account', 'INSERT', 9_000_000_000_000_000, { id: '1', name: 'a' }, 2), 1))
  t.deepEqual(await statuses(), { 1: 'PARKED', 2: 'PARKED' })
  t.deepEqual(await rows(accounts), [])
})

test('I7 a key change in the queue of a stopped relation leaves its old key', async (t) => {
  const { apply, rows, tend } = await rig(t, [account, `insert into app.account values (1, 'a', 'p')`])
  await apply(0, arrival('account', 'INSERT', 1, { id: '9', name: 'a' }, 1))
  await rows(`update outbox.relation set state = 'STOPPED', stopped_by = 'operator'`)
  await apply(0, arrival('account', 'UPDATE', 2, { id: ['1', '2'], name: ['a', 'b'], photo: ['p', 'p'] }, 2))
  await tend()
  t.deepEqual(await rows(accounts), [{ id: 2, name: 'b', photo: 'p' }, { id: 9, name: 'a', photo: null }])
})

test('I7 a key change that cannot be stored leaves its old key when a newer image settles it', async (t) => {
  const { apply, rows } = await rig(t)
  await apply(0, arrival('account', 'INSERT', 1, { id: '1', name: 'a', photo: 'p' }, 1))
  await apply(0, arrival('account', 'UPDATE', 2, { id: ['1', '2'], name: ['a', 'x\0y'], photo: ['p', 'p'] }, 2))
  await apply(0, arrival('account', 'UPDATE', 3, { id: ['2', '2'], name: ['x', 'c'], photo: ['p', 'p'] }, 3))
  t.deepEqual(await rows(accounts), [{ id: 2, name: 'c', photo: 'p' }])
})

test('I8 a before-image that cannot be read keeps newer full images of the new key from nothing', async (t) => {
  const { apply, rows, statuses } = await rig(t, ['create table app.account (id integer primary key, n integer)'])
  await apply(0, arrival('account', 'INSERT', 1, { id: '1', n: '1' }, 1))
  await apply(0, arrival('account', 'UPDATE', 2, { id: ['1', '2'], n: ['error', '2'] }, 2))
  await apply(0, arrival('account', 'UPDATE', 3, { id: ['2', '2'], n: ['2', '3'] }, 3))
  t.deepEqual(await rows('select id, n from app.account'), [{ id: 1, n: 1 }, { id: 2, n: 3 }])
  t.deepEqual(await statuses(), { 1: 'APPLIED', 2: 'PARKED', 3: 'APPLIED' }, 'which row it left is for somebody to look at')
})

test('I8 id = id + 1 of which one change is refused loses no row', async (t) => {
  const { apply, rows, tend, retryAll } = await rig(t)
  await apply(0, arrival('account', 'INSERT', 1, { id: '1', name: 'a', photo: 'p' }, 1), arrival('account', 'INSERT', 2, { id: '2', name: 'b', photo: 'q' }, 2))
  await apply(0, arrival('account', 'UPDATE', 3, { id: ['1', '2'], name: ['a', TOO_LONG], photo: ['p', 'p'] }, 3),
    arrival('account', 'UPDATE', 4, { id: ['2', '3'], name: ['b', 'b'], photo: ['q', 'q'] }, 4))
  t.deepEqual(await rows(accounts), [{ id: 1, name: 'a', photo: 'p' }, { id: 3, name: 'b', photo: 'q' }])
  await rows('alter table app.account alter column name type text')
  await retryAll()
  await tend()
  t.deepEqual(await rows(accounts), [{ id: 2, name: TOO_LONG, photo: 'p' }, { id: 3, name: 'b', photo: 'q' }])
})

test('I8 a key change settles what is parked of its row: the row that it leaves is that of before', async (t) => {
  const { apply, rows, statuses } = await rig(t)
  await apply(0, arrival('account', 'INSERT', 1, { id: '1', name: 'a', photo: 'p' }, 1))
  await apply(0, arrival('account', 'UPDATE', 2, { id: ['1', '1'], name: ['a', TOO_LONG] }, 2))
  await apply(0, arrival('account', 'UPDATE', 3, { id: ['1', '2'], name: [TOO_LONG, 'ok'], photo: ['p', 'p'] }, 3))
  t.deepEqual(await rows(accounts), [{ id: 2, name: 'ok', photo: 'p' }])
  t.deepEqual(await statuses(), { 1: 'APPLIED', 2: 'SUPERSEDED', 3: 'APPLIED' })
})

test('I8 a chain of 100 refused key changes is settled by a newer image of its end', async (t) => {
  const { apply, rows } = await rig(t)
  await apply(0, arrival('account', 'INSERT', 1, { id: '1', name: 'a', photo: 'p' }, 1))
  await apply(0, ...Array.from({ length: 100 }, (_, k) => arrival('account', 'UPDATE', k + 2,
    { id: [String(1 + k), String(2 + k)], name: [k === 0 ? 'a' : TOO_LONG, TOO_LONG], photo: ['p', 'p'] }, k + 2)))
  await apply(0, arrival('account', 'UPDATE', 1000, { id: ['101', '101'], name: [TOO_LONG, 'ok'], photo: ['p', 'p'] }, 1000))
  t.deepEqual(await rows(accounts), [{ id: 101, name: 'ok', photo: 'p' }])
})

test('I8 what waits behind a change goes on when that only fills columns, and when it is skipped by policy', async (t) => {
  for (const how of ['fills', 'skipped'] as const) {
    const { apply, rows, tend } = await rig(t)
    await apply(0, arrival('account', 'INSERT', 1, { id: '1', name: 'a', photo: 'p' }, 1))
    if (how === 'fills') await apply(0, arrival('account', 'UPDATE', 10, { id: ['1', '1'], photo: ['p', 'q'] }, 10))
    const bad = arrival('account', 'UPDATE', 5, { id: ['1', '1'], name: ['a', TOO_LONG] }, 5)
    await apply(0, bad)
    await apply(0, arrival('account', 'UPDATE', 12, { id: ['1', '1'], photo: ['q', 'r'] }, 12))
    await rows(how === 'fills' ? 'alter table app.account alter column name type text' : `update outbox.relation set on_refusal = 'skip'`)
    await apply(0, again(bad, 1))
    await tend()
    t.deepEqual(await rows(accounts), [{ id: 1, name: how === 'fills' ? TOO_LONG : 'a', photo: 'r' }], how)
  }
})

test('attempts are kept while a change waits behind another, and its failure is told once', async (t) => {
  const { apply, rows, tend } = await rig(t)
  const failed = arrival('account', 'UPDATE', 5, { id: ['1', '1'], name: ['x', TOO_LONG] }, 5)
  for (const n of [0, 1, 2]) await apply(0, again(failed, n))
  await apply(0, arrival('account', 'UPDATE', 4, { id: ['1', '1'], name: ['w', TOO_LONG] }, 4))
  await apply(0, arrival('account', 'INSERT', 3, { id: '1', name: 'w', photo: 'x' }, 3))
  await tend()
  t.deepEqual(await rows('select attempts from inbox.parked where seq_id = 5'), [{ attempts: 2 }])
  await rows(`select inbox.skip(1::smallint, 4, 'given up')`)
  await tend()
  for (const n of [1, 2, 3]) await apply(0, again(failed, n))
  t.deepEqual(await rows('select kind, attempt from outbox.event where seq_id = 5'), [{ kind: 'error', attempt: 2 }])
})

test('the key of a table that appears after its relation was stopped is learnt', async (t) => {
  const { apply, rows, tend } = await rig(t, [], { autoCreate: false })
  await apply(0, arrival('account', 'INSERT', 1, { id: '1', name: 'a', photo: 'p' }, 1))
  await rows(account)
  await tend()
  await apply(0, arrival('account', 'UPDATE', 2, { id: ['1', '1'], name: ['a', 'b'] }, 2))
  t.deepEqual(await rows(accounts), [{ id: 1, name: 'b', photo: 'p' }])
})

test('I10 a column of the target that is NOT NULL and never sent is the relation\'s trouble: no attempt', async (t) => {
  const { apply, rows, tend } = await rig(t)
  await apply(0, arrival('account', 'INSERT', 1, { id: '1', name: 'a', photo: 'p' }, 1))
  await rows(`alter table app.account add column must text not null default 'x'`)
  await rows('alter table app.account alter column must drop default')
  await apply(0, arrival('account', 'INSERT', 2, { id: '2', name: 'b', photo: 'p' }, 2))
  t.deepEqual(await rows('select reason, attempts from inbox.parked'), [{ reason: 'RELATION_STOPPED', attempts: 0 }])
  await rows('alter table app.account drop column must')
  await tend()
  t.deepEqual(await rows('select id from app.account order by 1'), [{ id: 1 }, { id: 2 }])
})

test('what was skipped between being read and being taken up stays skipped', async (t) => {
  const { apply, rows, statuses, url } = await rig(t)
  await apply(0, arrival('account', 'INSERT', 1, { id: '1', name: TOO_LONG }, 1))
  const parts = ownParts(t, url)
  const parked = await parts.slot.run((sql) => sql<Parked[]>`
    select ${parkedColumns(sql)} from inbox.parked p join inbox.applied a on a.origin = p.origin and a.seq_id = p.seq_id`)
  await rows(`select inbox.skip(1::smallint, 1, 'given up')`)
  await rows('alter table app.account alter column name type text')
  await takeUp(parts, parked, { state: 'ACTIVE', together: false, forced: false })
  t.deepEqual(await statuses(), { 1: 'SKIPPED' })
})

test('what was skipped unread has no effect when it is delivered again and can be read', async (t) => {
  const { apply, rows } = await rig(t, ['create table app.account (id integer primary key, name text)'])
  await apply(0, arrival('account', 'INSERT', 1, { id: '1', name: 'a' }, 1))
  await rows(`update outbox.relation set on_refusal = 'skip'`)
  const skipped = arrival('account', 'INSERT', 2, { id: 'two', name: 'b' }, 2)
  await apply(0, skipped)
  await rows('alter table app.account alter column id type text')
  await apply(0, skipped, arrival('account', 'INSERT', 3, { id: '3', name: 'c' }, 3))
  t.deepEqual(await rows('select id from app.account order by 1'), [{ id: '1' }, { id: '3' }])
})

test('a relation that was resumed while a batch found it stopped is not stopped again', async (t) => {
  const { apply, rows, url, holding } = await rig(t)
  await apply(0, arrival('account', 'INSERT', 1, { id: '1', name: 'a' }, 1))
  const parts = ownParts(t, url)
  await rows(`update outbox.relation set state = 'STOPPED', stopped_by = 'operator'`)
  const change = arrival('account', 'INSERT', 2, { id: '2', name: 'a' }, 2)
  const error: unknown = await parts.slot.run((sql) => parts.relations.prepare(sql, 'x', [change])).then(() => undefined, (reason: unknown) => reason)
  await rows(`update outbox.relation set state = 'ACTIVE', stopped_by = null`)
  t.is(await stopRelation({ ...parts, destination: 'POSTGRESQL' }, await holding(0), [change], undefined, error), 'STALE')
})

for (const [what, lock] of Object.entries({
  'the position of a partition': 'select from inbox.position for update',
  'the version of a row': 'select from inbox.row_version for update',
  'the relation while it is changed': 'select pg_advisory_xact_lock(7161, id) from outbox.relation',
})) {
  test(`I10 a lock of our own stops no relation, however long it is waited for: ${what}`, async (t) => {
    const { apply, rows, url } = await rig(t)
    await apply(0, arrival('account', 'INSERT', 1, { id: '1', name: 'a' }, 1))
    const sql = connect(url, { max: 1 })
    t.teardown(() => sql.end({ timeout: 1 }))
    await sql`begin`
    await sql.unsafe(lock)
    const applied = apply(0, arrival('account', 'UPDATE', 2, { id: ['1', '1'], name: ['a', 'b'] }, 2))
    // Longer than the limit for locks of the target, which is 3 s.
    await until(async () => (await rows(`select 1 from pg_stat_activity
      where datname = current_database() and wait_event_type = 'Lock' and clock_timestamp() - query_start > interval '3500 ms'`)).length > 0)
    await sql`commit`
    await applied
    t.deepEqual(await rows('select state from outbox.relation'), [{ state: 'ACTIVE' }])
    t.deepEqual(await rows('select name from app.account'), [{ name: 'b' }])
  })
}

test('a row with a trouble of its own keeps no other row waiting', async (t) => {
  const { apply, rows, url, statuses } = await rig(t, [account, 'alter table app.account add unique (name)',
    `create function app.refuse() returns trigger language plpgsql as $$ begin if new.photo = 'bad' then raise exception 'no' using errcode = '53100'; end if; return new; end $$`])
  await apply(0, arrival('account', 'INSERT', 1, { id: '1', name: 'a' }, 1), arrival('account', 'INSERT', 2, { id: '2', name: 'a', photo: 'bad' }, 2))
  await apply(0, arrival('account', 'INSERT', 3, { id: '3', name: 'b' }, 3), arrival('account', 'INSERT', 4, { id: '4', name: 'b', photo: 'good' }, 4))
  await rows('create trigger refuse before insert on app.account for each row execute function app.refuse()')
  await rows('alter table app.account drop constraint account_name_key')
  await rows(`update inbox.parked set retry_at = clock_timestamp() - interval '1 s' * (10 - seq_id)`)
  await t.throwsAsync(unparkDue(ownParts(t, url)), { code: '53100' })
  t.deepEqual(await statuses(), { 1: 'APPLIED', 2: 'PARKED', 3: 'APPLIED', 4: 'APPLIED' })
})

test('a key whose type changed while its changes were parked is let go under both spellings', async (t) => {
  const { apply, rows, tend } = await rig(t, ['create table app.account (id varchar(10) primary key, name varchar(10), photo text)'])
  await apply(0, arrival('account', 'INSERT', 1, { id: '007', name: 'a', photo: 'p' }, 1))
  const bad = arrival('account', 'UPDATE', 2, { id: ['007', '007'], name: ['a', TOO_LONG] }, 2)
  await apply(0, bad)
  await apply(0, arrival('account', 'UPDATE', 3, { id: ['007', '007'], photo: ['p', 'q'] }, 3))
  await rows('alter table app.account alter column id type integer using id::integer, alter column name type text')
  await apply(0, again(bad, 1))
  await tend()
  t.deepEqual(await rows(accounts), [{ id: 7, name: TOO_LONG, photo: 'q' }])
  t.deepEqual(await rows('select key from inbox.row_version where parked'), [])
})

test('a stopped relation goes on while its changes stream in faster than they are taken up', async (t) => {
  const { apply, rows, url } = await rig(t)
  await apply(0, arrival('account', 'INSERT', 1, { id: '1', name: 'a' }, 1))
  await rows(`update outbox.relation set state = 'STOPPED', stopped_by = 'failure', stop_reason = 'test'`)
  const parts = ownParts(t, url)
  const [relation] = await parts.slot.run(stoppedRelations)
  let seq = 100
  let going = true
  const stream = async (partition: number): Promise<void> => {
    while (going) {
      const changes = Array.from({ length: 5 }, () => {
        seq += 1
        return arrival('account', 'UPDATE', seq, { id: [String(seq % 50), String(seq % 50)], name: ['x', 'y'], photo: ['NULL', 'z'] }, seq)
      })
      // What is told to wait comes again, as from Kafka.
      await apply(partition, ...changes).catch((error: unknown) => {
        if (!(error instanceof Error && 'code' in error && error.code === 'RELATION_CHANGING')) throw error
      })
    }
  }
  const streams = [1, 2, 3].map(stream)
  await until(async () => Number((await rows('select count(*)::int as n from inbox.parked'))[0]?.['n']) > 1_000)
  try {
    t.true(await resumeRelation(parts, relation!, AbortSignal.timeout(60_000)))
  } finally {
    going = false
    await Promise.all(streams)
  }
  t.deepEqual(await rows('select state from outbox.relation'), [{ state: 'ACTIVE' }])
})

test('two consumers that resume one relation without a key at once count each row once', async (t) => {
  const { apply, rows, url } = await rig(t, ['create table app.log (line varchar(10), n integer)'])
  await apply(0, arrival('log', 'INSERT', 1, { line: 'a', n: '1' }, 1))
  await rows(`update outbox.relation set state = 'STOPPED', stopped_by = 'failure', stop_reason = 'test'`)
  for (let k = 0; k < 3; k += 1) {
    await apply(k, ...Array.from({ length: 700 }, (_, n) => arrival('log', 'INSERT', 10 + k * 1000 + n,
      { line: n % 50 === 3 ? TOO_LONG : `l${n % 5}`, n: String(n) }, 10 + k * 1000 + n)))
  }
  const consumers = [ownParts(t, url), ownParts(t, url)]
  const [relation] = await consumers[0]!.slot.run(stoppedRelations)
  await Promise.allSettled(consumers.map((parts) => resumeRelation(parts, relation!, AbortSignal.timeout(60_000))))
  await Promise.all(consumers.map(async (parts) => {
    const [still] = await parts.slot.run(stoppedRelations)
    if (still !== undefined) await resumeRelation(parts, still, AbortSignal.timeout(60_000))
  }))
  t.deepEqual(await rows('select count(*)::int as n from app.log'), [{ n: 1 + 3 * (700 - 14) }])
})

test('I7 a row moves away from a text key that came with blanks at its end', async (t) => {
  const { apply, rows } = await rig(t, ['create table app.pair (code varchar(10) primary key, label text)', 'create table app.bare (code text primary key)'])
  for (const table of ['pair', 'bare']) {
    const image = (code: string): Record<string, string> => (table === 'pair' ? { code, label: 'x' } : { code })
    const moved: Record<string, [string, string]> = table === 'pair' ? { code: ['B   ', 'C   '], label: ['x', 'x'] } : { code: ['B   ', 'C   '] }
    await apply(0, arrival(table, 'INSERT', 1, image('B   ')))
    await apply(0, arrival(table, 'UPDATE', 2, moved))
    t.deepEqual(await rows(`select code from app.${table}`), [{ code: 'C' }])
  }
  t.deepEqual(await rows('select reason from inbox.parked'), [])
})
