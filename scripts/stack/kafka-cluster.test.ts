import kafkajs, { type Admin } from 'kafkajs'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import { testOwnKafka } from '../../test/support/own-servers.ts'
import { until } from '../../test/support/until.ts'
import { embeddedCluster } from './kafka-cluster.ts'

const TOPIC = 'copied'

testOwnKafka('of three nodes any one may be killed: another leads, acks=all is still given, and the killed one comes back into the set', async (t) => {
  t.timeout(180_000)
  const directory = mkdtempSync(join(tmpdir(), 'deltapost-cluster-'))
  const cluster = await embeddedCluster({ directory, nodes: 3, log: t.log })
  t.teardown(async () => {
    await cluster.stop()
    rmSync(directory, { recursive: true, force: true })
  })
  const kafka = new kafkajs.Kafka({ brokers: cluster.brokers.split(','), retry: { retries: 10, initialRetryTime: 300 }, logLevel: kafkajs.logLevel.NOTHING })
  const admin = kafka.admin()
  const producer = kafka.producer({ createPartitioner: kafkajs.Partitioners.DefaultPartitioner })
  await Promise.all([admin.connect(), producer.connect()])
  t.teardown(async () => {
    await Promise.all([admin.disconnect(), producer.disconnect()])
  })
  await admin.createTopics({ topics: [{ topic: TOPIC, numPartitions: 1 }], waitForLeaders: false })
  const before = await until(async () => partitionOf(admin), { within: 30_000 })
  t.deepEqual([...before.replicas].sort(), [1, 2, 3])
  const { configEntries } = (await admin.describeConfigs({
    includeSynonyms: false, resources: [{ type: kafkajs.ConfigResourceTypes.TOPIC, name: TOPIC, configNames: ['min.insync.replicas'] }],
  })).resources[0]!
  t.is(configEntries[0]?.configValue, '2')
  const write = async (value: string): Promise<unknown> => producer.send({ topic: TOPIC, acks: -1, messages: [{ value }] })
  await write('before')

  const leader = cluster.nodes[before.leader - 1]!
  await leader.kill()
  await until(async () => write('while one is away'), { within: 60_000 })
  const during = await until(async () => partitionOf(admin), { within: 30_000 })
  t.not(during.leader, before.leader)
  await leader.start()
  await until(async () => (await partitionOf(admin))?.isr.length === 3, { within: 60_000, what: 'all copies are in sync again' })
  const [offsets] = await admin.fetchTopicOffsets(TOPIC)
  t.true(Number(offsets?.high) >= 2)
})

/** The only partition, once it has a leader. */
async function partitionOf(admin: Admin) {
  const { topics } = await admin.fetchTopicMetadata({ topics: [TOPIC] })
  return topics[0]?.partitions.find(({ leader }) => leader > 0)
}
