import { once } from 'node:events'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { createServer as createTcpServer, type AddressInfo, type Server, type Socket } from 'node:net'
import { text as readText } from 'node:stream/consumers'
import { Writable } from 'node:stream'
import test, { type ExecutionContext } from 'ava'
import pino from 'pino'
import { SMTPServer, type SMTPServerOptions } from 'smtp-server'
import type { DeltapostError } from '../../outbox/errors.ts'
import type { Sql } from '../../outbox/sql.ts'
import { freshDatabase } from '../../test/support/database.ts'
import { outboxConnection, writeEvents } from '../../test/support/events.ts'
import { until } from '../../test/support/until.ts'
import { type Config, readConfig } from '../runtime/config.ts'
import { describeError, type Log } from '../runtime/log.ts'
import { openSlot } from '../runtime/slot.ts'
import { type Channel, tellLoop } from './loop.ts'
import { addressesOf, openMail } from './mail.ts'
import { channelsOf, runNotices } from './main.ts'
import { noticeOf, testNotice } from './message.ts'
import { openWebhook } from './webhook.ts'

type Got = { path: string; authorization: string | undefined; json: Record<string, unknown> }
type Mail = { to: string[]; from: string; raw: string; user: string | undefined }

const NEVER = new AbortController().signal

async function listening(t: ExecutionContext, server: Server, host = '127.0.0.1'): Promise<string> {
  server.listen(0, host)
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo // a TCP server's is always one
  t.teardown(() => new Promise<void>((resolve) => server.close(() => resolve())))
  return `${host}:${port}`
}

/** A receiver that answers as `answer` says, 200 unless told otherwise. */
async function receiver(t: ExecutionContext, answer: (nth: number, response: ServerResponse) => void = (_, response) => response.end('ok')): Promise<{ url: string; got: Got[] }> {
  const got: Got[] = []
  async function take(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const json = JSON.parse(await readText(request)) as Record<string, unknown> // our own
    got.push({ path: request.url ?? '', authorization: request.headers.authorization, json })
    answer(got.length, response)
  }
  const server = createServer((request, response) => void take(request, response))
  const url = `http://${await listening(t, server)}`
  t.teardown(() => server.closeAllConnections())
  return { url, got }
}

async function mailServer(t: ExecutionContext, options: SMTPServerOptions = {}, host?: string): Promise<{ address: string; mails: Mail[] }> {
  const mails: Mail[] = []
  const server = new SMTPServer({
    logger: false, disabledCommands: ['STARTTLS'], allowInsecureAuth: true, authOptional: true, closeTimeout: 100,
    onAuth: ({ username }, _, done) => done(null, { user: username ?? '' }),
    onData: (stream, { envelope, user }, done) => {
      void readText(stream).then((raw) => {
        const { mailFrom, rcptTo } = envelope
        mails.push({ raw, user: typeof user === 'string' ? user : undefined, from: mailFrom === false ? '' : mailFrom.address, to: rcptTo.map(({ address }) => address) })
        done()
      })
    },
    ...options,
  })
  server.on('error', () => undefined) // a client that hangs up in the middle is what some tests are about
  t.teardown(() => new Promise<void>((resolve) => server.close(() => resolve())))
  return { address: await listening(t, server.server, host), mails }
}

/** Accepts connections and never says a word. */
async function mute(t: ExecutionContext): Promise<{ address: string; sockets: Socket[] }> {
  const sockets: Socket[] = []
  const server = createTcpServer((socket) => {
    socket.on('error', () => undefined).resume()
    sockets.push(socket)
  })
  const address = await listening(t, server)
  t.teardown(() => sockets.forEach((socket) => socket.destroy()))
  return { address, sockets }
}

function memoryLog(): { log: Log; lines: () => string } {
  let written = ''
  const stream = new Writable({
    write(bytes: Buffer, _, done) {
      written += bytes.toString()
      done()
    },
  })
  return { log: pino({ level: 'trace', serializers: { error: describeError } }, stream), lines: () => written }
}

type Place = { url: string; sql: Sql }

async function place(t: ExecutionContext): Promise<Place> {
  const { url, drop } = await freshDatabase()
  const sql = outboxConnection(url)
  t.teardown(async () => {
    await sql.end({ timeout: 1 })
    await drop()
  })
  return { url, sql }
}

/** A loop of its own slot; `end` is what SIGTERM does. */
function loop(t: ExecutionContext, { url }: Place, channel: Channel, holder = 'one', log = memoryLog().log): { end: () => Promise<void> } {
  const stop = new AbortController()
  const slot = openSlot({ url, name: `notices test ${holder}` })
  const ended = tellLoop({ channel, slot, holder, everyMs: 50, signal: stop.signal, log })
  const end = async (): Promise<void> => {
    stop.abort()
    await ended
    await slot.close()
  }
  t.teardown(end)
  return { end }
}

/** Failures of changes that say what must not be told: only once the channel is known are they kept. */
async function fail(sql: Sql, count = 1, channels = 1): Promise<string[]> {
  await until(async () => (await sql`select from outbox.notice_channel`).length === channels)
  const seqIds = await writeEvents(sql, Array.from({ length: count }, (_, n) => ({ key: String(n), table: 'account', payload: '{"DATA":{"name":"Ada Secret"}}' })))
  await sql`
    insert into outbox.event (lane, position, seq_id, attempt, kind, bytes, topic, head)
    select 20000, nextval('outbox.position'), s, 3, 'error', 10, 'db.postgres.error',
           '"recipients":["a@b.com"],"error":{"message":"Ada Secret is too long","code":"REFUSED","sqlstate":"22001","side":"deploy"}'
    from unnest(${seqIds}::bigint[]) s`
  return seqIds
}

async function emptied(sql: Sql): Promise<void> {
  await until(async () => (await sql`select from outbox.notice union all select from outbox.notice_channel where batch is not null`).length === 0)
}

function configOf({ url }: Place, settings: Record<string, string>): Config {
  return readConfig({ DATABASE_URL: url, KAFKA_BROKERS: '127.0.0.1:9', NOTICE_EVERY: '1s', ...settings })
}

test('off by default: no channel, no connection, and failures are kept for nobody', async (t) => {
  const at = await place(t)
  t.deepEqual(channelsOf(configOf(at, {})), [])
  await runNotices({ config: configOf(at, {}), log: memoryLog().log, signal: NEVER })
  t.is((await at.sql`select from pg_stat_activity where datname = current_database() and application_name like 'deltapost notices%'`).length, 0)
  t.is((await at.sql`select from outbox.notice_channel`).length, 0)
})

test('a webhook gets one message for all that failed: counts, numbers and commands, and no value of a row', async (t) => {
  const at = await place(t)
  const { url, got } = await receiver(t)
  loop(t, at, openWebhook(`${url}/services/T1?token=x`))
  const seqIds = await fail(at.sql, 25)
  await until(() => got.length === 1)
  await emptied(at.sql)
  const { path, json } = got[0]!
  t.is(path, '/services/T1?token=x')
  const text = String(json['text'])
  t.regex(text, /^Deltapost: 25 changes failed\ndatabase test_/)
  t.true(text.includes('25 × app.account, deploy, REFUSED, SQLSTATE 22001'))
  t.true(text.includes(`changes: ${seqIds.slice(0, 20).join(', ')} …`))
  t.true(text.endsWith('\ndeltapost parked list --table app.account'))
  t.like(json, { title: 'Deltapost: 25 changes failed', counts: { failed: 25, stopped: 0, rejected: 0 }, seq_ids: seqIds.slice(0, 20), commands: ['deltapost parked list --table app.account'] })
  t.like((json['alerts'] as object[])[0], { status: 'firing', labels: { alertname: 'DELTAPOST_FAILED', relation: 'app.account', side: 'deploy', reason: 'REFUSED', sqlstate: '22001' } })
  t.notRegex(JSON.stringify(got), /Ada|Secret/)
})

test('mail goes to those of the recipients that are addresses, through a server that asks for a password', async (t) => {
  const at = await place(t)
  const { address, mails } = await mailServer(t, { authOptional: false })
  const to = addressesOf(['ops@example.com', 'on-call', 'second@example.com', 'Name <third@example.com>', 'a@b.com, c@d.com', 'x@y\r\nBcc: z@z'])
  t.deepEqual(to, ['ops@example.com', 'second@example.com'])
  loop(t, at, openMail({ url: `smtp://me:p%40ss@${address}`, from: 'deltapost@example.com', to }))
  const [seqId] = await fail(at.sql, 1)
  await until(() => mails.length === 1)
  const [mail] = mails
  t.like(mail, { to, from: 'deltapost@example.com', user: 'me' })
  t.regex(mail!.raw, /^Subject: Deltapost: 1 change failed\r$/m)
  t.regex(mail!.raw, /^Auto-Submitted: auto-generated\r$/mi)
  t.true(mail!.raw.includes(`changes: ${seqId}`))
  t.notRegex(mail!.raw, /Ada|Secret/)
})

test('a receiver that fails is told again under the same id, until it answers; then no more', async (t) => {
  const at = await place(t)
  const { url, got } = await receiver(t, (nth, response) => response.writeHead(nth <= 2 ? 500 : 204).end())
  const { log, lines } = memoryLog()
  loop(t, at, openWebhook(url), 'one', log)
  await fail(at.sql)
  await until(() => got.length === 3)
  await emptied(at.sql)
  t.is(new Set(got.map(({ json }) => json['id'])).size, 1)
  await fail(at.sql)
  await until(() => got.length === 4)
  t.not(got[3]?.json['id'], got[0]?.json['id'])
  t.is([...lines().matchAll(/notice not told, tried again/g)].length, 2)
})

test('after 8 tries a notice is dropped with a line in the log, and the next one is told', async (t) => {
  const at = await place(t)
  const { url, got } = await receiver(t, (nth, response) => response.writeHead(nth <= 8 ? 503 : 200).end())
  const { log, lines } = memoryLog()
  loop(t, at, openWebhook(url), 'one', log)
  await fail(at.sql)
  for (const tries of [1, 2, 3, 4, 5, 6, 7]) {
    await until(() => got.length >= tries)
    await until(async () => (await at.sql`update outbox.notice_channel set next_at = now() where tries = ${tries} returning 1`).length === 1)
  }
  await until(() => lines().includes('notice dropped'))
  t.is(got.length, 8)
  await at.sql`update outbox.notice_channel set next_at = now()`
  const [seqId] = await fail(at.sql)
  await until(() => got.length === 9)
  t.deepEqual(got[8]?.json['seq_ids'], [seqId])
})

test('two processes beside each other tell each failure once', async (t) => {
  const at = await place(t)
  const { url, got } = await receiver(t, (_, response) => void setTimeout(() => response.end(), 30))
  loop(t, at, openWebhook(url), 'one')
  loop(t, at, openWebhook(url), 'two')
  const seqIds: string[] = []
  for (let n = 0; n < 20; n++) {
    seqIds.push(...await fail(at.sql))
    // Neither waits for the pause between messages, so that the two surely meet.
    await at.sql`update outbox.notice_channel set next_at = '-infinity'`
  }
  await until(async () => {
    await at.sql`update outbox.notice_channel set next_at = '-infinity'`
    return got.flatMap(({ json }) => json['seq_ids']).length >= seqIds.length
  })
  await emptied(at.sql)
  t.deepEqual(got.flatMap(({ json }) => json['seq_ids'] as string[]).toSorted((a, b) => Number(a) - Number(b)), seqIds)
  const holders = await at.sql<{ term: string }[]>`select term from outbox.notice_channel`
  t.true(Number(holders[0]?.term) > got.length)
})

test('a webhook that hangs delays neither the mail nor the end', async (t) => {
  const at = await place(t)
  const hanging = await mute(t)
  const { address, mails } = await mailServer(t)
  const stop = new AbortController()
  const config = configOf(at, { NOTICE_WEBHOOK_URL: `http://${hanging.address}/`, NOTICE_SMTP_URL: `smtp://${address}`, ERROR_RECIPIENTS: '["ops@example.com"]' })
  const ended = runNotices({ config, log: memoryLog().log, signal: stop.signal })
  await fail(at.sql, 1, 2)
  await until(() => hanging.sockets.length === 1 && mails.length === 1)
  stop.abort()
  await ended
  await until(() => hanging.sockets[0]?.destroyed)
  t.is((await at.sql`select from outbox.notice_channel where channel = 'webhook' and batch is not null`).length, 1, 'told again after the lease')
})

test('receivers that never answer are given up after a limit', async (t) => {
  const { address } = await mute(t)
  const notice = testNotice('1')
  await t.throwsAsync(openWebhook(`http://${address}/`, { limit: 100 }).tell(notice, NEVER), { message: `no answer from http://${address}: nothing within 100 ms` })
  const mail = openMail({ url: `smtp://${address}`, from: 'a@b.com', to: ['c@d.com'], limit: 100 })
  await t.throwsAsync(mail.tell(notice, NEVER), { message: `${address} took no mail: EABORT` })
})

test('a redirect is not followed', async (t) => {
  const elsewhere = await receiver(t)
  const { url, got } = await receiver(t, (_, response) => response.writeHead(307, { location: elsewhere.url }).end())
  await t.throwsAsync(openWebhook(url).tell(testNotice('1'), NEVER), { message: `${url} answered 307, and redirects are not followed` })
  t.is(got.length, 1)
  t.is(elsewhere.got.length, 0)
})

test('neither a password nor the path of a webhook is ever logged or thrown, whatever the other side answers', async (t) => {
  const at = await place(t)
  const secret = 'hush%2Bhush'
  const refusing = await receiver(t, (_, response) => response.writeHead(403).end('hush+hush'))
  const gone = await receiver(t, (_, response) => response.destroy())
  // One that repeats the password in its answer.
  const { address } = await mailServer(t, { authOptional: false, onAuth: ({ password }, _, done) => done(new Error(`no such password: ${password}`)) })
  const withPassword = (url: string): string => url.replace('//', `//me:${secret}@`)
  const channels = [
    openWebhook(`${withPassword(refusing.url)}/services/hush`), openWebhook(`${withPassword(gone.url)}/services/hush`),
    openWebhook(`http://me:${secret}@127.0.0.1:1/services/hush`), openWebhook('http://host.invalid/services/hush'),
    openMail({ url: `smtp://me:${secret}@${address}`, from: 'a@b.com', to: ['c@d.com'] }),
    openMail({ url: `smtp://me:${secret}@127.0.0.1:1?logger=true&debug=true`, from: 'a@b.com', to: ['c@d.com'] }),
  ]
  const { log, lines } = memoryLog()
  for (const channel of channels) {
    const error = await t.throwsAsync<DeltapostError>(channel.tell(testNotice('1'), NEVER))
    t.regex(String(error?.code), /^NOTICE_(REFUSED|UNREACHABLE)$/)
    log.warn({ error, channel, to: channel.to }, 'not told')
    t.notRegex(`${error?.stack} ${JSON.stringify(error)} ${String(error?.cause)}`, /hush|aHVzaCtodXNo/)
  }
  t.is(refusing.got[0]?.authorization, `Basic ${Buffer.from('me:hush+hush').toString('base64')}`)
  loop(t, at, channels[4]!, 'one', log)
  await fail(at.sql)
  await until(() => lines().includes('notice not told, tried again'))
  t.notRegex(lines(), /hush|aHVzaCtodXNo/)
})

test('mail: a certificate that nobody vouches for is refused, and a password goes over TLS or stays here', async (t) => {
  const selfSigned = await mailServer(t, { disabledCommands: [] })
  const notice = testNotice('1')
  const secure = openMail({ url: `smtp://${selfSigned.address}`, from: 'a@b.com', to: ['c@d.com'] })
  await t.throwsAsync(secure.tell(notice, NEVER), { message: /took no mail: E(SOCKET|TLS): .*certificate/ })
  t.is(selfSigned.mails.length, 0)
  // 0.0.0.0 reaches this machine, and is not known to.
  let asked = 0
  const plain = await mailServer(t, { onAuth: ({ username }, _, done) => done(null, { user: `${username} ${asked += 1}` }) }, '0.0.0.0')
  const open = openMail({ url: `smtp://me:pass@${plain.address}`, from: 'a@b.com', to: ['c@d.com'] })
  await t.throwsAsync(open.tell(notice, NEVER))
  t.is(asked, 0)
  t.is(plain.mails.length, 0)
})

test('a name that a shell or a chat could take for something else is in no command, and harmless in the text', (t) => {
  const batch = {
    id: '1.webhook.1', database: 'd', since: 's', until: 'u', at_least: true, counts: { failed: 2, stopped: 1, rejected: 1 }, left_out: 3, seq_ids: ['5', '6'],
    groups: [
      { kind: 'STOPPED' as const, relation: 'app.entry', side: null, reason: 'RELATION_STOPPED', sqlstate: null, count: 1 },
      { kind: 'FAILED' as const, relation: 'app.<!channel>; rm -rf $HOME', side: 'deploy', reason: 'REFUSED', sqlstate: null, count: 1 },
      { kind: 'FAILED' as const, relation: 'app.straße', side: 'publish', reason: 'TOO_LARGE', sqlstate: null, count: 1 },
      { kind: 'REJECTED' as const, relation: null, side: null, reason: null, sqlstate: null, count: 1 },
    ],
  }
  const { title, text, members } = noticeOf(batch)
  t.is(title, 'Deltapost: at least 2 changes failed, 1 relation stopped, 1 request rejected')
  t.deepEqual(members['commands'], ['deltapost resume app.entry', 'deltapost parked list', 'deltapost parked list --table app.straße', 'deltapost rejected list'])
  t.notRegex(text, /[<>&$]!?channel|<|>/)
  t.true(text.includes('and 3 other kinds'))
})

test('a database that goes away is waited for, and ends nothing', async (t) => {
  const at = await place(t)
  const { url, got } = await receiver(t)
  const { log, lines } = memoryLog()
  loop(t, at, openWebhook(url), 'one', log)
  await until(async () => (await at.sql`select from outbox.notice_channel`).length === 1)
  await at.sql`alter table outbox.notice_channel rename to away`
  await until(() => lines().includes('looking for notices: failing'))
  await at.sql`alter table outbox.away rename to notice_channel`
  await until(() => lines().includes('works again'))
  await at.sql`select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'deltapost notices test one' and datname = current_database()`
  await fail(at.sql)
  await until(async () => {
    // A claim may have been under way; its lease need not run out for this test.
    await at.sql`update outbox.notice_channel set held_until = '-infinity' where batch is null`
    return got.length > 0
  })
  t.pass()
})
