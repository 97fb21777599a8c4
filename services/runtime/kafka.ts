import { hostname } from 'node:os'
import kafkajs from 'kafkajs'
import type { Admin, Kafka, LogEntry, Message, Producer } from 'kafkajs'
import { batchMessage, noDelaySocket, patchKafkajs } from './kafka-patches.ts'
import type { Log } from './log.ts'
import { encodeBatch } from './record-batch.ts'

/** How a consumer of this project is opened; the reasons are with each value. */
export const CONSUMER_TIMES = {
  /** A consumer that died gives its partitions up after this; the broker's least is 6 s. */
  sessionTimeout: 6_000,
  heartbeatInterval: 1_500,
  rebalanceTimeout: 15_000,
  /** kafkajs sleeps this long wherever it has nothing to fetch, so pausing, seeking and stopping last as long. */
  maxWaitTimeInMs: 100,
} as const

/** The outer loops decide when to try again, so kafkajs itself tries twice. Given in full: NODE_ENV=test changes the defaults. */
export const KAFKA_RETRY = {
  retries: 1,
  initialRetryTime: 100,
  maxRetryTime: 1_000,
  factor: 0.2,
  multiplier: 2,
  restartOnFailure: async () => false,
} as const

/** How this machine's clients call themselves to the broker. */
export function clientId(): string {
  return `deltapost-${hostname()}`
}

/** Milliseconds within which the broker answers; also what bounds a send at a stop. */
const REQUEST_TIMEOUT = 10_000

/** The topic is missing and the broker does not let us create it. */
export class TopicRefused extends Error {
  readonly code = 'TOPIC_REFUSED'
  readonly remedy: string
  readonly retry = true

  constructor(topic: string, partitions: number, options: { cause?: unknown }) {
    super(`the topic ${topic} is missing and the broker does not let this user create it`, options)
    this.remedy = `kafka-topics.sh --create --topic ${topic} --partitions ${partitions}`
  }
}

/** kafkajs resolved a send although the broker did not acknowledge its partition (a leader moved: kafkajs 1798). */
export class SendUnconfirmed extends Error {
  readonly code = 'SEND_UNCONFIRMED'
  readonly remedy = 'nothing: the events are read and sent again'
  readonly retry = true
}

/** A client of the brokers with every guard that kafkajs needs; connects when it is used. */
export function openKafka(brokers: readonly string[], log: Log, name = clientId()): Kafka {
  patchKafkajs()
  return new kafkajs.Kafka({
    // With the machine's name, so that a group's members and the broker's logs tell whose they are.
    clientId: name,
    brokers: [...brokers],
    connectionTimeout: 5_000, // the default of 1 s fails on a loaded machine
    authenticationTimeout: 10_000,
    requestTimeout: REQUEST_TIMEOUT,
    enforceRequestTimeout: true,
    retry: KAFKA_RETRY,
    socketFactory: noDelaySocket,
    logLevel: log.isLevelEnabled('debug') ? kafkajs.logLevel.INFO : kafkajs.logLevel.WARN,
    logCreator: () => logOf(log),
  })
}

type Cluster = {
  connect: () => Promise<void>
  disconnect: () => Promise<void>
  findGroupCoordinator: (group: { groupId: string }) => Promise<{ leaveGroup: (member: { groupId: string; memberId: string }) => Promise<unknown> }>
}

/** Takes a member out of its group, as it does itself when it stops. kafkajs has the request and no function for it. */
export async function removeMember(kafka: Kafka, group: string, memberId: string): Promise<void> {
  const makes = Object.getOwnPropertySymbols(kafka).find(({ description }) => description === 'private:Kafka:createCluster')
  if (makes === undefined) throw new Error('kafkajs has no createCluster any more')
  const cluster = (kafka as unknown as Record<symbol, (options: object) => Cluster>)[makes]!({ allowAutoTopicCreation: false, metadataMaxAge: 60_000 }) // not in its types
  await cluster.connect()
  try {
    const coordinator = await cluster.findGroupCoordinator({ groupId: group })
    await coordinator.leaveGroup({ groupId: group, memberId })
  } finally {
    await cluster.disconnect()
  }
}

/**
 * A connected producer. Not idempotent: kafkajs rolls its sequence back after an ambiguous failure, and a broker may then
 * take new records of the same count for a repetition and drop them. Repetitions are harmless, the identity tells them.
 */
export async function openProducer(kafka: Kafka): Promise<Producer> {
  const producer = kafka.producer({
    allowAutoTopicCreation: false,
    idempotent: false,
    createPartitioner: () => ({ message }) => message.partition ?? 0,
    retry: KAFKA_RETRY,
    metadataMaxAge: 60_000,
  })
  await producer.connect()
  return producer
}

/** A message for one partition; keys and values are bytes, so that kafkajs encodes them once. */
export type Outgoing = Pick<Message, 'headers'> & { key: Buffer; value: Buffer; timestamp: string }

/** What one send has for one partition of its topic. */
export type Share = { partition: number; messages: readonly Outgoing[] }

/**
 * Sends to partitions of one topic, each named once, and returns the offset of each one's first message; the others follow
 * it. Where it rejects, any of them may have been written.
 *
 * Throws SendUnconfirmed unless the answers name every partition without an error: with several, kafkajs keeps the answer
 * of a former leader and never writes what moved to it.
 */
export async function checkedSend(producer: Pick<Producer, 'send'>, topic: string, shares: readonly Share[]): Promise<bigint[]> {
  const answers = await producer.send({
    topic,
    acks: -1,
    timeout: REQUEST_TIMEOUT,
    messages: shares.map(({ partition, messages }) => batchMessage(partition, encodeBatch(messages))),
  })
  return shares.map(({ partition, messages }) => {
    const answer = answers.find((one) => one.topicName === topic && one.partition === partition && one.errorCode === 0)
    if (answer?.baseOffset === undefined || BigInt(answer.baseOffset) < 0n) {
      throw new SendUnconfirmed(`the broker did not acknowledge ${messages.length} records on ${topic}/${partition}`)
    }
    return BigInt(answer.baseOffset)
  })
}

/** True where the broker refused a batch for its size: the same records pass in smaller batches, one record never will. */
export function isTooLarge(error: unknown): boolean {
  for (let at: unknown = error; at instanceof Error; at = at.cause) {
    if ('type' in at && (at.type === 'MESSAGE_TOO_LARGE' || at.type === 'RECORD_LIST_TOO_LARGE')) return true
  }
  return false
}

/** Something asked or done over an administrator's connection of its own. */
export async function withAdmin<T>(kafka: Kafka, work: (admin: Admin) => Promise<T>): Promise<T> {
  const admin = kafka.admin({ retry: KAFKA_RETRY })
  await admin.connect()
  try {
    return await work(admin)
  } finally {
    await admin.disconnect()
  }
}

/**
 * The number of partitions of a topic; a missing topic is created with `partitions` and the broker's default replication.
 *
 * An existing topic is taken as it is. Throws TopicRefused where creating is not allowed.
 */
export async function ensureTopic(kafka: Kafka, topic: string, partitions: number, log: Log): Promise<number> {
  return withAdmin(kafka, async (admin) => {
    const there = await partitionsOf(admin, topic, 'some')
    if (there !== undefined) return there
    try {
      // kafkajs's own waiting throws where the broker that is asked has not heard of the new topic yet.
      const created = await admin.createTopics({ topics: [{ topic, numPartitions: partitions }], waitForLeaders: false })
      if (created) log.info({ topic, partitions }, 'topic created')
    } catch (error) {
      if (/AUTHORIZATION|POLICY_VIOLATION/.test(typeOf(error))) throw new TopicRefused(topic, partitions, { cause: error })
      throw error
    }
    // Fifteen seconds: a loaded broker shows a new topic after more than five.
    for (let tries = 0; tries < 150; tries++) {
      const now = await partitionsOf(admin, topic, 'all')
      if (now !== undefined) return now
      await new Promise((resolve) => setTimeout(resolve, 100))
    }
    throw new TopicRefused(topic, partitions, { cause: new Error('the broker said it was created, but does not show it') })
  })
}

/**
 * The largest record batch the topic takes, in bytes (its max.message.bytes; 1,048,588 where nobody set one). Undefined
 * where the broker answers with an error, as to a user without the right to describe the topic's settings.
 */
export async function topicLimit(kafka: Kafka, topic: string, log: Log): Promise<number | undefined> {
  return withAdmin(kafka, async (admin) => {
    try {
      const { resources } = await admin.describeConfigs({
        includeSynonyms: false,
        resources: [{ type: kafkajs.ConfigResourceTypes.TOPIC, name: topic, configNames: ['max.message.bytes'] }],
      })
      const text = resources[0]?.configEntries.find(({ configName }) => configName === 'max.message.bytes')?.configValue
      return text !== undefined && /^\d+$/.test(text) ? Number(text) : undefined
    } catch (error) {
      if (typeOf(error) === '') throw error
      log.debug({ topic, error }, 'the settings of the topic could not be read')
      return undefined
    }
  })
}

/** What a record batch has besides its records: 61 bytes. kafkajs sends one batch per partition and send. */
const BATCH_BYTES = 61
/** Above what a record has besides key, value and headers (at most 36), and each header besides its texts (at most 10). */
const RECORD_BYTES = 36
const HEADER_BYTES = 10

/** Bytes, or a little more, of a batch of these messages, as the broker counts them against max.message.bytes. */
export function batchBytes(messages: readonly Pick<Outgoing, 'key' | 'value' | 'headers'>[]): number {
  return messages.reduce((sum, { key, value, headers }) => sum + recordBytes(key, headers) + value.length, BATCH_BYTES)
}

/** How many bytes a value may have that goes alone, with this key and these headers, in a batch of `limit` bytes. */
export function roomFor(limit: number, key: Buffer, headers: Outgoing['headers']): number {
  return limit - BATCH_BYTES - recordBytes(key, headers)
}

function recordBytes(key: Buffer, headers: Outgoing['headers']): number {
  const texts = Object.entries(headers ?? {}).map(([name, value]) => HEADER_BYTES + Buffer.byteLength(name) + Buffer.byteLength(String(value)))
  return RECORD_BYTES + key.length + texts.reduce((sum, bytes) => sum + bytes, 0)
}

/** Undefined where the topic is missing, or too new for its partitions to have a leader; an older one may lack some for long. */
async function partitionsOf(admin: Admin, topic: string, led: 'some' | 'all'): Promise<number | undefined> {
  try {
    const { topics } = await admin.fetchTopicMetadata({ topics: [topic] })
    const found = topics.find(({ name }) => name === topic)?.partitions ?? []
    const leading = found.filter(({ leader }) => leader >= 0).length
    return leading === 0 || (led === 'all' && leading < found.length) ? undefined : found.length
  } catch (error) {
    if (/^(UNKNOWN_TOPIC_OR_PARTITION|LEADER_NOT_AVAILABLE)$/.test(typeOf(error))) return undefined
    throw error
  }
}

/** The broker's name for an error; createTopics wraps one error a topic. */
function typeOf(error: unknown): string {
  if (!(error instanceof Error)) return ''
  if ('errors' in error && Array.isArray(error.errors)) return error.errors.map(typeOf).join(' ')
  return 'type' in error && typeof error.type === 'string' ? error.type : ''
}

const REPEAT_AFTER = 30_000

// A topic is asked for before it is created, by two roles at once; a new broker makes its coordinator at the first
// question for it; a crash is told by whoever supervises the consumer.
const EXPECTED = /does not host this topic-partition|Topic creation errors|group coordinator is not available|coordinator is loading|rebalancing/i

/**
 * kafkajs's own log lines. Its errors are warnings here: the loops log what matters, once per change of state. The same
 * line comes at most every 30 seconds; numbers in it (ids, ports of a try) do not make it another one.
 */
function logOf(log: Log): (entry: LogEntry) => void {
  const seen = new Map<string, number>()
  return ({ namespace, level, log: entry }) => {
    const { message, error, broker }: { message: string; error?: unknown; broker?: unknown } = entry
    const line = `${namespace} ${message.replace(/\d+/g, '#')}`
    const now = performance.now()
    if (now - (seen.get(line) ?? -REPEAT_AFTER) < REPEAT_AFTER) return
    if (seen.size > 200) seen.clear()
    seen.set(line, now)
    const fields = { kafkajs: namespace, ...(typeof broker === 'string' ? { broker } : {}), ...(typeof error === 'string' ? { reason: error } : {}) }
    const expected = /^Crash/.test(message) || (typeof error === 'string' && EXPECTED.test(error))
    if (level <= kafkajs.logLevel.WARN && !expected) log.warn(fields, message)
    else log.debug(fields, message)
  }
}
