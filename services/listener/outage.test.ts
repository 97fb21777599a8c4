import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { request } from 'node:http'
import test from 'ava'
import { connect, freshDatabase } from '../../test/support/database.ts'
import { outboxConnection } from '../../test/support/events.ts'
import { answerOf, startListener, type Answered } from '../../test/support/listener.ts'
import { openProxy } from '../../scripts/torture/proxy.ts'
import { until } from '../../test/support/until.ts'
import { checkDurable } from './durable.ts'

const database = await freshDatabase()
const sql = connect(database.url)

test.after.always(async () => {
  await sql.end({ timeout: 5 })
  await database.drop()
})

const change = (id: string = randomUUID()): string =>
  JSON.stringify({ TIME: '2019-09-16T10:00:00.5Z', SCHEMANAME: 'testdb', TABLENAME: 'test', OPERATION: 'INSERT', DATA: { id } })

test.serial('I1 without the database everything is 503, also garbage; with it again the same post is taken', async (t) => {
  const proxy = await openProxy(database.url)
  const listener = await startListener(proxy.url)
  const body = change()
  t.is((await listener.post(change())).status, 200)
  proxy.cut()
  for (const sent of [body, 'garbage', `${body}\n{`]) {
    const answer = await listener.post(sent)
    t.is(answer.status, 503)
    t.is(answer.headers['retry-after'], '1')
  }
  t.is((await listener.get('/readyz')).status, 503)
  t.is((await listener.get('/healthz')).status, 200)
  proxy.mend()
  const answer = await until(async () => {
    const one = await listener.post(body)
    return one.status === 200 ? one : undefined
  })
  t.is((await sql`select from auditlog.producer_log where producer_payload::text = ${body}`).length, 1, answer.text)
  await until(async () => (await listener.get('/readyz')).status === 200)
  await listener.stop()
  await proxy.close()
})

test.serial('I1 I2 a post whose commit was not heard of is 503 and, posted again, the same change', async (t) => {
  const proxy = await openProxy(database.url)
  const listener = await startListener(proxy.url)
  t.is((await listener.post(change())).status, 200)
  const holder = await sql.reserve()
  await holder`begin`
  await holder`lock table auditlog.producer_log in share mode`
  const body = change()
  const post = listener.post(body)
  await until(async () => (await sql`select from pg_stat_activity where datname = current_database() and application_name like 'deltapost listener group%' and wait_event_type = 'Lock'`).length > 0)
  proxy.stall()
  await holder`commit`
  holder.release()
  await until(async () => (await sql`select from auditlog.producer_log where producer_payload::text = ${body}`).length === 1)
  proxy.cut()
  t.is((await post).status, 503)
  proxy.mend()
  const again = await until(async () => {
    const one = await listener.post(body)
    return one.status === 200 ? one : undefined
  })
  const rows = await sql`select seq_id from auditlog.producer_log where producer_payload::text = ${body}`
  t.deepEqual(rows.map((row) => ({ seq_id: row['seq_id'] as string })), [again.json as { seq_id: string }])
  await listener.stop()
  await proxy.close()
})

test.serial('I1 while backends are killed under load every 200 is on disk and nobody waits for ever', async (t) => {
  const listener = await startListener(database.url)
  const taken: string[] = []
  let killing = true
  let answers = 0
  const senders = Array.from({ length: 16 }, async () => {
    while (killing) {
      const body = change()
      const { status } = await listener.post(body)
      answers += 1
      if (status === 200) taken.push(body)
      else t.is(status, 503)
    }
  })
  for (let kills = 0; kills < 8; kills += 1) {
    const before = answers
    await sql`select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'deltapost listener group%' and datname = current_database()`
    await until(() => answers > before + 40)
  }
  killing = false
  await Promise.all(senders)
  const [found] = await sql<{ n: number }[]>`select count(*)::int as n from auditlog.producer_log where producer_payload::text = any(${taken}::text[])`
  t.true(taken.length > 100)
  t.is(found?.n, taken.length)
  await listener.stop()
})

test.serial('I1 asked to stop, it answers what was accepted, is not ready, takes no more, and ends', async (t) => {
  const listener = await startListener(database.url)
  const holder = await sql.reserve()
  await holder`begin`
  await holder`lock table auditlog.producer_log in share mode`
  const bodies = [change(), change(), change()]
  const posts = bodies.map((body) => listener.post(body))
  await until(async () => (await sql`select from pg_stat_activity where datname = current_database() and application_name like 'deltapost listener group%' and wait_event_type = 'Lock'`).length > 0)
  const begun = request(`${listener.url}/events`, { method: 'POST', agent: false, headers: { 'Content-Length': change().length, Expect: '100-continue' } })
  begun.flushHeaders()
  await once(begun, 'continue')
  listener.abort()
  await t.throwsAsync(listener.get('/healthz'), { code: 'ECONNREFUSED' })
  await holder`commit`
  holder.release()
  begun.end(change())
  const answers: Answered[] = await Promise.all([...posts, answerOf(begun)])
  for (const answer of answers) {
    t.is(answer.status, 200)
    t.is(answer.headers.connection, 'close')
  }
  await listener.ended
  t.is((await sql`select from auditlog.producer_log where producer_payload::text = any(${bodies}::text[])`).length, 3)
  t.is((await sql`select from pg_stat_activity where application_name like 'deltapost listener%' and datname = current_database()`).length, 0)
})

test.serial('I11 an upload that the stop cuts off is kept', async (t) => {
  const listener = await startListener(database.url, { shutdownTimeout: 500 })
  const begun = request(`${listener.url}/events`, { method: 'POST', agent: false, headers: { 'Content-Length': 1_000, Expect: '100-continue' } })
  begun.on('error', () => undefined) // it is cut
  begun.flushHeaders()
  await once(begun, 'continue')
  const { promise: flushed, resolve } = Promise.withResolvers<void>()
  begun.write('half of a body', () => resolve())
  await flushed
  // Answered after the bytes lay ready, so they have been read.
  t.is((await listener.get('/healthz')).status, 200)
  await listener.stop()
  t.is((await sql`select from auditlog.rejected_request where reason = 'incomplete_body' and convert_from(body, 'UTF8') = 'half of a body'`).length, 1)
})

test.serial('asked to stop, it waits for no statement of its upkeep that hangs', async (t) => {
  const listener = await startListener(database.url, { shutdownTimeout: 2_000 })
  t.is((await listener.post(change())).status, 200)
  const holder = await sql.reserve()
  await holder`begin`
  await holder`lock table outbox.relation in access exclusive mode`
  await until(async () => (await sql`select from pg_stat_activity where datname = current_database() and application_name = 'deltapost listener look-up' and wait_event_type = 'Lock'`).length > 0)
  let ended = false
  listener.abort()
  void listener.ended.then(() => (ended = true))
  try {
    await until(() => ended, { within: 4_000 })
  } finally {
    await holder`commit`
    holder.release()
  }
  await listener.ended
  t.pass()
})

test.serial('I1 it does not start where a commit does not mean on disk', async (t) => {
  const loose = outboxConnection(database.url)
  await loose`set synchronous_commit = off`
  await t.throwsAsync(checkDurable(loose), { code: 'SYNCHRONOUS_COMMIT_OFF' })
  await loose`set synchronous_commit = on`
  await t.notThrowsAsync(checkDurable(loose))
  await loose.end({ timeout: 5 })
})
