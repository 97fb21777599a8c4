import test from 'ava'
import { outboxConnection } from '../../test/support/events.ts'
import { freshDatabase } from '../../test/support/database.ts'
import { startListener } from '../../test/support/listener.ts'
import { until } from '../../test/support/until.ts'

const DAY = 86_400_000
const { url, drop } = await freshDatabase()
const sql = outboxConnection(url)
const listener = await startListener(url, { horizon: 30 * DAY })

test.after.always(async () => {
  await listener.stop()
  await sql.end({ timeout: 1 })
  await drop()
})

function change(daysAgo: number, id: string): string {
  const time = new Date(Date.now() - daysAgo * DAY).toISOString().replace('Z', '000Z')
  return JSON.stringify({ TIME: time, SCHEMANAME: 'app', TABLENAME: 'test', OPERATION: 'INSERT', DATA: { id } })
}

function rejectedOf(json: unknown): string {
  return typeof json === 'object' && json !== null && 'rejected' in json ? String(json.rejected) : 'none'
}

test('I7 I11 a post from before the horizon is kept for a person, who can have it taken all the same', async (t) => {
  const body = change(31, 'old')
  const answer = await listener.post(body)
  t.is(answer.status, 422)
  t.like(answer.json, { reason: 'older_than_horizon' })
  const [kept] = await sql<{ body: Buffer; reason: string; state: string }[]>`
    select body, reason, state from auditlog.rejected_request where id = ${rejectedOf(answer.json)}`
  t.is(kept?.body.toString(), body)
  t.is(kept?.reason, 'older_than_horizon')
  const again = await listener.post(body, { headers: { 'deltapost-old': 'accept' } })
  t.is(again.status, 200)
  t.deepEqual((await listener.post(body)).json, again.json, 'from now on it is known')
})

test('I2 an old post that was taken while it was young keeps its seq_id as long as it is remembered', async (t) => {
  const body = change(31, 'repeated')
  const first = await listener.post(body, { headers: { 'deltapost-old': 'accept' } })
  t.deepEqual((await listener.post(body)).json, first.json)
  t.is((await listener.post(change(29, 'young'))).status, 200)
})

test('in a batch only what is old is kept aside', async (t) => {
  const answer = await listener.post(`[${change(1, 'a')},${change(400, 'b')},${change(2, 'c')}]`)
  t.is(answer.status, 200)
  t.true(Array.isArray(answer.json))
  t.like((answer.json as unknown[])[1], { reason: 'older_than_horizon' })
})

test('the listener leaves behind what is older, by itself', async (t) => {
  const second = await freshDatabase()
  const own = outboxConnection(second.url)
  await own`insert into inbox.row_version (relation, key, origin, epoch, time, seq, deleted) values (1, 'k', 1, 1, 1, 1, true)`
  const keeping = await startListener(second.url)
  await keeping.post(change(4_000, 'very old'))
  await keeping.stop()
  t.is((await own`select from inbox.row_version`).count, 1, 'nothing leaves without a horizon')
  await own`update auditlog.settled set up_to = (select last_value from outbox.position)`
  const other = await startListener(second.url, { horizon: DAY })
  await until(async () => (await own`select from inbox.row_version`).count === 0, { what: 'the tombstone is gone' })
  await other.stop()
  await own.end({ timeout: 1 })
  await second.drop()
})
