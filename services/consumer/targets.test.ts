import test from 'ava'
import type { ExecutionContext } from 'ava'
import { arrival, consumerRig } from '../../test/support/arrivals.ts'
import type { Rig, RigOptions } from '../../test/support/arrivals.ts'
import { freshDatabase } from '../../test/support/database.ts'

async function rig(t: ExecutionContext, ddl: string[], options: RigOptions = {}): Promise<Rig> {
  const database = await freshDatabase()
  const made = await consumerRig(database.url, options)
  t.teardown(async () => {
    await made.close()
    await database.drop()
  })
  for (const statement of ['create schema app', ...ddl]) await made.rows(statement)
  return made
}

test('I7 two consumers that see a table for the first time at once lose no column', async (t) => {
  const { apply, rows } = await rig(t, [])
  for (let at = 1; at <= 12; at += 1) {
    const table = `fresh_${at}`
    await Promise.all([apply(0, arrival(table, 'INSERT', 1, { id: '1' })), apply(1, arrival(table, 'INSERT', 2, { id: '2', extra: 'kept' }))])
    t.deepEqual(await rows('select stop_reason from outbox.relation where stop_reason is not null'), [])
    t.deepEqual(await rows(`select id, extra from app.${table} order by id`), [{ id: '1', extra: null }, { id: '2', extra: 'kept' }])
  }
})

test('a key change and a keyless delete touch one row only in a partitioned table', async (t) => {
  const { apply, rows } = await rig(t, [
    'create table app.account (id integer primary key, name text) partition by range (id)',
    'create table app.account_low partition of app.account for values from (0) to (100)',
    'create table app.account_high partition of app.account for values from (100) to (200)',
    'create table app.log (part integer, line text) partition by list (part)',
    'create table app.log_1 partition of app.log for values in (1)', 'create table app.log_2 partition of app.log for values in (2)',
  ])
  await apply(0, arrival('account', 'INSERT', 1, { id: '1', name: 'a' }), arrival('account', 'INSERT', 1, { id: '101', name: 'other' }))
  await apply(0, arrival('account', 'UPDATE', 2, { id: ['1', '2'], name: ['a', 'a'] }))
  t.deepEqual(await rows('select id from app.account order by id'), [{ id: 2 }, { id: 101 }])
  await apply(0, arrival('log', 'INSERT', 1, { part: '1', line: 'x' }), arrival('log', 'INSERT', 1, { part: '2', line: 'y' }))
  await apply(0, arrival('log', 'DELETE', 2, { part: '1', line: 'x' }))
  t.deepEqual(await rows('select part, line from app.log'), [{ part: 2, line: 'y' }])
  t.deepEqual(await rows('select * from inbox.owed'), [])
})

test('json columns hold the document that was sent, through every kind of statement', async (t) => {
  const { apply, rows } = await rig(t, ['create table app.doc (id integer primary key, j json, b jsonb, n text)', 'create table app.bag (j json, b jsonb)'])
  const document = '{"a": 1, "list": [1.10, "x"]}'
  await apply(0, arrival('doc', 'INSERT', 1, { id: '1', j: document, b: document, n: 'x' }))
  await apply(0, arrival('doc', 'UPDATE', 2, { id: ['1', '1'], b: [document, '{"a": 2}'] }))
  await apply(0, arrival('doc', 'UPDATE', 3, { id: ['1', '2'], j: [document, document], b: ['{"a": 2}', '{"a": 3}'], n: ['x', 'y'] }))
  t.deepEqual(await rows('select id, j::text, b::text, n from app.doc'), [{ id: 2, j: document, b: '{"a": 3}', n: 'y' }])
  await apply(0, arrival('bag', 'INSERT', 1, { j: document, b: document }), arrival('bag', 'INSERT', 2, { j: '[]', b: '[]' }))
  await apply(0, arrival('bag', 'DELETE', 3, { j: document, b: document }))
  t.deepEqual(await rows('select j::text, b::text from app.bag'), [{ j: '[]', b: '[]' }])
})

test('I10 a target table that is altered is noticed before the next change', async (t) => {
  const { apply, rows } = await rig(t, ['create table app.rate (id integer primary key, level numeric(10,2), at timestamp(0), note text not null)'])
  await apply(0, arrival('rate', 'INSERT', 1, { id: '1', level: '1.23', at: '2026-01-01 00:00:00', note: 'x' }))
  await rows('alter table app.rate alter column level type numeric(10,4), alter column at type timestamp(6), alter column note drop not null')
  await apply(0, arrival('rate', 'UPDATE', 2, { id: ['1', '1'], level: ['1.23', '1.2345'], at: ['2026-01-01 00:00:00', '2026-01-01 00:00:00.123456'], note: ['x', 'NULL'] }))
  t.deepEqual(await rows('select level, at::text, note from app.rate'), [{ level: '1.2345', at: '2026-01-01 00:00:00.123456', note: null }])
})

test('the part of a key that is sent as a plain value did not change', async (t) => {
  const { apply, rows } = await rig(t, ['create table app.pair (a integer, b integer, n text, primary key (a, b))'])
  await apply(0, arrival('pair', 'INSERT', 1, { a: '1', b: '5', n: 'x' }))
  await apply(0, arrival('pair', 'UPDATE', 2, { a: ['1', '2'], b: '5', n: ['x', 'x'] }))
  t.deepEqual(await rows('select a, b, n from app.pair'), [{ a: 2, b: 5, n: 'x' }])
})

test('an update of a table without a key that does not carry the whole row is parked and doubles nothing', async (t) => {
  const { apply, rows, statuses } = await rig(t, ['create table app.log (line text, level text)'])
  await apply(0, arrival('log', 'INSERT', 1, { line: 'x', level: '1' }, 1))
  await apply(0, arrival('log', 'UPDATE', 2, { line: ['x', 'y'] }, 2))
  t.deepEqual(await rows('select line, level from app.log'), [{ line: 'x', level: '1' }])
  t.deepEqual(await statuses(), { 1: 'APPLIED', 2: 'PARKED' })
})

test('I7 a text that says unsupportedtype on both sides of an update was not read, and erases nothing', async (t) => {
  const { apply, rows } = await rig(t, ['create table app.account (id integer primary key, name text, body text)'])
  await apply(0, arrival('account', 'INSERT', 1, { id: '1', name: 'a', body: 'a large text' }))
  await apply(0, arrival('account', 'UPDATE', 2, { id: ['1', '1'], name: ['a', 'b'], body: ['unsupportedtype', 'unsupportedtype'] }))
  t.deepEqual(await rows('select name, body from app.account'), [{ name: 'b', body: 'a large text' }])
})

test('keys are one where the target says they are one, and two where it says two', async (t) => {
  const { apply, rows } = await rig(t, [
    'create domain app.amount as numeric', 'create domain app.price as app.amount',
    'create table app.by_price (k app.price primary key, n text)', 'create table app.by_float (k float8 primary key, n text)',
    'create table app.by_interval (k interval primary key, n text)', 'create table app.by_text (k varchar(9) primary key, n text)',
  ], { source: 'POSTGRESQL' })
  for (const [table, one, same] of [['by_price', '10', '10.0'], ['by_float', '0', '-0'], ['by_interval', '24 hours', '1 day']] as const) {
    await apply(0, arrival(table, 'INSERT', 2, { k: one, n: 'newer' }))
    await apply(0, arrival(table, 'INSERT', 1, { k: same, n: 'older' }))
    t.deepEqual(await rows(`select n from app.${table}`), [{ n: 'newer' }], table)
  }
  await apply(0, arrival('by_text', 'INSERT', 2, { k: 'a', n: 'one' }), arrival('by_text', 'INSERT', 1, { k: 'a ', n: 'another' }))
  t.deepEqual(await rows('select n from app.by_text order by n'), [{ n: 'another' }, { n: 'one' }])
})

test('generated and identity columns, keys with included columns, quoted names and defaults are taken as they are', async (t) => {
  const { apply, rows } = await rig(t, [`create table app."Odd ""one""" (
    "Id" integer, "na me" text, number integer generated always as identity, twice text generated always as ("na me" || "na me") stored,
    made timestamp not null default '2000-01-01', primary key ("Id") include ("na me"))`])
  const table = 'Odd "one"'
  await apply(0, arrival(table, 'INSERT', 1, { Id: '1', 'na me': 'a', number: '7', twice: 'aa' }))
  await apply(0, arrival(table, 'UPDATE', 2, { Id: ['1', '1'], 'na me': ['a', 'b'], number: ['7', '7'], twice: ['aa', 'bb'] }))
  t.deepEqual(await rows('select "Id", "na me", number, twice, made::text from app."Odd ""one"""'),
    [{ Id: 1, 'na me': 'b', number: 7, twice: 'bb', made: '2000-01-01 00:00:00' }])
})
