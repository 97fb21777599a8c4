import kafkajs, { type Admin, type Kafka } from 'kafkajs'

import { CONSUMER_TIMES } from '../../../services/runtime/kafka.ts'
import { type Fault, insist, mend, type Rig, wait } from './fault.ts'

const REBALANCING_MS = 8_000
const MEMBER_MS = 1_000
const JOIN_MS = 10_000

/** A member that is none of ours joins the group and leaves it again and again; it reads and never commits. */
const rebalance: Fault = {
  name: 'rebalance', kind: 'kafka',
  async happen(rig) {
    const brokers = await brokersOf(rig)
    const kafka = new kafkajs.Kafka({ clientId: 'torture', brokers, retry: { retries: 2, initialRetryTime: 100 }, logLevel: kafkajs.logLevel.NOTHING })
    let joined = 0
    for (const end = performance.now() + REBALANCING_MS; performance.now() < end; ) joined += await joinAndLeave(rig, kafka)
    if (joined === 0) rig.noted('rebalance: nobody joined')
  },
}

async function brokersOf(rig: Rig): Promise<string[]> {
  let brokers: string[] = []
  await insist(rig, () => rig.admin(async (admin) => {
    brokers = (await admin.describeCluster()).brokers.map(({ host, port }) => `${host}:${port}`)
  }))
  return brokers
}

async function joinAndLeave(rig: Rig, kafka: Kafka): Promise<0 | 1> {
  const consumer = kafka.consumer({ groupId: rig.group, sessionTimeout: 6_000, rebalanceTimeout: 10_000, heartbeatInterval: 500, retry: { retries: 0, restartOnFailure: async () => false } })
  const { promise, resolve } = Promise.withResolvers<'joined' | 'failed'>()
  consumer.on(consumer.events.GROUP_JOIN, () => resolve('joined'))
  consumer.on(consumer.events.CRASH, () => resolve('failed'))
  try {
    await consumer.connect()
    await consumer.subscribe({ topic: rig.topic, fromBeginning: false })
    consumer.run({ autoCommit: false, eachMessage: async () => undefined }).catch(() => resolve('failed'))
    // Told to leave before it has joined, it would stay.
    const outcome = await Promise.race([promise, wait(rig, JOIN_MS).then(() => 'failed' as const)])
    if (outcome === 'joined') consumer.pause([{ topic: rig.topic }])
    await wait(rig, MEMBER_MS)
    return outcome === 'joined' ? 1 : 0
  } finally {
    await consumer.disconnect().catch(() => undefined)
  }
}

/**
 * What Kafka knows of the group's offsets is deleted, or set to the beginning or the end, while all its members are frozen
 * for so long that it is empty. The consumers' own positions decide.
 */
const offsetsDeleted: Fault = {
  name: 'offsets-deleted', kind: 'kafka',
  async happen(rig) {
    const consumers = rig.roles.filter(({ name }) => name.startsWith('consumer'))
    const how = rig.random.below(3)
    for (const role of consumers) role.freeze()
    try {
      await wait(rig, CONSUMER_TIMES.sessionTimeout)
      await insist(rig, () => rig.admin((admin) => how === 0 ? admin.deleteGroups([rig.group]) : admin.resetOffsets({ groupId: rig.group, topic: rig.topic, earliest: how === 1 })))
    } finally {
      for (const role of consumers) role.thaw()
    }
  },
}

const PARTITIONS_ADDED = 2
const MOST_PARTITIONS = 10

/** Two more, as often as there is room: the lanes of a relay that knows and of one that does not go to different partitions. */
const partitionsAdded: Fault = {
  name: 'partitions-added', kind: 'kafka',
  async happen(rig) {
    await insist(rig, () => rig.admin(async (admin) => {
      const count = (await partitionsOf(admin, rig.topic)).length + PARTITIONS_ADDED
      if (count > MOST_PARTITIONS) rig.noted('partitions-added: there are enough')
      else await admin.createPartitions({ topicPartitions: [{ topic: rig.topic, count }] })
    }))
    await insist(rig, () => rig.admin(async (admin) => {
      if ((await partitionsOf(admin, rig.topic)).some(({ leader }) => leader < 0)) throw new Error('a partition has no leader yet')
    }))
  },
}

async function partitionsOf(admin: Admin, topic: string) {
  const { topics } = await admin.fetchTopicMetadata({ topics: [topic] })
  return topics[0]?.partitions ?? []
}

const UNWRITABLE_MS = 5_000
/** Times of records must lie so close to the broker's, which none does: a fault of the topic, not of any record. */
const UNWRITABLE = ['message.timestamp.before.max.ms', 'message.timestamp.after.max.ms'].map((name) => ({ name, value: '0' }))

/** The error topic takes no record. (With a small max.message.bytes each record would rightly be given up, after its attempts.) */
const errorTopicUnwritable: Fault = {
  name: 'error-topic-unwritable', kind: 'kafka',
  async happen(rig) {
    try {
      await insist(rig, () => rig.admin((admin) => configure(admin, rig.errorTopic, UNWRITABLE)))
      await wait(rig, UNWRITABLE_MS)
    } finally {
      await mend(rig, () => rig.admin((admin) => configure(admin, rig.errorTopic, [])))
    }
  },
}

/** Its settings are these and else the broker's. */
async function configure(admin: Admin, topic: string, configEntries: { name: string; value: string }[]): Promise<void> {
  await admin.alterConfigs({ validateOnly: false, resources: [{ type: kafkajs.ConfigResourceTypes.TOPIC, name: topic, configEntries }] })
}

const MOVES = 4
const MOVED_MS = 15_000

/** Partitions lose the broker that leads them, one after the other, and get it back as the last of their copies. */
const leaderMove: Fault = {
  name: 'leader-move', kind: 'kafka',
  async happen(rig) {
    if (rig.kafka.length < 3) {
      rig.noted('leader-move: there is nobody to lead')
      return
    }
    for (let move = 0; move < MOVES; move += 1) await moveLeader(rig)
  },
}

async function moveLeader(rig: Rig): Promise<void> {
  await rig.admin(async (admin) => {
    const { partitionId, leader, replicas } = rig.random.pick(await partitionsOf(admin, rig.topic))
    const others = replicas.filter((replica) => replica !== leader)
    const now = async (): Promise<{ leader: number; copies: number }> => {
      const found = (await partitionsOf(admin, rig.topic)).find((partition) => partition.partitionId === partitionId)
      return { leader: found?.leader ?? -1, copies: found?.isr.length ?? 0 }
    }
    try {
      await assign(admin, rig.topic, partitionId, others)
      await insist(rig, async () => {
        const { leader: found } = await now()
        if (found < 0 || found === leader) throw new Error(`partition ${partitionId} is still led by ${leader}`)
      }, MOVED_MS)
    } finally {
      await mend(rig, () => assign(admin, rig.topic, partitionId, [...others, leader]))
    }
    await insist(rig, async () => {
      const { copies } = await now()
      if (copies < replicas.length) throw new Error(`partition ${partitionId} has ${copies} copies in sync`)
    }, MOVED_MS)
  })
}

function assign(admin: Admin, topic: string, partition: number, replicas: number[]): Promise<void> {
  return admin.alterPartitionReassignments({ topics: [{ topic, partitionAssignment: [{ partition, replicas }] }] })
}

export const KAFKA: readonly Fault[] = [rebalance, offsetsDeleted, partitionsAdded, errorTopicUnwritable, leaderMove]
