import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { createServer } from 'node:http'
import { type AddressInfo, type Server } from 'node:net'
import { text as readText } from 'node:stream/consumers'
import test, { type ExecutionContext } from 'ava'
import { SMTPServer } from 'smtp-server'

import { deltapost, EMPTY_FOLDER, type Ended, PROGRAM } from '../../test/support/cli.ts'
import { freshDatabase } from '../../test/support/database.ts'
import { outboxConnection, writeEvents } from '../../test/support/events.ts'
import { brokers, freshTopic } from '../../test/support/kafka.ts'
import { until } from '../../test/support/until.ts'

function start(t: ExecutionContext, args: string[], environment: Record<string, string>): ChildProcess {
  const child = spawn(process.execPath, [PROGRAM, ...args], { cwd: EMPTY_FOLDER, env: { PATH: process.env['PATH'], ...environment }, stdio: ['ignore', 'pipe', 'pipe'] })
  t.teardown(() => void child.kill('SIGKILL'))
  return child
}

const noticeTest = (environment: Record<string, string>): Promise<Ended> => deltapost(['notice', 'test'], environment)

async function listening(t: ExecutionContext, server: Server): Promise<string> {
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => void server.close())
  return `127.0.0.1:${(server.address() as AddressInfo).port}` // a TCP server's is always one
}

test('notice test tells all channels and says what happened; one that fails is the exit code', async (t) => {
  const bodies: string[] = []
  const address = await listening(t, createServer((request, response) => {
    void readText(request).then((body) => {
      bodies.push(body)
      response.writeHead(request.url === '/hush' ? 200 : 404).end()
    })
  }))
  const mails: string[] = []
  const mail = new SMTPServer({
    logger: false, disabledCommands: ['STARTTLS', 'AUTH'],
    onData: (stream, _, done) => void readText(stream).then((raw) => {
      mails.push(raw)
      done()
    }),
  })
  const mailAddress = await listening(t, mail.server)
  const environment = { NOTICE_WEBHOOK_URL: `http://${address}/hush`, NOTICE_SMTP_URL: `smtp://${mailAddress}`, ERROR_RECIPIENTS: '["ops@example.com"]' }
  const told = await noticeTest(environment)
  t.is(told.code, 0, told.err)
  t.is(told.out, `webhook http://${address}: told\nmail ops@example.com by ${mailAddress}: told\n`)
  t.regex(bodies[0] ?? '', /a test notice, nothing failed/)
  t.regex(mails[0] ?? '', /^Subject: Deltapost: a test notice, nothing failed\r$/m)

  const wrong = await noticeTest({ ...environment, NOTICE_WEBHOOK_URL: `http://${address}/hush/other` })
  t.is(wrong.code, 1)
  t.is(wrong.out, `webhook http://${address}: not told\nmail ops@example.com by ${mailAddress}: told\n`)
  t.is(wrong.err, `Error: http://${address} answered 404\nTry: correct NOTICE_WEBHOOK_URL, then deltapost notice test\n`)
})

test('notice test without a channel, or with mail for nobody, says what to set', async (t) => {
  const off = await noticeTest({})
  t.is(off.code, 1)
  t.regex(off.err, /^Error: failures are told to nobody.*\nTry: set NOTICE_WEBHOOK_URL or NOTICE_SMTP_URL/)
  const nobody = await noticeTest({ NOTICE_SMTP_URL: 'smtp://127.0.0.1:1', ERROR_RECIPIENTS: '["on-call"]' })
  t.is(nobody.code, 1)
  t.regex(nobody.err, /ERROR_RECIPIENTS has no address of mail\nTry: ERROR_RECIPIENTS=/)
})

test('a relay whose webhook hangs publishes, and ends with 0 at SIGTERM', async (t) => {
  const [database, { topic, drop }] = await Promise.all([freshDatabase(), freshTopic('notice', 3)])
  const sql = outboxConnection(database.url)
  t.teardown(async () => {
    await sql.end({ timeout: 1 })
    await Promise.all([database.drop(), drop()])
  })
  let requests = 0
  const hanging = createServer(() => {
    requests += 1
  })
  t.teardown(() => hanging.closeAllConnections())
  const relay = start(t, ['serve', 'relay'], {
    DATABASE_URL: database.url, KAFKA_BROKERS: brokers().join(), TOPIC: topic, TOPIC_PARTITIONS: '3', SHUTDOWN_TIMEOUT: '5s',
    NOTICE_WEBHOOK_URL: `http://${await listening(t, hanging)}/`, NOTICE_EVERY: '1s',
  })
  let lines = ''
  relay.stdout!.setEncoding('utf8').on('data', (text: string) => (lines += text))
  const ended = once(relay, 'close')
  await until(async () => (await sql`select from outbox.notice_channel`).length === 1, { within: 30_000 })
  await sql`insert into auditlog.rejected_request (path, headers, body, reason) values ('/events', '{}', 'x', 'json_syntax')`
  await until(() => requests === 1)
  await writeEvents(sql, Array.from({ length: 100 }, (_, key) => ({ topic, key: String(key) })))
  await until(async () => (await sql`select from outbox.event`).length === 0, { within: 20_000 })
  t.is(requests, 1)
  t.notRegex(lines, /notice told|not told/, 'the request still hangs')
  relay.kill('SIGTERM')
  t.deepEqual(await ended, [0, null], lines)
})
