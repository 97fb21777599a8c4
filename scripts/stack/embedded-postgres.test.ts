import test from 'ava'
import { spawn } from 'node:child_process'
import { chmodSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'

import { connect } from '../../test/support/database.ts'
import { until } from '../../test/support/until.ts'
import { serverAccount } from './account.ts'
import { embeddedPostgres, packagedPostgres } from './embedded-postgres.ts'
import { isFree } from './free-port.ts'
import { commandOf } from './process-table.ts'

const packaged = packagedPostgres()
const onPackaged = packaged === undefined ? test.skip : test

function temporary(): string {
  const directory = mkdtempSync(join(tmpdir(), 'deltapost-postgres-'))
  chmodSync(directory, 0o755)
  process.once('exit', () => rmSync(directory, { recursive: true, force: true }))
  return directory
}

function serverPid(directory: string): number {
  return Number(readFileSync(join(directory, 'data', 'postmaster.pid'), 'utf8').split('\n')[0])
}

onPackaged('a killed server comes back on its port with what was committed', async (t) => {
  const server = await embeddedPostgres({ directory: join(temporary(), 'pg') })
  t.teardown(server.stop)
  const before = connect(server.url('postgres'))
  await before`create table kept as select 1 as n`
  await server.kill()
  await before.end({ timeout: 0 })
  t.true(await isFree(server.port))
  await server.start()
  const after = connect(server.url('postgres'))
  t.deepEqual([...(await after`select n from kept`)], [{ n: 1 }])
  await after.end({ timeout: 5 })
})

onPackaged('durability is on', async (t) => {
  const server = await embeddedPostgres({ directory: join(temporary(), 'pg') })
  t.teardown(server.stop)
  const sql = connect(server.url('postgres'))
  const settings = await sql<{ name: string; setting: string }[]>`
    select name, setting from pg_settings where name in ('fsync', 'synchronous_commit', 'full_page_writes') order by name`
  t.deepEqual(
    settings.map(({ setting }) => setting),
    ['on', 'on', 'on'],
  )
  await sql.end({ timeout: 5 })
})

onPackaged('servers end when the process that started them is killed', async (t) => {
  const directory = join(temporary(), 'pg')
  const source = `const { embeddedPostgres } = await import(${JSON.stringify(join(import.meta.dirname, 'embedded-postgres.ts'))})
    await embeddedPostgres({ directory: ${JSON.stringify(directory)} })
    console.log('ready')`
  const parent = spawn(process.execPath, ['--input-type=module', '-e', source], { stdio: ['ignore', 'pipe', 'inherit'] })
  t.teardown(() => parent.kill('SIGKILL'))
  for await (const line of createInterface({ input: parent.stdout })) if (line === 'ready') break
  const pid = serverPid(directory)
  t.truthy(commandOf(pid))
  parent.kill('SIGKILL')
  await until(() => commandOf(pid) === undefined, { within: 20_000 })
  t.pass()
})

onPackaged('a server that an earlier run left behind is ended, and its data are used', async (t) => {
  const directory = join(temporary(), 'pg')
  const first = await embeddedPostgres({ directory })
  const writer = connect(first.url('postgres'))
  await writer`create table kept as select 1 as n`
  await writer.end({ timeout: 5 })
  await first.stop()
  // Started without the guard, as if the guard had been killed together with the run.
  const orphan = spawn(join(packaged ?? '', 'bin', 'postgres'), ['-D', join(directory, 'data'), '-p', String(first.port), '-k', ''], {
    cwd: '/',
    detached: true,
    stdio: 'ignore',
    ...serverAccount(),
  })
  t.teardown(() => orphan.kill('SIGKILL'))
  await until(() => serverPid(directory) === orphan.pid)

  const second = await embeddedPostgres({ directory, port: first.port })
  t.teardown(second.stop)
  t.is(commandOf(orphan.pid ?? 0), undefined)
  const reader = connect(second.url('postgres'))
  t.is((await reader`select n from kept`).length, 1)
  await reader.end({ timeout: 5 })
})

const programs15 = process.env['DELTAPOST_TEST_POSTGRES15_BIN']
const on15 = programs15 === undefined ? test.skip : test

on15('the same code runs a server of PostgreSQL 15 from other programs', async (t) => {
  const server = await embeddedPostgres({ directory: join(temporary(), 'pg'), programs: join(programs15 ?? '', '..') })
  t.teardown(server.stop)
  const sql = connect(server.url('postgres'))
  const [{ version } = { version: '' }] = await sql<{ version: string }[]>`select current_setting('server_version') as version`
  t.regex(version, /^15\./)
  await sql.end({ timeout: 5 })
})
