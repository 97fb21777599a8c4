import { spawn } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'

import { deltapost, EMPTY_FOLDER, PROGRAM } from '../../test/support/cli.ts'
import { connect, freshDatabase } from '../../test/support/database.ts'
import { brokers } from '../../test/support/kafka.ts'
import { readable } from './role-process.ts'

// Nothing listens on port 1.
const NOWHERE = { DATABASE_URL: 'postgres://me:secret@127.0.0.1:1/mine', KAFKA_BROKERS: '127.0.0.1:1' }

test('a wrong word ends with 2, says which it is and where to look', async (t) => {
  const wrong = [['statsu'], ['serve', 'printer'], ['event', 'show', 'four'], ['rejected', 'list', '--limit', 'x'], ['schema', 'key', 'nodot', 'id'], ['status', '--yaml'], []]
  for (const args of wrong) {
    const { code, err } = await deltapost(args)
    t.is(code, 2, args.join(' '))
    t.regex(err, /Try: deltapost --help/)
    t.notRegex(err, /^\s+at /m)
  }
  t.regex((await deltapost(['statsu'])).err, /^Error: unknown command 'statsu'\n\(Did you mean status\?\)/)
})

test('every command helps: --help ends with 0 and shows an example', async (t) => {
  const commands = [
    [], ['up'], ['demo'], ['serve'], ['migrate'], ['status'], ['event'], ['event', 'show'], ['event', 'publish'], ['schema'], ['schema', 'list'], ['schema', 'key'],
    ['schema', 'policy'], ['rejected'], ['rejected', 'list'], ['rejected', 'show'], ['rejected', 'retry'], ['doctor'],
    ['parked'], ['parked', 'list'], ['parked', 'show'], ['parked', 'edit'], ['parked', 'retry'], ['parked', 'skip'], ['parked', 'export'],
    ['resume'], ['stop'], ['notice'], ['notice', 'test'], ['prune'], ['lanes'], ['origin'], ['origin', 'raise'],
  ]
  for (const args of commands) {
    const { code, out, err } = await deltapost([...args, '--help'])
    t.is(code, 0, args.join(' '))
    t.is(err, '')
    t.regex(out, /^Usage: deltapost/)
    const group = ['event', 'schema', 'rejected', 'parked', 'notice', 'origin'].includes(args.at(-1) ?? '') && args.length === 1
    if (!group) t.regex(out, /Examples?:\n {2}\S/, args.join(' '))
  }
})

test('what lacks in the configuration is told all at once, with code 2 and no stack', async (t) => {
  const { code, err } = await deltapost(['serve', 'listener'], { PORT: 'eighty' })
  t.is(code, 2)
  t.regex(err, /^Error: the configuration has 3 faults:\n {2}DATABASE_URL is missing.*\n {2}KAFKA_BROKERS is missing.*\n {2}PORT="eighty".*\nTry: /)
  t.notRegex(err, /^\s+at /m)
  const one = await deltapost(['status'])
  t.is(one.code, 2)
  t.regex(one.err, /the configuration has 1 fault:\n {2}DATABASE_URL is missing/)
})

test('a database that does not answer ends with 4, names its address and not its password', async (t) => {
  for (const args of [['status'], ['migrate'], ['event', 'show', '1'], ['schema', 'list'], ['rejected', 'list']]) {
    const { code, out, err } = await deltapost(args, NOWHERE)
    t.is(code, 4, args.join(' '))
    t.is(out, '')
    t.regex(err, /^Error: no answer from the database mine at 127\.0\.0\.1:1: connect ECONNREFUSED.*\nTry: start that server/)
    t.notRegex(err, /secret|^\s+at /m)
  }
  t.regex((await deltapost(['status'], { ...NOWHERE, LOG_LEVEL: 'debug' })).err, /^\s+at /m, 'LOG_LEVEL=debug shows where')
})

test('doctor ends with 3 when something failed, each fault with its remedy', async (t) => {
  const { code, out } = await deltapost(['doctor'], NOWHERE)
  t.is(code, 3)
  t.regex(out, /FAIL {2}database: no answer.*\n {6}Try: start that server/)
  t.regex(out, /FAIL {2}Kafka: no answer.*\n {6}Try: start the broker/)
  const json = await deltapost(['doctor', '--json'])
  t.is(json.code, 3)
  t.like((JSON.parse(json.out) as { name: string; result: string }[]).find(({ name }) => name === 'configuration'), { result: 'fail' })
})

test('doctor is content with a migrated database and a broker, and status and lists are JSON', async (t) => {
  const database = await freshDatabase()
  t.teardown(database.drop)
  const environment = { DATABASE_URL: database.url, KAFKA_BROKERS: brokers().join() }
  const { code, out } = await deltapost(['doctor'], environment)
  t.is(code, 0, out)
  t.regex(out, /ok {4}schema: complete/)
  t.is((JSON.parse((await deltapost(['status', '--json'], environment)).out) as { origin: number }).origin, 1)
  t.deepEqual(JSON.parse((await deltapost(['schema', 'list', '--json'], environment)).out), [])
  t.deepEqual(JSON.parse((await deltapost(['rejected', 'list', '--json'], environment)).out), [])
  const missing = await deltapost(['event', 'show', '4711'], environment)
  t.is(missing.code, 1)
  t.regex(missing.err, /^Error: no change has the number 4711.*\nTry: /)
})

test('without DATABASE_URL the up of this folder is used, which is said; one that is gone is not', async (t) => {
  const database = await freshDatabase()
  const folder = mkdtempSync(join(tmpdir(), 'cli-'))
  t.teardown(async () => {
    rmSync(folder, { recursive: true, force: true })
    await database.drop()
  })
  mkdirSync(join(folder, '.deltapost'))
  const write = (pid: number): void => writeFileSync(join(folder, '.deltapost', 'stack.json'), JSON.stringify({
    listener: 'http://127.0.0.1:1', database: database.url, target: database.url, kafka: '127.0.0.1:1', pid,
  }))
  write(process.pid)
  const used = await deltapost(['status'], {}, folder)
  t.is(used.code, 0, used.err)
  t.regex(used.err, new RegExp(`the servers are those of npm run up .process ${process.pid}.`))
  // Above the highest process number that Linux gives.
  write(4_194_305)
  t.is((await deltapost(['status'], {}, folder)).code, 2)
})

test('a retry without a listener ends with 4, and the entry waits as before', async (t) => {
  const database = await freshDatabase()
  const sql = connect(database.url)
  t.teardown(async () => {
    await sql.end({ timeout: 5 })
    await database.drop()
  })
  await sql`insert into auditlog.rejected_request (path, headers, body, reason) values ('/events', '{}', 'x', 'json_syntax')`
  const environment = { ...NOWHERE, DATABASE_URL: database.url }
  const { code, err } = await deltapost(['rejected', 'retry', '1', '--listener', 'http://127.0.0.1:1'], environment)
  t.is(code, 4)
  t.regex(err, /^Error: no answer from the listener at http:\/\/127\.0\.0\.1:1\nTry: deltapost serve listener/)
  t.like((JSON.parse((await deltapost(['rejected', 'list', '--json'], environment)).out) as object[])[0], { id: '1', state: 'WAITING' })
  t.is((await deltapost(['rejected', 'show', '1', '--raw'], environment)).out, 'x')
  t.is((await deltapost(['rejected', 'retry', '2'], environment)).code, 1)
})

test('a reader that has seen enough ends a command without an error', async (t) => {
  const child = spawn('/bin/sh', ['-c', `{ "$0" "$1" --help; } | true`, process.execPath, PROGRAM], { cwd: EMPTY_FOLDER, env: { PATH: process.env['PATH'] }, stdio: ['ignore', 'pipe', 'pipe'] })
  let err = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => (err += text))
  await new Promise((resolve) => child.once('close', resolve))
  t.is(err, '')
})

test('a log line is readable, and a line that is no log line stays as it is', (t) => {
  const line = '{"level":40,"time":"2026-11-21T08:29:05.028Z","role":"relay","term":3,"why":"late","msg":"lane lost"}'
  t.is(readable(line), '08:29:05.028 WARN  lane lost term=3 why=late')
  t.is(readable('Error: nothing'), 'Error: nothing')
})
