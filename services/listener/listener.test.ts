import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { readdirSync, readFileSync } from 'node:fs'
import { request, type ClientRequest } from 'node:http'
import { connect as tcp } from 'node:net'
import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import test from 'ava'
import type { ExecutionContext } from 'ava'
import { connect, freshDatabase } from '../../test/support/database.ts'
import { answerOf, startListener, type Answered } from '../../test/support/listener.ts'
import { until } from '../../test/support/until.ts'
import { readConfig } from '../runtime/config.ts'
import { openLog } from '../runtime/log.ts'
import { runListener } from './main.ts'

const FIXTURES = join(import.meta.dirname, '../../test/fixtures/informix-posts')
const MB = 1 << 20
const database = await freshDatabase()
const sql = connect(database.url)
const listener = await startListener(database.url, { maxBody: 24 * MB, bodyBudget: 24 * MB })

test.after.always(async () => {
  await listener.stop()
  await sql.end({ timeout: 5 })
  await database.drop()
})

let made = 0
/** A change that nobody posted before. */
function change(fields: Record<string, unknown> = {}): string {
  made += 1
  return JSON.stringify({ TIME: `2019-09-16T10:00:00.${made}Z`, SCHEMANAME: 'testdb', TABLENAME: 'test', OPERATION: 'INSERT', DATA: { id: String(made) }, ...fields })
}

function seqIdOf(answer: Answered): string {
  const json = answer.json
  return typeof json === 'object' && json !== null && 'seq_id' in json ? String(json.seq_id) : `no seq_id in ${answer.status} ${answer.text}`
}

async function keptOf(answer: Answered): Promise<{ body: Buffer; reason: string; state: string } | undefined> {
  const json = answer.json
  const id = typeof json === 'object' && json !== null && 'rejected' in json ? String(json.rejected) : '0'
  const [row] = await sql<{ body: Buffer; reason: string; state: string }[]>`select body, reason, state from auditlog.rejected_request where id = ${id}`
  return row
}

/** A post that the test writes piece by piece. */
function open(path: string, headers: Record<string, string | number>, url = listener.url): ClientRequest {
  const sent = request(`${url}${path}`, { method: 'POST', headers, agent: false })
  sent.on('error', () => undefined) // the server may cut it; tests look at the answer or at the database
  return sent
}

const REFUSED: Readonly<Record<string, string>> = {
  '09-v1-raw-quote': 'json_syntax', '10-v1-raw-newline': 'json_syntax', '12-v1-injection': 'duplicate_key',
  '19-v2-latin1': 'invalid_utf8', '24-wrong-direction': 'wrong_direction', '25-cut': 'truncated',
}

for (const file of readdirSync(FIXTURES).filter((name) => name.endsWith('.body'))) {
  const name = file.replace('.body', '')
  const reason = REFUSED[name]
  test(`I11 ${name} is ${reason === undefined ? 'accepted as it came' : `kept as ${reason}`}`, async (t) => {
    const body = readFileSync(join(FIXTURES, file))
    const answer = await listener.post(body)
    if (reason === undefined) {
      t.is(answer.status, 200, answer.text)
      const [row] = await sql`select producer_payload::text as payload from auditlog.producer_log where seq_id = ${seqIdOf(answer)}`
      t.is(row?.['payload'], body.toString('utf8'))
    } else {
      t.is(answer.status, 400)
      const kept = await keptOf(answer)
      t.is(kept?.reason, reason)
      t.true(kept?.body.equals(body))
    }
  })
}

for (const file of readdirSync(FIXTURES).filter((name) => name.endsWith('.ndjson'))) {
  test(`${file} is one change a line, in order`, async (t) => {
    const lines = readFileSync(join(FIXTURES, file), 'utf8').trim().split('\n')
    const answer = await listener.post(`${lines.join('\n')}\n`)
    t.is(answer.status, 200)
    t.is((answer.json as unknown[]).length, lines.length)
    const rows = await sql`select producer_payload::text as payload from auditlog.producer_log
      where seq_id = any(${(answer.json as { seq_id: string }[]).map(({ seq_id }) => seq_id)}::bigint[]) order by seq_id`
    t.deepEqual(rows.map((row) => String(row['payload'])), lines)
  })
}

test.serial('I1 the answer comes after the commit and not before', async (t) => {
  const holder = await sql.reserve()
  let answered = false
  const table = change({ TABLENAME: 'held' })
  let post: Promise<Answered>
  try {
    await holder`begin`
    await holder`lock table auditlog.producer_log in share mode`
    post = listener.post(table).finally(() => {
      answered = true
    })
    await until(async () => (await sql`select from pg_stat_activity where datname = current_database() and application_name like 'deltapost listener group%' and wait_event_type = 'Lock'`).length > 0)
    t.false(answered)
  } finally {
    // Whatever failed: the lock would hold up every other test of this file.
    await holder`commit`
    holder.release()
  }
  const answer = await post
  t.is(answer.status, 200)
  t.is((await sql`select from outbox.event where seq_id = ${seqIdOf(answer)}`).length, 1)
})

test('I2 the same post on every path, at once and later, is one change', async (t) => {
  const body = change()
  const again = (): Promise<Answered[]> => Promise.all(['/events', '/kafkaevents', '/fileevents', '/events'].map((path) => listener.post(body, { path })))
  const answers = [...await again(), ...await again()]
  t.deepEqual(new Set(answers.map(({ status }) => status)), new Set([200]))
  t.is(new Set(answers.map(seqIdOf)).size, 1)
  t.is((await sql`select from auditlog.producer_log where producer_payload::text = ${body}`).length, 1)
})

test('I2 fixture 23: a relay posts a change again with fields of its own, and it is the first one', async (t) => {
  const plain = change()
  const first = await listener.post(plain)
  const relayed = JSON.stringify({ SEQ_ID: '999', ...JSON.parse(plain) as object, retryCount: 3, RECONCILE_STATUS: 1 })
  t.is(seqIdOf(await listener.post(relayed)), seqIdOf(first))

  const fresh = change()
  const alone = await listener.post(JSON.stringify({ ...JSON.parse(fresh) as object, retryCount: 1 }))
  const [row] = await sql`select clean_payload from auditlog.producer_log where seq_id = ${seqIdOf(alone)}`
  t.deepEqual(JSON.parse(String(row?.['clean_payload'])), JSON.parse(fresh))
})

test('I2 an Idempotency-Key names a change, and another body under it is 422', async (t) => {
  const headers = { 'Idempotency-Key': `spool-7-${made}` }
  const body = change()
  const first = await listener.post(body, { headers })
  t.is(seqIdOf(await listener.post(body.replace('{', '{ '), { headers })), seqIdOf(first))
  const other = await listener.post(change(), { headers })
  t.is(other.status, 422)
  t.is((await keptOf(other))?.reason, 'idempotency_conflict')
  const two = `${body}\n${body}`
  const lines = await listener.post(two, { headers: { 'Idempotency-Key': `batch-${made}` } })
  t.is(new Set((lines.json as { seq_id: string }[]).map(({ seq_id }) => seq_id)).size, 2, 'the ordinal is part of the key')
})

test('a batch is answered in its order, and a bad line stops no good one', async (t) => {
  const [a, b] = [change(), change()]
  const answer = await listener.post(`${a}\n{"broken"\n${b}\n${a}\n`)
  t.is(answer.status, 200)
  const [first, second, third, fourth] = answer.json as Record<string, string>[]
  t.truthy(first?.['seq_id'])
  t.is(second?.['reason'], 'json_syntax')
  t.truthy(third?.['seq_id'])
  t.deepEqual(fourth, first)
  const [kept] = await sql`select convert_from(body, 'UTF8') as body from auditlog.rejected_request where id = ${second?.['rejected'] ?? ''}`
  t.is(String(kept?.['body']).trim(), '{"broken"')

  const array = await listener.post(`[${change()}, 5, ${change({ OPERATION: 'SELECT' })}]`)
  t.is(array.status, 200)
  t.deepEqual((array.json as Record<string, string>[]).map(({ reason }) => reason), [undefined, 'not_object', 'unknown_operation'])
  t.is((await listener.post('[5, 6]')).status, 422)
  t.is((await listener.post(`[${change()}]`)).text.slice(0, 2), '[{')
  t.is((await listener.post(change() + change())).text.match(/seq_id/g)?.length, 2)
})

test('three thousand lines in one body are three thousand changes', async (t) => {
  const lines = Array.from({ length: 3_000 }, () => change())
  const answer = await listener.post(lines.join('\n'))
  const ids = (answer.json as { seq_id: string }[]).map(({ seq_id }) => seq_id)
  t.is(new Set(ids).size, 3_000)
  const rows = await sql`select p.producer_payload::text = given.line as same from unnest(${ids}::bigint[], ${lines}::text[]) as given(seq_id, line) join auditlog.producer_log p using (seq_id)`
  t.is(rows.filter((row) => row['same'] === true).length, 3_000)
})

for (const [what, body, reason] of [
  ['nothing', '', 'empty_body'], ['blanks', ' \n ', 'empty_body'], ['no object', '"x"', 'not_object'], ['an empty array', '[]', 'not_object'],
  ['a TIME that is none', change({ TIME: 'today' }), 'bad_time'], ['an unknown operation', change({ OPERATION: 'TRUNCATE' }), 'unknown_operation'],
  ['a NUL', change({ DATA: { id: 'a\0' } }), 'nul_character'], ['half a surrogate', change({ DATA: { id: '\ud800' } }), 'lone_surrogate'],
  ['latin-1', Buffer.from('{"TIME":"caf\xe9"}', 'latin1'), 'invalid_utf8'], ['zeros', Buffer.alloc(100), 'json_syntax'], ['gzip', Buffer.from('1f8b0800000000000003', 'hex'), 'invalid_utf8'],
] as const) {
  test(`I11 ${what}: bytes are kept, answered 400 ${reason}`, async (t) => {
    const answer = await listener.post(body)
    t.is(answer.status, 400)
    t.like(answer.json, { reason })
    t.true((await keptOf(answer))?.body.equals(Buffer.from(body)))
  })
}

for (const name of ['14-v2-unsupportedtype', '08-v0-update', '23-relay-fields']) {
  test(`I11 ${name} cut at every byte is accepted or kept, never 5xx and never lost`, async (t) => {
    const body = readFileSync(join(FIXTURES, `${name}.body`))
    const cuts = Array.from({ length: body.length }, (_, length) => body.subarray(0, length))
    for (let at = 0; at < cuts.length; at += 50) {
      await Promise.all(cuts.slice(at, at + 50).map(async (cut) => {
        const answer = await listener.post(cut)
        t.is(answer.status, 400)
        t.true((await keptOf(answer))?.body.equals(cut))
      }))
    }
  })
}

test.serial('what Postgres refuses is kept and takes nobody with it', async (t) => {
  await sql`create function public.refuse() returns trigger language plpgsql as $$ begin raise exception using errcode = '23514', message = 'no'; end $$`
  await sql`create trigger refuse before insert on auditlog.producer_log for each row when (new.table_name = 'refused') execute function public.refuse()`
  const answers = await Promise.all(Array.from({ length: 60 }, (_, n) => listener.post(change(n % 20 === 7 ? { TABLENAME: 'refused' } : {}))))
  await sql`drop trigger refuse on auditlog.producer_log`
  answers.forEach((answer, n) => t.is(answer.status, n % 20 === 7 ? 400 : 200))
  t.is((await keptOf(answers[7] as Answered))?.reason, 'refused_by_database')
})

test('I11 20 MB arrive byte for byte', async (t) => {
  const head = change({ DATA: { id: 'big', body: '~' } })
  const unit = 'Invoice \\"yes\\" C:\\\\work\\n Größe 日本語 😀 '
  const body = Buffer.from(head.replace('~', unit.repeat(Math.ceil(20 * MB / Buffer.byteLength(unit)))))
  const answer = await listener.post(body)
  t.is(answer.status, 200, answer.text)
  const [row] = await sql`select encode(sha256(convert_to(producer_payload::text, 'UTF8')), 'hex') as sha, e.bytes from auditlog.producer_log join outbox.event e using (seq_id) where seq_id = ${seqIdOf(answer)}`
  t.is(row?.['sha'], createHash('sha256').update(body).digest('hex'))
  t.is(row?.['bytes'], body.length)
  t.is(seqIdOf(await listener.post(body)), seqIdOf(answer))
})

test('I11 a body above the limit is 413 and its head is kept, declared or not', async (t) => {
  const body = Buffer.alloc(25 * MB, 'x')
  const declared = await listener.post(body)
  const sent = open('/events', {})
  sent.end(body)
  for (const answer of [declared, await answerOf(sent)]) {
    t.is(answer.status, 413)
    const kept = await keptOf(answer)
    t.is(kept?.reason, 'too_large')
    t.true(kept?.body.equals(body.subarray(0, 64 << 10)))
  }
})

test('I11 an upload that breaks off is kept as far as it came', async (t) => {
  const body = change({ TABLENAME: 'broken_off' })
  const sent = open('/events', { 'Content-Length': body.length })
  sent.write(body.slice(0, 90))
  await once(sent, 'socket')
  await until(() => sent.socket?.bytesWritten !== undefined && sent.socket.bytesWritten > 90)
  sent.socket?.end()
  const kept = await until(async () => (await sql<{ body: string }[]>`select convert_from(body, 'UTF8') as body from auditlog.rejected_request where reason = 'incomplete_body' and convert_from(body, 'UTF8') not like 'silent %'`)[0])
  t.is(kept.body, body.slice(0, 90))
})

test.serial('a body for which there is no room is 503 with Retry-After, and taken when there is', async (t) => {
  const first = open('/events', { 'Content-Length': 20 * MB, Expect: '100-continue' })
  first.flushHeaders()
  await once(first, 'continue')
  const small = change()
  const second = await listener.post(change({ DATA: { id: 'x'.repeat(5 * MB) } }))
  t.is(second.status, 503)
  t.is(second.headers['retry-after'], '1')
  t.is((await listener.post(small)).status, 200, 'what fits is taken')
  const body = change({ DATA: { id: '~' } })
  first.end(body.replace('~', 'y'.repeat(20 * MB - body.length + 1)))
  t.is((await answerOf(first)).status, 200)
  t.is((await listener.post(change({ DATA: { id: 'x'.repeat(5 * MB) } }))).status, 200)
})

test.serial('large uploads that stall do not turn the posts of triggers away', async (t) => {
  const stalled = open('/events', { 'Content-Length': 24 * MB, Expect: '100-continue' })
  stalled.flushHeaders()
  await once(stalled, 'continue')
  try {
    t.is((await listener.post(change({ DATA: { id: 'x'.repeat(8 * MB) } }))).status, 503, 'the budget of large bodies is taken')
    t.is((await listener.post(change())).status, 200)
  } finally {
    stalled.destroy() // or the budget would be missing to every other test
  }
  await until(async () => (await listener.post(change({ DATA: { id: 'x'.repeat(8 * MB) } }))).status === 200)
})

/** A listener that gives uploads up after two seconds of silence. */
async function impatientListener(t: ExecutionContext): Promise<string> {
  const config = readConfig({ DATABASE_URL: database.url, KAFKA_BROKERS: '127.0.0.1:9', PORT: '0' })
  const stopping = new AbortController()
  const { promise: url, resolve } = Promise.withResolvers<string>()
  const ended = runListener({ config, log: openLog('listener', 'silent'), signal: stopping.signal, wake: { ring: () => undefined }, onListening: resolve, stalledMs: 2_000 })
  t.teardown(async () => {
    stopping.abort()
    await ended
  })
  return url
}

async function postTo(url: string, body: string): Promise<number> {
  const sent = open('/events', { 'Content-Length': body.length }, url)
  sent.end(body)
  return (await answerOf(sent)).status
}

test('I11 uploads that stall are given up and kept as far as they came, and small posts find room again', async (t) => {
  const url = await impatientListener(t)
  const stalled = await Promise.all(Array.from({ length: 32 }, async () => {
    const sent = open('/events', { 'Content-Length': MB, Expect: '100-continue' }, url)
    sent.flushHeaders()
    await once(sent, 'continue')
    return sent
  }))
  t.teardown(() => stalled.forEach((sent) => sent.destroy()))
  for (const [at, sent] of stalled.entries()) sent.write(`silent ${at}`)
  t.is(await postTo(url, change()), 503, 'there is no room')
  await until(async () => await postTo(url, change()) === 200)
  await until(async () => (await sql`select from auditlog.rejected_request where reason = 'incomplete_body' and convert_from(body, 'UTF8') like 'silent %'`).length === 32)
})

test('an upload that is slow and not silent is taken', async (t) => {
  const url = await impatientListener(t)
  const body = change()
  const sent = open('/events', { 'Content-Length': body.length }, url)
  const answer = answerOf(sent) // may come before the loop is done
  const size = Math.ceil(body.length / 14)
  for (let at = 0; at < body.length; at += size) {
    sent.write(body.slice(at, at + size))
    await pause(200)
  }
  sent.end()
  t.is((await answer).status, 200)
})

test('I11 a name with a NUL that stands twice is kept, and so is what is posted beside it', async (t) => {
  const bad = `{"TIME":"2019-09-16T10:00:00.1Z","SCHEMANAME":"testdb","TABLENAME":"test","OPERATION":"INSERT","DATA":{"a\\u0000":"1","a\\u0000":"2"}}`
  const answer = await listener.post(bad)
  t.is(answer.status, 400, answer.text)
  t.is((await keptOf(answer))?.body.toString(), bad)
  const both = await listener.post(`${bad}\n${change()}\n`)
  t.is(both.status, 200)
})

test('a byte order mark in front of one change is no part of it', async (t) => {
  t.is((await listener.post(`\ufeff${change()}`)).status, 200)
})

test('one of a batch with an Idempotency-Key that was refused keeps its place when it is sent again', async (t) => {
  const [one, two] = [change(), change()]
  const headers = { 'Idempotency-Key': 'batch of two' }
  const first = await listener.post(`[${one},${two}]`, { headers })
  const again = await listener.post(two, { headers: { ...headers, 'Idempotency-Ordinal': '1' } })
  t.is(seqIdOf(again), (first.json as { seq_id: string }[])[1]!.seq_id)
})

test('addresses: 404, 405 with Allow, alive and ready', async (t) => {
  t.like(await listener.get('/healthz'), { status: 200 })
  t.like(await listener.get('/readyz'), { status: 200, text: '{"ready":true}' })
  t.like(await listener.get('/nothing'), { status: 404, text: '{"error":"not_found"}' })
  const answer = await listener.get('/events')
  t.is(answer.status, 405)
  t.is(answer.headers['allow'], 'POST')
  t.is(answer.headers['x-powered-by'], undefined)
  t.is(answer.headers.etag, undefined)
})

test('the content type and the case of headers say nothing; a traceparent is kept where it is one', async (t) => {
  const traceparent = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'
  const good = await listener.post(change(), { headers: { 'Content-Type': 'text/plain', traceparent } })
  const bad = await listener.post(change(), { headers: { traceparent: `${traceparent}x` } })
  const rows = await sql`select traceparent from auditlog.producer_log where seq_id in (${seqIdOf(good)}, ${seqIdOf(bad)}) order by seq_id`
  t.deepEqual(rows.map((row) => row['traceparent'] as unknown), [traceparent, null])
})

test('credentials are not kept with what was rejected', async (t) => {
  const answer = await listener.post('x', { headers: { Authorization: 'Bearer abc', Cookie: 'a=b', 'X-Sender': 'ifx' } })
  const [row] = await sql`select headers::text from auditlog.rejected_request where id = ${(answer.json as { rejected: string }).rejected}`
  t.regex(String(row?.['headers']), /ifx/)
  t.notRegex(String(row?.['headers']), /abc|a=b/)
})

test('bytes that are not HTTP end their own connection only', async (t) => {
  const { port } = new URL(listener.url)
  const socket = tcp(Number(port), '127.0.0.1')
  socket.write('GARBAGE\r\n\r\n')
  socket.resume()
  await once(socket, 'close')
  t.is((await listener.get('/healthz')).status, 200)
})

test.serial('the relay is woken by a commit, not by what is rejected', async (t) => {
  const before = listener.rung()
  await listener.post(change())
  t.is(listener.rung(), before + 1)
  await listener.post('garbage')
  t.is(listener.rung(), before + 1)
})
