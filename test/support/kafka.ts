import { randomBytes } from 'node:crypto'
import kafkajs, { type Admin } from 'kafkajs'

import { given } from './given.ts'
import { until } from './until.ts'

/** The brokers of this test run, as kafkajs takes them. */
export function brokers(): string[] {
  return given('DELTAPOST_TEST_KAFKA').split(',')
}

/** A topic that no other test uses. */
export async function freshTopic(name: string, partitions: number): Promise<{ topic: string; drop: () => Promise<void> }> {
  const topic = `${name}.${process.pid}.${randomBytes(5).toString('hex')}`
  await administrate(async (admin) => createTopic(admin, topic, partitions))
  return { topic, drop: async () => administrate((admin) => admin.deleteTopics({ topics: [topic] })) }
}

/** Resolves when every partition has a leader; kafkajs' own waiting fails on a topic that metadata do not know yet. */
export async function createTopic(admin: Admin, topic: string, partitions: number): Promise<void> {
  await admin.createTopics({ topics: [{ topic, numPartitions: partitions }], waitForLeaders: false })
  await until(async () => {
    const { topics } = await admin.fetchTopicMetadata({ topics: [topic] })
    return topics[0]?.partitions.length === partitions && topics[0].partitions.every(({ leader }) => leader >= 0)
  }, { within: 30_000, what: `leaders of ${topic}` })
}

/** Something done as the broker's administrator, over a connection of its own. */
export async function administrate(task: (admin: Admin) => Promise<unknown>): Promise<void> {
  const kafka = new kafkajs.Kafka({
    brokers: brokers(),
    clientId: 'test-admin',
    connectionTimeout: 10_000,
    // Given in full, because kafkajs chooses other values when NODE_ENV is "test", which ava sets.
    retry: { retries: 8, initialRetryTime: 100, maxRetryTime: 2000 },
    logLevel: kafkajs.logLevel.NOTHING,
  })
  const admin = kafka.admin()
  await admin.connect()
  try {
    await task(admin)
  } finally {
    await admin.disconnect()
  }
}

/** max.message.bytes of a topic where nobody set it; the brokers of a test run take more. */
export const STOCK_LIMIT = 1_048_588

/** Sets the record limit of a topic, in bytes of a batch; resolves when the broker shows it. */
export async function setTopicLimit(topic: string, bytes: number): Promise<void> {
  const resource = { type: kafkajs.ConfigResourceTypes.TOPIC, name: topic }
  await administrate(async (admin) => {
    await admin.alterConfigs({ validateOnly: false, resources: [{ ...resource, configEntries: [{ name: 'max.message.bytes', value: String(bytes) }] }] })
    await until(async () => {
      const { resources } = await admin.describeConfigs({ includeSynonyms: false, resources: [{ ...resource, configNames: ['max.message.bytes'] }] })
      return resources[0]?.configEntries[0]?.configValue === String(bytes)
    })
  })
}
