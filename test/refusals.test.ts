import test from 'ava'
import kafkajs from 'kafkajs'
import { ACCOUNT_TABLE } from '../scripts/demo/account.ts'
import { play } from '../scripts/demo/play.ts'
import { openSender } from '../scripts/demo/sender.ts'
import { unlikeModel } from '../scripts/demo/verdict.ts'
import { makeWorkload, modelOf } from '../scripts/demo/workload.ts'
import type { Role } from '../scripts/commands/serve.ts'
import { openSlot } from '../services/runtime/slot.ts'
import { connect, freshDatabase } from './support/database.ts'
import { brokers, freshTopic } from './support/kafka.ts'
import { untilAnswered } from './support/posts.ts'
import { openRoles } from './support/roles.ts'
import { until } from './support/until.ts'

const changes = 2_000
const victims: readonly [Role, number][] = [['consumer', 0], ['relay', 0], ['consumer', 1], ['relay', 1], ['consumer', 0], ['relay', 0]]

/** All records of a topic, by the identity in their headers. */
async function recordsOf(topic: string): Promise<Map<string, { recipients: unknown; error: { attempts: number; side: string } }>> {
  const kafka = new kafkajs.Kafka({ brokers: brokers(), clientId: 'errors', logLevel: kafkajs.logLevel.NOTHING })
  const admin = kafka.admin()
  await admin.connect()
  const ends = await admin.fetchTopicOffsets(topic)
  await admin.disconnect()
  let left = ends.reduce((sum, { high, low }) => sum + Number(high) - Number(low), 0)
  const found = new Map<string, { recipients: unknown; error: { attempts: number; side: string } }>()
  if (left === 0) return found
  const consumer = kafka.consumer({ groupId: `${topic}-reader` })
  await consumer.connect()
  await consumer.subscribe({ topic, fromBeginning: true })
  const { promise: all, resolve } = Promise.withResolvers<void>()
  await consumer.run({ eachMessage: ({ message }) => {
    found.set(String(message.headers?.['deltapost-id']).split(':')[1]!, JSON.parse(String(message.value)) as never)
    left -= 1
    if (left === 0) resolve()
    return Promise.resolve()
  } })
  await all
  await consumer.disconnect()
  return found
}

test('I8 I9 I11 a few percent refused changes, retries and all, through kill -9 of relays and consumers: the good ones arrive, the bad ones are told once and can all be taken up', async (t) => {
  const database = await freshDatabase()
  const { topic, drop } = await freshTopic('refusals', 12)
  const errorTopic = `${topic}.error`
  const roles = await openRoles(database.url, topic, { MAX_RETRIES: '2', RETRY_BACKOFF_MS: '200', ERROR_TOPIC: errorTopic })
  const sql = connect(database.url)
  const slot = openSlot({ url: database.url, name: 'judge', deadline: 60_000 })
  t.teardown(async () => {
    await roles.stop()
    await Promise.all([sql.end({ timeout: 5 }), slot.close()])
    await database.drop()
    await drop()
  })
  t.timeout(240_000)
  // Some of the amounts do not fit.
  await sql.unsafe(ACCOUNT_TABLE.replace('numeric(12,2)', 'numeric(12,2) check (balance < 970000)'))
  await Promise.all([roles.start('listener', 0), roles.start('relay', 0), roles.start('relay', 1), roles.start('consumer', 0), roles.start('consumer', 1)])

  const workload = makeWorkload({ seed: 4, changes, perSecond: 250, begin: Date.now() * 1_000 })
  const post = untilAnswered(openSender(roles.url, AbortSignal.timeout(200_000)))
  let answered = 0
  const playing = play(workload, post, AbortSignal.timeout(200_000), (played) => { answered = played.sent.length })
  for (const [at, [role, number]] of victims.entries()) {
    await until(() => answered >= (changes * (at + 1)) / (victims.length + 2), { within: 120_000, what: `progress before killing ${role} ${number}` })
    await roles.replace(role, number)
  }
  const played = await playing
  t.deepEqual(played.failed, [])
  await until(async () => (await sql`
    select from auditlog.pending union all select from outbox.event union all select from inbox.applied where status = 'RETRYING'
    union all select from inbox.parked where retry_at is not null limit 1`).length === 0,
  { within: 90_000, what: 'nothing pending and no retry left' })

  const failed = await sql<{ seq_id: string; attempt: number }[]>`select seq_id, attempt from inbox.applied where status = 'FAILED'`
  t.true(failed.length > 5, `${failed.length} failed`)
  t.true(failed.every(({ attempt }) => attempt === 2))
  const told = await recordsOf(errorTopic)
  t.true(failed.every(({ seq_id: seqId }) => told.get(seqId)?.error.side === 'deploy'), 'each failure is on the error topic')
  const [counts] = await sql`select (select count(*)::int from auditlog.audit_log) as audited, (select count(*)::int from inbox.applied where status in ('FAILED', 'PARKED')) as open,
    (select count(*)::int from inbox.parked where reason <> 'KEY_SHIFT') as parked`
  t.is(counts?.['audited'], changes)
  t.is(counts?.['open'], counts?.['parked'])

  // The target is mended, and everything is put back as `deltapost parked retry` does.
  await sql`alter table shop.account drop constraint account_balance_check`
  await sql`update inbox.parked set reason = 'BEHIND', retry_at = now() where reason in ('REFUSED', 'BEHIND')`
  await until(async () => (await sql`select from inbox.parked`).length === 0, { within: 60_000, what: 'nothing parked' })
  t.deepEqual(await slot.run((judging) => unlikeModel(judging, modelOf(played.sent.map(({ change }) => change)))), [], roles.said())
})
