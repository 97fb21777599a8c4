import test from 'ava'
import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'

import { connect, emptyDatabase, freshDatabase } from '../../test/support/database.ts'
import { migrate, pairDatabases } from './migrate.ts'

const quiet = { log: (): void => {} }
const root = resolve(import.meta.dirname, '..', '..')

/** Two migrations of which the first is slow, so that a second run comes while it is open. */
function slowSet(): string {
  const folder = mkdtempSync(join(tmpdir(), 'deltapost-migrations-'))
  process.once('exit', () => rmSync(folder, { recursive: true, force: true }))
  writeFileSync(join(folder, '001_one.sql'), '-- Up Migration\ncreate table one (); select pg_sleep(0.3);\n-- Down Migration\ndrop table one;\n')
  writeFileSync(
    join(folder, '002_two.sql'),
    `-- Up Migration\ncreate function two() returns int language sql as $$ select 2; $$;\n-- Down Migration\ndrop function two;\n`,
  )
  return folder
}

async function tables(url: string): Promise<string[]> {
  const sql = connect(url)
  const rows = await sql<{ name: string }[]>`
    select schemaname || '.' || tablename as name from pg_tables
    where schemaname not in ('pg_catalog', 'information_schema') and tablename <> 'pgmigrations' order by 1`
  await sql.end({ timeout: 5 })
  return rows.map(({ name }) => name)
}

test('two migrations at once both succeed, and each step runs once', async (t) => {
  const { url, drop } = await emptyDatabase()
  t.teardown(drop)
  const folder = slowSet()
  const runs = await Promise.all([migrate(url, { folder, ...quiet }), migrate(url, { folder, ...quiet })])
  t.deepEqual(runs.flat(), ['001_one', '002_two'])
})

test('down takes back the last step, or as many as asked', async (t) => {
  const { url, drop } = await emptyDatabase()
  t.teardown(drop)
  const folder = slowSet()
  await migrate(url, { folder, ...quiet })
  t.deepEqual(await migrate(url, { folder, direction: 'down', ...quiet }), ['002_two'])
  t.deepEqual(await migrate(url, { folder, direction: 'down', count: 9, ...quiet }), ['001_one'])
  t.deepEqual(await tables(url), [])
})

test('our own set goes up, down to nothing, and up again to the same tables', async (t) => {
  const { url, drop } = await freshDatabase()
  t.teardown(drop)
  const before = await tables(url)
  t.true(before.length > 0)
  await migrate(url, { direction: 'down', count: Infinity, ...quiet })
  t.deepEqual(await tables(url), [])
  await migrate(url, quiet)
  t.deepEqual(await tables(url), before)
})

test('the plain command node-pg-migrate up and ours know what the other did', async (t) => {
  const command = (url: string): { status: number | null; stdout: string } =>
    spawnSync(process.execPath, [join(root, 'node_modules', 'node-pg-migrate', 'bin', 'node-pg-migrate.js'), 'up', '--verbose=false'], {
      cwd: root,
      encoding: 'utf8',
      env: { ...process.env, DATABASE_URL: url },
    })
  const theirs = await emptyDatabase()
  const ours = await freshDatabase()
  t.teardown(async () => Promise.all([theirs.drop(), ours.drop()]))
  t.is(command(theirs.url).status, 0)
  t.deepEqual(await migrate(theirs.url, quiet), [])
  t.deepEqual(await tables(theirs.url), await tables(ours.url))
  t.regex(command(ours.url).stdout, /No migrations to run/)
})

test('a database of an earlier build is told from others, in one error that names the migration and how to start anew', async (t) => {
  const { url, drop } = await emptyDatabase()
  t.teardown(drop)
  const folder = slowSet()
  await migrate(url, { folder, ...quiet })
  writeFileSync(join(folder, '001_one.sql'), '-- Up Migration\ncreate table one (n integer);\n')
  writeFileSync(join(folder, '003_three.sql'), '-- Up Migration\ncreate index three on one (n);\n-- a long text\n')
  const said: string[] = []
  const error = await t.throwsAsync(migrate(url, { folder, log: (line) => said.push(line) }), { code: 'EARLIER_BUILD' })
  t.regex(error.message, /003_three.*42703: column "n" does not exist/)
  t.regex((error as { remedy?: string }).remedy ?? '', /npm run up -- --fresh/)
  t.notRegex([...said, error.message].join('\n'), /create index|a long text/)
  writeFileSync(join(folder, '001_p.sql'), '-- Up Migration\nselect 1;\n')
  await t.throwsAsync(migrate(url, { folder, ...quiet }), { code: 'EARLIER_BUILD', message: /001_p/ })
})

test('a migration that fails for another reason is named with its error, and without its text', async (t) => {
  const { url, drop } = await emptyDatabase()
  t.teardown(drop)
  const folder = slowSet()
  writeFileSync(join(folder, '002_two.sql'), `-- Up Migration\nselect 1;\nselect 'text' / 0;\n`)
  const said: string[] = []
  const error = await t.throwsAsync(migrate(url, { folder, log: (line) => said.push(line) }), { code: 'MIGRATION_FAILED', message: /002_two.*[0-9A-Z]{5}: / })
  t.notRegex([...said, error.message].join('\n'), /select/)
  t.deepEqual(await tables(url), [], 'nothing of it stays')
})

test('a database whose application uses node-pg-migrate too keeps its own list untouched', async (t) => {
  const { url, drop } = await emptyDatabase()
  t.teardown(drop)
  const sql = connect(url)
  await sql`create table public.pgmigrations (id serial primary key, name text not null, run_on timestamp not null)`
  await sql`insert into public.pgmigrations (name, run_on) values ('1700000000000_their-first', now())`
  const ran = await migrate(url, quiet)
  t.true(ran.length > 0)
  t.is((await sql`select from public.pgmigrations`).length, 1)
  t.deepEqual(await migrate(url, quiet), [])
  await sql.end({ timeout: 5 })
})

test('the second of two databases gets an origin of its own and keeps receipts, once, also when two migrations do it at once', async (t) => {
  const [first, target] = [await freshDatabase(), await freshDatabase()]
  t.teardown(async () => Promise.all([first.drop(), target.drop()]))
  const said: string[] = []
  const pairing = () => pairDatabases(first.url, target.url, (line) => said.push(line))
  await Promise.all([pairing(), pairing()])
  const sql = connect(target.url)
  t.deepEqual([...await sql`select origin, inbox.keeps_receipts() as keeps from outbox.database`], [{ origin: 2, keeps: true }])
  await sql.end({ timeout: 5 })
  const before = said.length
  await pairing()
  t.is(said.length, before, 'nothing was left to do')
})

test('the second of two databases knows the keys that the first has, but for tables that are there', async (t) => {
  const [first, target] = [await freshDatabase(), await freshDatabase()]
  t.teardown(async () => Promise.all([first.drop(), target.drop()]))
  const [here, there] = [connect(first.url), connect(target.url)]
  for (const [table, key] of [['country', ['code']], ['account', ['id']], ['note', null]] as const) {
    await here`select outbox.meet('INFORMIX', 'app', ${table})`
    await here`update outbox.relation set key_columns = ${key === null ? null : [...key]}::text[] where source_table = ${table}`
  }
  await there.unsafe('create schema app; create table app.account (number integer primary key)')
  await pairDatabases(first.url, target.url, quiet.log)
  t.deepEqual([...await there`select source, source_table, key_columns, known_from from outbox.relation`],
    [{ source: 'INFORMIX', source_table: 'country', key_columns: ['code'], known_from: 'registered' }])
  await there`update outbox.relation set key_columns = null`
  await pairDatabases(first.url, target.url, quiet.log)
  t.deepEqual([...await there`select key_columns from outbox.relation`], [{ key_columns: null }], 'a table that was met there is left alone')
  await Promise.all([here.end({ timeout: 5 }), there.end({ timeout: 5 })])
})

test('one database under two addresses has no second', async (t) => {
  const { url, drop } = await freshDatabase()
  t.teardown(drop)
  const other = new URL(url)
  other.searchParams.set('application_name', 'another')
  const said: string[] = []
  await pairDatabases(url, other.href, (line) => said.push(line))
  t.regex(said.join(), /one database/)
  const sql = connect(url)
  t.deepEqual([...await sql`select origin, inbox.keeps_receipts() as keeps from outbox.database`], [{ origin: 1, keeps: false }])
  await sql.end({ timeout: 5 })
})

test('a second database that handed out numbers under the origin of the first is refused, with what to type', async (t) => {
  const [first, target] = [await freshDatabase(), await freshDatabase()]
  t.teardown(async () => Promise.all([first.drop(), target.drop()]))
  const sql = connect(target.url)
  await sql`select nextval('outbox.position')`
  const error = await t.throwsAsync(pairDatabases(first.url, target.url, quiet.log), { code: 'ORIGIN_TAKEN' })
  await sql.unsafe(/: (update .*)$/.exec((error as { remedy?: string }).remedy ?? '')?.[1] ?? '')
  await t.notThrowsAsync(pairDatabases(first.url, target.url, quiet.log))
  await sql.end({ timeout: 5 })
})
