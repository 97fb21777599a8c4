import test from 'ava'
import { ACCOUNT_TABLE } from '../scripts/demo/account.ts'
import { play } from '../scripts/demo/play.ts'
import { openSender } from '../scripts/demo/sender.ts'
import { unlikeModel } from '../scripts/demo/verdict.ts'
import { makeWorkload, modelOf } from '../scripts/demo/workload.ts'
import { runConsumer } from '../services/consumer/main.ts'
import { runRelay } from '../services/relay/main.ts'
import { readConfig } from '../services/runtime/config.ts'
import { openLog } from '../services/runtime/log.ts'
import { openSlot } from '../services/runtime/slot.ts'
import { openLocalWake } from '../services/runtime/wake.ts'
import { connect, freshDatabase } from './support/database.ts'
import { administrate, brokers, freshTopic } from './support/kafka.ts'
import { startListener } from './support/listener.ts'
import { untilAnswered } from './support/posts.ts'
import { until } from './support/until.ts'

const changes = 3_000
const log = openLog('partitions', 'silent')

test('I6 I7 a topic that grows from 3 to 7 partitions under load keeps every row right, and the new ones are used and read', async (t) => {
  t.timeout(300_000)
  const database = await freshDatabase()
  const { topic, drop } = await freshTopic('grown', 3)
  const sql = connect(database.url)
  const slot = openSlot({ url: database.url, name: 'judge', deadline: 60_000 })
  await sql.unsafe(ACCOUNT_TABLE)
  const listener = await startListener(database.url, { topic })
  const stop = new AbortController()
  const config = readConfig({ DATABASE_URL: database.url, KAFKA_BROKERS: brokers().join(), TOPIC: topic, CONSUMER_GROUP: topic })
  const relay = (holder: string, signal: AbortSignal): Promise<void> => runRelay({ config: { ...config, holder }, log, signal, wake: openLocalWake() })
  const leaving = new AbortController()
  const first = relay('first', leaving.signal)
  const roles = [first, relay('second', stop.signal), ...['a', 'b'].map((holder) => runConsumer({ config: { ...config, holder }, log, signal: stop.signal }))]
  t.teardown(async () => {
    stop.abort()
    leaving.abort()
    await Promise.all([...roles, listener.stop()])
    await Promise.all([sql.end({ timeout: 5 }), slot.close()])
    await database.drop()
    await drop()
  })

  const workload = makeWorkload({ seed: 20_261_122, changes, perSecond: 100, begin: Date.now() * 1_000 })
  const post = untilAnswered(openSender(listener.url, AbortSignal.timeout(250_000)))
  let answered = 0
  const playing = play(workload, post, AbortSignal.timeout(250_000), (played) => { answered = played.sent.length })
  await until(() => answered > 300, { within: 60_000 })
  await administrate((admin) => admin.createPartitions({ topicPartitions: [{ topic, count: 7 }] }))
  // A relay that stays knows of three partitions for up to a minute, one that starts now of seven: for that long they put
  // the same lane, one after the other, on different partitions. It is the worst that can be.
  roles.push(relay('third', stop.signal))
  leaving.abort()
  await first
  const played = await playing
  await until(async () => (await sql`select 1 from auditlog.pending limit 1`).length === 0, { within: 90_000, what: 'nothing is pending' })

  t.deepEqual(played.failed, [])
  const accepted = new Set(played.sent.map(({ answer }) => answer.seqId)).size
  const [counts] = await sql`
    select (select count(*)::int from auditlog.producer_log) as received, (select count(*)::int from auditlog.publish_log where latest) as published,
      (select count(*)::int from inbox.applied) as deployed, (select count(*)::int from auditlog.audit_log) as audited`
  t.deepEqual({ ...counts }, { received: accepted, published: accepted, deployed: accepted, audited: accepted })
  t.deepEqual(await slot.run((judging) => unlikeModel(judging, modelOf(played.sent.map(({ change }) => change)))), [])
  const used = (await sql<{ partition: number }[]>`select distinct partition from auditlog.publish_log order by 1`).map(({ partition }) => partition)
  const read = (await sql<{ partition: number }[]>`select partition from inbox.position where last_seq_id is not null order by 1`).map(({ partition }) => partition)
  t.deepEqual({ used, read }, { used: [0, 1, 2, 3, 4, 5, 6], read: [0, 1, 2, 3, 4, 5, 6] })
})
