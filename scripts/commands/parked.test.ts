import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'

import { arrival, type Rig } from '../../test/support/arrivals.ts'
import { EMPTY_FOLDER } from '../../test/support/cli.ts'
import { freshDatabase } from '../../test/support/database.ts'
import { outboxConnection, writeEvents } from '../../test/support/events.ts'
import { ACCOUNT, cliOn, copyParked, operated, refusedAndBehind } from '../../test/support/operated.ts'
import { until } from '../../test/support/until.ts'
import { openRehearsal } from './dry-run.ts'

/** Everything a dry run could leave behind. */
async function allOf({ rows }: Rig): Promise<unknown> {
  const tables = ['app.account', 'inbox.applied', 'inbox.parked', 'inbox.row_version', 'inbox.statement', 'inbox.shift', 'outbox.event', 'outbox.relation', 'auditlog.action']
  return Promise.all(tables.map(async (table) => [table, await rows(`select to_jsonb(t)::text as row from ${table} t order by 1`)]))
}

function lines(out: string): Record<string, unknown>[] {
  return out.trim().split('\n').filter((line) => line !== '').map((line) => JSON.parse(line) as Record<string, unknown>)
}

test.serial('what is parked is listed with its reason, counted, filtered and exported as it came', async (t) => {
  const rig = await operated(t, ACCOUNT)
  await refusedAndBehind(rig)
  const listed = await rig.cli('parked', 'list')
  t.is(listed.code, 0, listed.err)
  t.regex(listed.out, /1:1 +app\.account +deploy +RETRYING +REFUSED +22001/)
  t.regex(listed.out, /1:2 +app\.account +deploy +PARKED +BEHIND/)
  t.regex(listed.out, /\n {2}count +table.*\n {2}1 +app\.account/)
  t.deepEqual(lines((await rig.cli('parked', 'list', '--json', '--sqlstate', '22001')).out).map((entry) => entry['seq_id']), ['1'])
  for (const [args, ids] of [
    [['--table', 'app.account', '--reason', 'behind'], ['2']], [['--status', 'failed'], []], [['--since', '1h'], ['1', '2']], [['--before', '1h'], []],
    [['--limit', '1'], ['1']], [['--table', 'app.other'], []], [['--side', 'publish'], []],
  ] as const) {
    t.deepEqual(lines((await rig.cli('parked', 'list', '--json', ...args)).out).map((entry) => entry['seq_id']), [...ids], args.join(' '))
  }
  const file = join(EMPTY_FOLDER, 'all.ndjson')
  t.is((await rig.cli('parked', 'export', '--out', file)).code, 0)
  const exported = lines(readFileSync(file, 'utf8'))
  t.deepEqual(exported.map((entry) => entry['payload']), (await rig.rows('select payload from inbox.parked order by seq_id')).map((row) => row['payload']))
  t.deepEqual(lines((await rig.cli('parked', 'export', '--out', '-')).out), exported)
})

test.serial('show tells the record, its row, what waits behind it and what was done', async (t) => {
  const rig = await operated(t, ACCOUNT)
  await rig.apply(0, arrival('account', 'INSERT', 5, { id: '1', name: 'here', n: '0' }, 3))
  await refusedAndBehind(rig)
  await rig.cli('parked', 'retry', '1', '--as', 'anna')
  const shown = await rig.cli('parked', 'show', '1:1', '--json')
  t.is(shown.code, 0, shown.err)
  const { target_row: row, behind, actions, sqlstate } = JSON.parse(shown.out) as { target_row: object; behind: object; actions: Record<string, string>[]; sqlstate: string }
  t.deepEqual(row, { id: '1', name: 'here', n: '0' })
  t.like(behind, { count: '1', first: { 0: { seq_id: '2', reason: 'BEHIND' } } })
  t.is(sqlstate, '22001')
  t.is(actions.length, 1)
  t.regex(String(actions[0]?.['actor']), / as anna$/)
  t.like(actions[0], { command: 'retry', outcome: 'still REFUSED 22001, RETRYING' })
  t.regex((await rig.cli('parked', 'show', '1')).out, /waiting behind it: 1\n[^]*payload\n {2}\{"SEQ_ID":"1"/)
  const missing = await rig.cli('parked', 'show', '77')
  t.is(missing.code, 1)
  t.regex(missing.err, /^Error: no change 77 is parked\nTry: /)
})

test.serial('a retry that is refused again uses no attempt and ends with 3; after the target is mended it heals, and what waited follows', async (t) => {
  const rig = await operated(t, ACCOUNT)
  await refusedAndBehind(rig)
  const again = await rig.cli('parked', 'retry', '1')
  t.is(again.code, 3)
  t.regex(again.out, /^1:1 {2}still REFUSED 22001, RETRYING: .*\n1 tried, 0 applied, 1 still set aside/)
  t.deepEqual(await rig.rows('select attempts from inbox.parked where seq_id = 1'), [{ attempts: 0 }])
  await rig.rows('alter table app.account alter column name type varchar(40)')
  const healed = await rig.cli('parked', 'retry', '1')
  t.is(healed.code, 0, healed.err)
  t.regex(healed.out, /^1:1 {2}APPLIED\n1 tried, 1 applied; and 1 that waited behind them\n/)
  t.deepEqual(await rig.rows('select * from app.account'), [{ id: 1, name: 'too long', n: 2 }])
  t.deepEqual(await rig.statuses(), { 1: 'APPLIED', 2: 'APPLIED' })
  t.deepEqual(await rig.rows('select parked from inbox.row_version'), [{ parked: false }])
  const unnamed = await rig.cli('parked', 'retry')
  t.regex(unnamed.err, /^Error: neither a change nor a filter is named\nTry: .*--all/)
  t.is(unnamed.code, 1)
})

test.serial('an edited value is applied, and the record as it came is kept in the audit', async (t) => {
  const rig = await operated(t, ACCOUNT)
  await refusedAndBehind(rig)
  const edited = await rig.cli('parked', 'edit', '1', '--set', 'name=short', '--set-null', 'n', '--note', 'ticket 12', '--retry')
  t.is(edited.code, 0, edited.err)
  t.deepEqual(await rig.rows('select * from app.account'), [{ id: 1, name: 'short', n: 2 }])
  const actions = await rig.rows(`select command, origin, seq_id, relation, before, after, note, outcome from auditlog.action order by id`)
  t.like(actions[0], { command: 'edit', origin: 1, seq_id: '1', relation: 'app.account', note: 'ticket 12' })
  t.regex(String(actions[0]?.['before']), /^\{"SEQ_ID":"1".*"name":"too long"/)
  t.regex(String(actions[0]?.['after']), /^\{"SEQ_ID":"1".*"RECEIVED_AT".*"name":"short","n":null/)
  t.like(actions[1], { command: 'retry', outcome: 'APPLIED' })
})

test.serial('an edit is refused where it is no change, of another table or of another row, and nothing is changed', async (t) => {
  const rig = await operated(t, ACCOUNT)
  await refusedAndBehind(rig)
  const before = await allOf(rig)
  const file = join(EMPTY_FOLDER, 'edit.json')
  const change = { TIME: '2026-01-01T00:00:00.1Z', SCHEMANAME: 'app', TABLENAME: 'account', OPERATION: 'INSERT', DATA: { id: '1', name: 'ok', n: '1' } }
  for (const [text, why] of [
    ['{"TIME":', /truncated/], [JSON.stringify({ ...change, TABLENAME: 'other' }), /app\.other/], [JSON.stringify({ ...change, DATA: { ...change.DATA, id: '2' } }), /another row/],
  ] as const) {
    writeFileSync(file, text)
    const { code, err } = await rig.cli('parked', 'edit', '1', '--file', file)
    t.is(code, 1)
    t.regex(err, why)
    t.regex(err, /Try: mend it/)
  }
  t.is((await rig.cli('parked', 'edit', '1')).code, 1)
  t.is((await rig.cli('parked', 'edit', '1', '--set', 'nothing')).code, 2)
  t.deepEqual(await allOf(rig), before)
  writeFileSync(file, JSON.stringify(change))
  t.is((await rig.cli('parked', 'edit', '1', '--file', file)).code, 0)
  const [row] = await rig.rows('select payload from inbox.parked where seq_id = 1')
  t.regex(String(row?.['payload']), /^\{"SEQ_ID":"1","TOPICNAME":"test","SOURCE":"INFORMIX","RECEIVED_AT":"[^"]*","TIME":.*"name":"ok"/)
})

test.serial('a dry run shows the difference of the row and leaves nothing changed', async (t) => {
  const rig = await operated(t, ACCOUNT)
  await rig.apply(0, arrival('account', 'INSERT', 5, { id: '1', name: 'here', n: '0' }, 3))
  await refusedAndBehind(rig)
  await rig.apply(1, arrival('account', 'INSERT', 6, { id: 'x', name: 'a' }, 4), arrival('account', 'UPDATE', 7, { n: ['1', '2'] }, 5))
  const still = await rig.cli('parked', 'retry', '1', '--dry-run')
  t.is(still.code, 3)
  t.regex(still.out, /^1:1 {2}still REFUSED 22001/)
  await rig.rows('alter table app.account alter column name type varchar(40)')
  const before = await allOf(rig)
  const { code, out, err } = await rig.cli('parked', 'retry', '--all', '--dry-run')
  t.is(code, 3, err)
  t.regex(out, /1:1 {2}APPLIED \(dry run\)\n {2}column +before +after\n {2}name +here +too long\n {2}n +0 +1\n1:2 {2}APPLIED \(dry run\)\n {2}column +before +after\n {2}n +1 +2\n/)
  t.regex(out, /1:4 {2}still REFUSED 22P02.*\n {2}the row cannot be told/)
  t.regex(out, /1:5 {2}still NO_KEY/)
  t.deepEqual(await allOf(rig), before)
  t.deepEqual(lines((await rig.cli('parked', 'retry', '1', '--dry-run', '--json')).out)[0]?.['difference'],
    [{ column: 'name', before: 'here', after: 'too long' }, { column: 'n', before: '0', after: '1' }])
})

test.serial('a dry run of a table that is not there creates none', async (t) => {
  const rig = await operated(t, ACCOUNT)
  await refusedAndBehind(rig)
  await rig.rows('alter table app.account rename to hidden')
  const before = await rig.rows('select * from outbox.relation')
  const { code, out } = await rig.cli('parked', 'retry', '1', '--dry-run')
  t.is(code, 3)
  t.regex(out, /1:1 {2}not tried: TARGET_MISSING/)
  t.deepEqual(await rig.rows(`select to_regclass('app.account') as it`), [{ it: null }])
  t.deepEqual(await rig.rows('select * from outbox.relation'), before)
})

test.serial('a skipped change is given up, what waits behind it is tried again, and when it is delivered again it stays so', async (t) => {
  const rig = await operated(t, ACCOUNT)
  await refusedAndBehind(rig)
  t.is((await rig.cli('parked', 'skip', '1')).code, 2, 'a note is asked for')
  const { code, out, err } = await rig.cli('parked', 'skip', '1', '--note', 'never used')
  t.is(code, 0, err)
  t.is(out, '1 skipped\n')
  t.deepEqual(await rig.rows('select reason, retry_at <= now() as due from inbox.parked order by seq_id'), [{ reason: 'SKIPPED', due: null }, { reason: 'BEHIND', due: true }])
  t.like((await rig.rows('select status, failure from inbox.applied where seq_id = 1'))[0], { status: 'SKIPPED' })
  t.like((await rig.rows('select command, before, after, note from auditlog.action'))[0], { command: 'skip', before: 'RETRYING', after: 'SKIPPED', note: 'never used' })
  await rig.rows('alter table app.account alter column name type varchar(40)')
  await rig.apply(1, arrival('account', 'INSERT', 10, { id: '1', name: 'too long', n: '1' }, 1))
  t.deepEqual(await rig.rows('select id from app.account'), [])
  t.is((await rig.cli('parked', 'skip', '1', '--note', 'again')).out, '0 skipped; 1 were skipped before or are parked no more\n')
  t.is((await rig.cli('parked', 'retry', '2')).code, 0)
  t.deepEqual(await rig.rows('select * from app.account'), [{ id: 1, name: null, n: 2 }])
  t.is((await rig.cli('parked', 'list', '--status', 'SKIPPED', '--count')).code, 0)
})

test.serial('what was given up comes back by its number or by --status SKIPPED only: --all and other filters leave it', async (t) => {
  const rig = await operated(t, ACCOUNT)
  await refusedAndBehind(rig)
  await rig.cli('parked', 'skip', '1', '--note', 'never used')
  for (const args of [['--all'], ['--table', 'app.account', '--sqlstate', '22001']]) {
    t.is((await rig.cli('parked', 'retry', ...args)).code, 0, args.join(' '))
    t.is((await rig.statuses())['1'], 'SKIPPED', args.join(' '))
  }
  t.is((await rig.cli('parked', 'retry', '--status', 'skipped')).code, 3)
  t.is((await rig.statuses())['1'], 'RETRYING')
  await rig.cli('parked', 'skip', '1', '--note', 'again')
  await rig.rows('alter table app.account alter column name type varchar(40)')
  t.is((await rig.cli('parked', 'retry', '1')).code, 0)
  t.not((await rig.statuses())['1'], 'SKIPPED')
})

test.serial('a row of which nothing was ever applied has no version, and show says so', async (t) => {
  const rig = await operated(t, ACCOUNT)
  await refusedAndBehind(rig)
  const shown = await rig.cli('parked', 'show', '1')
  t.regex(shown.out, /newest version +never applied\n/)
  t.notRegex(shown.out, /0:0:0|deleted/)
  t.is((JSON.parse((await rig.cli('parked', 'show', '1', '--json')).out) as { row_version: unknown }).row_version, null)
})

test.serial('ten thousand changes that wait behind one are drained in the order of their versions', async (t) => {
  const rig = await operated(t, ACCOUNT, 'create table app.history (id bigint generated always as identity, n integer)',
    `create function app.note() returns trigger language plpgsql as $$ begin insert into app.history (n) values (new.n); return null; end $$`,
    'create trigger note after insert or update on app.account for each row execute function app.note()')
  await rig.apply(0, arrival('account', 'INSERT', 1, { id: '1', name: 'too long', n: '1' }, 1))
  await rig.apply(0, arrival('account', 'UPDATE', 2, { id: ['1', '1'], n: ['0', '2'] }, 2))
  await copyParked(rig.url, 2, 3, 10_001)
  await rig.rows('alter table app.account alter column name type varchar(40)')
  const { code, out, err } = await cliOn(rig.url, { NODE_OPTIONS: '--max-old-space-size=64' })('parked', 'retry', '1')
  t.is(code, 0, err)
  t.regex(out, /1 tried, 1 applied; and 10000 that waited behind them/)
  t.deepEqual(await rig.rows('select name, n from app.account'), [{ name: 'too long', n: 10_001 }])
  t.deepEqual(await rig.rows('select count(*)::int as n, bool_and(n = id) as ordered from app.history'), [{ n: 10_001, ordered: true }])
  t.deepEqual(await rig.rows('select count(*)::int as n from inbox.parked'), [{ n: 0 }])
})

test.serial('a hundred thousand parked changes are listed and exported in little memory', async (t) => {
  const rig = await operated(t, ACCOUNT)
  await rig.apply(0, arrival('account', 'INSERT', 1, { id: '1', name: 'too long', n: '1' }, 1))
  await rig.apply(0, arrival('account', 'UPDATE', 2, { id: ['1', '1'], n: ['0', '2'] }, 2))
  // 100 MB of messages and as much of payloads go through 64 MB of heap.
  await copyParked(rig.url, 2, 3, 100_001, 1_000)
  const cli = cliOn(rig.url, { NODE_OPTIONS: '--max-old-space-size=64' })
  const file = join(EMPTY_FOLDER, 'many.ndjson')
  const exported = await cli('parked', 'export', '--out', file)
  t.is(exported.code, 0, exported.err)
  t.regex(exported.err, /^100001 changes are written|\n100001 changes are written/)
  t.is(readFileSync(file, 'utf8').split('\n').length, 100_002)
  const listed = await cli('parked', 'list', '--json')
  t.is(listed.code, 0, listed.err)
  t.is(listed.out.split('\n').length, 100_002)
  const few = await cli('parked', 'list', '--reason', 'BEHIND')
  t.is(few.out.split('\n').filter((line) => line.includes(' deploy ')).length, 101)
  t.regex(few.out, /\n {2}100000 +app\.account +deploy +PARKED +BEHIND/)
})

test.serial('a dry run whose connection is lost and made again cannot write outside of its transaction', async (t) => {
  const rig = await operated(t, ACCOUNT)
  const slot = openRehearsal(rig.url)
  t.teardown(() => slot.close())
  const write = () => slot.run((sql) => sql`insert into app.account (id) values (1)`)
  await slot.run((sql) => sql.unsafe('begin read write'))
  await write()
  const [mine] = await slot.run((sql) => sql<{ pid: number }[]>`select pg_backend_pid() as pid`)
  await rig.rows(`select pg_terminate_backend(${mine!.pid})`)
  await until(() => slot.run((sql) => sql<{ pid: number }[]>`select pg_backend_pid() as pid`).then(([row]) => row?.pid !== mine!.pid))
  await t.throwsAsync(write, { message: /read-only transaction/ })
  t.deepEqual(await rig.rows('select id from app.account'), [])
})

test.serial('what the broker refused is listed beside what the target did, and a retry gives it to the relay again', async (t) => {
  const rig = await operated(t, ACCOUNT)
  await refusedAndBehind(rig)
  const sql = outboxConnection(rig.url)
  t.teardown(() => sql.end({ timeout: 1 }))
  await sql`select setval('outbox.position', 100)`
  const [seqId] = await writeEvents(sql, [{ key: '1' }])
  await sql`delete from outbox.event`
  await sql`insert into auditlog.publish_log (position, seq_id, attempt, producer_publish_status, producer_failure_log) values (${seqId!}, ${seqId!}, 3, 'FAILED', 'TOO_LARGE: 9 MB')`
  t.deepEqual(lines((await rig.cli('parked', 'list', '--json')).out).map((entry) => [entry['side'], entry['seq_id'], entry['reason']]),
    [['deploy', '1', 'REFUSED'], ['deploy', '2', 'BEHIND'], ['publish', seqId, 'TOO_LARGE']])
  t.deepEqual(lines((await rig.cli('parked', 'list', '--json', '--side', 'publish')).out).map((entry) => entry['seq_id']), [seqId])
  t.regex((await rig.cli('parked', 'show', seqId!)).out, /TOO_LARGE: 9 MB[^]*Try: deltapost event show 101; deltapost parked retry 1:101 publishes it again/)
  const retried = await rig.cli('parked', 'retry', seqId!, '--as', 'anna')
  t.is(retried.code, 0, retried.err)
  t.is(retried.out, `1:${seqId}  to be published again\n1 to be published again, by the relay\n`)
  t.deepEqual(await rig.rows('select seq_id, kind, attempt from outbox.event'), [{ seq_id: seqId, kind: 'change', attempt: 0 }])
  t.like((await rig.rows('select command, origin, relation, outcome from auditlog.action'))[0], { command: 'publish', origin: 1, relation: 'app.test', outcome: 'to be published again' })
  t.is((await rig.cli('parked', 'skip', seqId!, '--note', 'x')).code, 1, 'only what is parked at the target can be skipped')
})

test.serial('with two databases the commands work where the changes are applied', async (t) => {
  const rig = await operated(t, ACCOUNT)
  await refusedAndBehind(rig)
  const first = await freshDatabase()
  t.teardown(first.drop)
  const cli = cliOn(first.url, { TARGET_DATABASE_URL: rig.url })
  t.deepEqual(lines((await cli('parked', 'list', '--json')).out).map((entry) => entry['seq_id']), ['1', '2'])
  t.is((await cli('parked', 'edit', '1:1', '--set', 'name=short', '--retry')).code, 0)
  t.deepEqual(await rig.rows('select * from app.account'), [{ id: 1, name: 'short', n: 2 }])
  t.is((await cli('stop', 'app.account', '--reason', 'why')).code, 0)
  t.is((await cli('resume', 'app.account')).code, 0)
})

test.serial('each command helps, with an example', async (t) => {
  const rig = cliOn('postgres://not-used')
  for (const args of [['parked', 'list'], ['parked', 'show'], ['parked', 'edit'], ['parked', 'retry'], ['parked', 'skip'], ['parked', 'export'], ['resume'], ['stop'], ['schema', 'policy']]) {
    const { code, out } = await rig(...args, '--help')
    t.is(code, 0, args.join(' '))
    t.regex(out, /Examples?:\n {2}deltapost \S/, args.join(' '))
  }
  for (const args of [['parked', 'show', 'x'], ['parked', 'list', '--since', 'noon'], ['resume', 'nodot'], ['stop', 'app.account'], ['parked', 'list', '--side', 'left']]) {
    t.is((await rig(...args)).code, 2, args.join(' '))
  }
})
