import type { Consumer, EachBatchPayload, Kafka } from 'kafkajs'
import type { Log } from '../runtime/log.ts'
import { dismissPredecessors } from './predecessors.ts'

export type SuperviseParts = {
  kafka: Kafka
  topic: string
  group: string
  atOnce: number
  prepareTopic(): Promise<unknown>
  /** Called once partitions are assigned, each time. */
  ready(): void
  loop(seek: (topic: string, partition: number, offset: bigint) => void): {
    eachBatch(payload: EachBatchPayload): Promise<void>
    assigned(): void
  }
  log: Log
  signal: AbortSignal
}

/** Half a second to ten seconds between two lives of a consumer. */
const backOff = { first: 500, most: 10_000 }

/**
 * Keeps one kafkajs consumer alive until `signal` aborts.
 *
 * Its own restart is off: a TypeError in a handler ends it in silence, and a consumer that is told to disconnect while it
 * joins goes on as a zombie. Here a crash of any kind ends this instance, and a new one is built.
 */
export async function superviseConsumer(parts: SuperviseParts): Promise<void> {
  let failures = 0
  while (!parts.signal.aborted) {
    try {
      await parts.prepareTopic()
      if (parts.signal.aborted) return
      await oneLife(parts, () => { failures = 0 })
    } catch (error) {
      failures += 1
      // A new broker makes its coordinator at the first question for it: that is no loss.
      const expected = failures === 1 && error instanceof Error && error.name === 'KafkaJSGroupCoordinatorNotFound'
      if (!expected && (failures <= 2 || failures % 10 === 0)) parts.log.warn({ failures, error }, 'the consumer lost Kafka and joins again')
      await pause(Math.min(backOff.first * 2 ** (failures - 1), backOff.most), parts.signal)
    }
  }
}

async function oneLife(parts: SuperviseParts, joined: () => void): Promise<void> {
  const consumer = parts.kafka.consumer({
    groupId: parts.group,
    sessionTimeout: 6_000,
    rebalanceTimeout: 10_000,
    heartbeatInterval: 1_000,
    maxWaitTimeInMs: 100,
    minBytes: 1,
    // A batch of a relay must fit, or a fetch brings one partition only. All that a fetch brings is in memory until it is
    // applied: without the second limit, of 12 MB, a consumer took 500 MB and a quarter of its time to collect them.
    maxBytesPerPartition: 1 << 20,
    maxBytes: 4 << 20,
    allowAutoTopicCreation: false,
    // A partition that had no leader is looked for again after this; the default is five minutes.
    metadataMaxAge: 10_000,
    // Five: a broker that has just started answers the first look for a coordinator with 'not available'.
    retry: { retries: 5, initialRetryTime: 300, restartOnFailure: () => Promise.resolve(false) },
  })
  const loop = parts.loop((topic, partition, offset) => consumer.seek({ topic, partition, offset: offset.toString() }))
  const over = new AbortController() // ends what this life listens to
  const { promise: crashed, reject } = Promise.withResolvers<never>()
  crashed.catch(() => undefined)
  const { promise: stopped, resolve: stop } = Promise.withResolvers<void>()
  parts.signal.addEventListener('abort', () => stop(), { once: true, signal: over.signal })
  consumer.on(consumer.events.CRASH, ({ payload }) => reject(payload.error))
  const joining = new Promise<void>((resolve) => consumer.on(consumer.events.GROUP_JOIN, () => {
    loop.assigned()
    joined()
    parts.ready()
    resolve()
  }))
  const joinedOrOver = new AbortController()
  void joining.then(() => joinedOrOver.abort())
  void dismissPredecessors({ ...parts, signal: joinedOrOver.signal })
  try {
    await consumer.connect()
    await consumer.subscribe({ topic: parts.topic, fromBeginning: true })
    await consumer.run({
      autoCommit: false,
      eachBatchAutoResolve: false,
      partitionsConsumedConcurrently: parts.atOnce,
      eachBatch: (payload) => loop.eachBatch(payload),
    })
    await Promise.race([crashed, stopped])
  } finally {
    // Told to disconnect before it has joined, kafkajs would join all the same.
    await Promise.race([joining, crashed.catch(() => undefined), pause(3_000)])
    await disconnect(consumer, parts.log)
    over.abort()
    joinedOrOver.abort()
  }
}

async function disconnect(consumer: Consumer, log: Log): Promise<void> {
  const ended = consumer.disconnect().catch((error: unknown) => log.debug({ error }, 'the consumer did not disconnect cleanly'))
  await Promise.race([ended, pause(5_000)])
}

function pause(ms: number, signal?: AbortSignal): Promise<void> {
  const over = new AbortController()
  return new Promise<void>((resolve) => {
    const timer = setTimeout(resolve, ms)
    signal?.addEventListener('abort', () => { clearTimeout(timer); resolve() }, { once: true, signal: over.signal })
  }).finally(() => over.abort())
}
