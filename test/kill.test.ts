import test from 'ava'
import { ACCOUNT_TABLE } from '../scripts/demo/account.ts'
import { play } from '../scripts/demo/play.ts'
import { openSender } from '../scripts/demo/sender.ts'
import { unlikeModel } from '../scripts/demo/verdict.ts'
import { makeWorkload, modelOf } from '../scripts/demo/workload.ts'
import type { Role } from '../scripts/commands/serve.ts'
import { openSlot } from '../services/runtime/slot.ts'
import { connect, freshDatabase } from './support/database.ts'
import { freshTopic } from './support/kafka.ts'
import { untilAnswered } from './support/posts.ts'
import { openRoles } from './support/roles.ts'
import { until } from './support/until.ts'

const changes = 3_000
const victims: readonly [Role, number][] = [
  ['relay', 0], ['consumer', 0], ['listener', 0], ['relay', 1], ['consumer', 1], ['listener', 0], ['consumer', 0], ['relay', 0],
]

test('I1 I3 I6 I9 kill -9 of any role under load, with two relays and two consumers: every count adds up and the target equals the model', async (t) => {
  const database = await freshDatabase()
  const { topic, drop } = await freshTopic('kill', 12)
  const roles = await openRoles(database.url, topic)
  const sql = connect(database.url)
  const slot = openSlot({ url: database.url, name: 'judge', deadline: 60_000 })
  t.teardown(async () => {
    await roles.stop()
    await Promise.all([sql.end({ timeout: 5 }), slot.close()])
    await database.drop()
    await drop()
  })
  t.timeout(240_000)
  await sql.unsafe(ACCOUNT_TABLE)
  await Promise.all([roles.start('listener', 0), roles.start('relay', 0), roles.start('relay', 1), roles.start('consumer', 0), roles.start('consumer', 1)])

  const seed = 20_261_121
  const workload = makeWorkload({ seed, changes, perSecond: 300, begin: Date.now() * 1_000 })
  const post = untilAnswered(openSender(roles.url, AbortSignal.timeout(200_000)))
  let answered = 0
  const playing = play(workload, post, AbortSignal.timeout(200_000), (played) => { answered = played.sent.length })
  for (const [at, [role, number]] of victims.entries()) {
    await until(() => answered >= (changes * (at + 1)) / (victims.length + 2), { within: 120_000, what: `progress before killing ${role} ${number}` })
    await roles.replace(role, number)
  }
  const played = await playing
  await until(async () => (await sql`select 1 from auditlog.pending limit 1`).length === 0, { within: 90_000, what: 'nothing is pending' })

  t.deepEqual(played.failed, [])
  const accepted = new Set(played.sent.map(({ answer }) => answer.seqId))
  const [counts] = await sql`
    select (select count(*)::int from auditlog.producer_log) as received, (select count(*)::int from outbox.event) as waiting,
      (select count(*)::int from auditlog.publish_log where latest) as published, (select count(*)::int from inbox.applied) as deployed,
      (select count(*)::int from auditlog.audit_log) as audited`
  t.deepEqual({ ...counts }, { received: accepted.size, waiting: 0, published: accepted.size, deployed: accepted.size, audited: accepted.size })
  t.is(accepted.size, changes)
  t.deepEqual(await slot.run((judging) => unlikeModel(judging, modelOf(played.sent.map(({ change }) => change)))), [], roles.said())
})
