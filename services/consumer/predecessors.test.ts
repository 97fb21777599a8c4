import { hostname } from 'node:os'
import test from 'ava'
import { pino } from 'pino'
import { startRole } from '../../scripts/commands/role-process.ts'
import { freshDatabase } from '../../test/support/database.ts'
import { administrate, brokers, freshTopic } from '../../test/support/kafka.ts'
import { readConfig } from '../runtime/config.ts'
import { runConsumer } from './main.ts'
import { isGone, memberName } from './predecessors.ts'

test('only a consumer of this machine whose process is gone is taken for dead', (t) => {
  const [host, gone, lives] = [hostname(), (): boolean => false, (): boolean => true]
  t.true(isGone(`deltapost-${host}:4711:abc`, gone))
  t.false(isGone(`deltapost-${host}:4711:abc`, lives))
  t.true(isGone(`deltapost-${host}:${process.pid}:0`, lives), 'a container: the process before this one had its number')
  t.false(isGone(memberName(), gone), 'this process itself')
  t.false(isGone(`deltapost-other${host}:4711:abc`, gone), 'of another machine nobody here knows whether it lives')
  t.false(isGone(`deltapost-${host}`, gone))
  t.false(isGone('flink-4711', gone))
})

test('a consumer that was killed is taken out of its group by the next one on its machine, which does not wait for its session', async (t) => {
  const database = await freshDatabase()
  const { topic, drop } = await freshTopic('predecessor', 2)
  const environment = { DATABASE_URL: database.url, KAFKA_BROKERS: brokers().join(), TOPIC: topic, CONSUMER_GROUP: topic, TOPIC_PARTITIONS: '2', PATH: process.env['PATH'] }
  t.timeout(120_000)
  t.teardown(async () => {
    await database.drop()
    await drop()
  })
  const killed = startRole('consumer', environment, () => undefined)
  await killed.ready
  const before = await membersOf(topic)
  process.kill(killed.pid, 'SIGKILL')
  await killed.exited
  t.deepEqual(await membersOf(topic), before, 'the broker does not know that it is gone')

  const said: { msg: string; member?: string }[] = []
  const log = pino({ level: 'info' }, { write: (line: string) => said.push(JSON.parse(line) as (typeof said)[number]) })
  const { promise: ready, resolve } = Promise.withResolvers<void>()
  const stopping = new AbortController()
  const ended = runConsumer({ config: readConfig(environment), log, signal: stopping.signal, onReady: resolve })
  t.teardown(async () => {
    stopping.abort()
    await ended
  })
  await ready
  t.deepEqual(said.filter(({ member }) => member !== undefined).map(({ member }) => member), before)
  const after = await membersOf(topic)
  t.deepEqual(after.map((member) => member.startsWith(memberName())), [true])
})

async function membersOf(group: string): Promise<string[]> {
  let members: string[] = []
  await administrate(async (admin) => {
    const { groups } = await admin.describeGroups([group])
    members = groups.flatMap((one) => one.members.map(({ memberId }) => memberId))
  })
  return members
}
