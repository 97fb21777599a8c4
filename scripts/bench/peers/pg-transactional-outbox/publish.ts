import { createRequire } from 'node:module'
import { join } from 'node:path'
import kafkajs from 'kafkajs'

/**
 * The peer's process: its replication listener with a handler that publishes. Started by the bench with what it needs in
 * the environment; it says when it listens and, with each batch that is acknowledged, how long after they were due.
 */
type Message = { aggregateId: string; payload: unknown; metadata: { at: number; due: number } }
type Library = {
  initializeReplicationMessageListener: (config: object, handler: { handle: (message: Message) => Promise<void> }, logger: object, strategies: object) => [() => Promise<void>]
  createReplicationSegmentMutexConcurrencyController: () => object
}

const told = (...words: unknown[]): void => console.error(new Date().toISOString(), ...words)
/** A commit is in the log that it reads before other sessions see the row, so now and then its look-up finds none; then it goes on. */
const warned = (...words: unknown[]): void => {
  told(...words)
  if (words.some((word) => String(word).includes('MESSAGE_NOT_FOUND'))) process.send?.({ lost: true })
}
const quiet = (): void => undefined
const given = (name: string): string => process.env[name] ?? ''
const library = createRequire(join(given('PACKAGE_FOLDER'), 'package.json'))('pg-transactional-outbox') as Library // the pinned version of the lock file
const topic = given('TOPIC')
const partitions = Number(given('PARTITIONS'))
const producer = new kafkajs.Kafka({ brokers: given('KAFKA_BROKERS').split(','), logLevel: kafkajs.logLevel.NOTHING }).producer({ allowAutoTopicCreation: false })

type Waiting = { message: Message; done: () => void; failed: (error: unknown) => void }
let waiting: Waiting[] = []

/** Its handlers come one by one; those of one turn of the event loop go in one request, which is ours to its advantage. */
async function publish(message: Message): Promise<void> {
  return new Promise((done, failed) => {
    if (waiting.push({ message, done, failed }) === 1) setImmediate(() => void send())
  })
}

async function send(): Promise<void> {
  const batch = waiting
  waiting = []
  try {
    await producer.send({
      topic, acks: -1,
      messages: batch.map(({ message: { aggregateId, payload, metadata } }) => ({
        key: aggregateId, partition: Number(aggregateId) % partitions, value: JSON.stringify(payload), headers: { at: String(metadata.at) },
      })),
    })
    const now = performance.timeOrigin + performance.now()
    process.send?.({ late: batch.map(({ message }) => now - message.metadata.due / 1_000) })
    for (const { done } of batch) done()
  } catch (error) {
    for (const { failed } of batch) failed(error)
  }
}

await producer.connect()
const [shutdown] = library.initializeReplicationMessageListener(
  {
    outboxOrInbox: 'outbox',
    dbListenerConfig: { connectionString: given('DATABASE_URL') },
    dbHandlerConfig: { connectionString: given('DATABASE_URL'), max: Number(given('CONNECTIONS')) },
    settings: {
      dbSchema: 'public', dbTable: 'outbox', dbPublication: given('SLOT'), dbReplicationSlot: given('SLOT'),
      enableMaxAttemptsProtection: false, enablePoisonousMessageProtection: false,
      messageCleanupIntervalInMs: 0, messageProcessingTimeoutInMs: 600_000,
    },
  },
  { handle: publish },
  { fatal: told, error: told, warn: warned, info: quiet, debug: quiet, trace: quiet, silent: quiet, level: 'warn' },
  { concurrencyStrategy: library.createReplicationSegmentMutexConcurrencyController() },
)
process.send?.({ ready: true })
// The bench closes the channel when it is done, and however it ends.
process.once('disconnect', () => {
  void Promise.allSettled([shutdown(), producer.disconnect()]).then(() => process.exit(0))
  setTimeout(() => process.exit(1), 5_000).unref()
})
