import { keepRejected } from '../../outbox/rejected.ts'
import type { Config } from '../runtime/config.ts'
import { ensureTopic, openKafka } from '../runtime/kafka.ts'
import type { Log } from '../runtime/log.ts'
import { lateAfter } from '../runtime/shutdown.ts'
import { openSlot } from '../runtime/slot.ts'
import { openLending } from './lending.ts'
import { consumerLoop } from './loop.ts'
import { besideShipping } from './receipts.ts'
import { memberName } from './predecessors.ts'
import { openRelations } from './relations.ts'
import { openRounds } from './rounds.ts'
import { superviseConsumer } from './supervise.ts'
import { tendParked } from './tend.ts'

export type ConsumerParts = {
  config: Config
  log: Log
  signal: AbortSignal
  /** Called when partitions are assigned for the first time. */
  onReady?: () => void
}

/** Calls of the apply at the same time: more than the cores of Postgres gain nothing. */
const atOnce = 4

/** Partitions of which records are handed over at the same time, so that one call has those of many. */
const PARTITIONS_AT_ONCE = 64

/** None: only what waits for the target has a limit (inbox.effect), and its relation stops. A wait for our own rows ends with the deadline. */
const lockTimeout = 0

/**
 * The consumer: reads the topic as a member of its group and applies each change once, until `signal` aborts. What is then still at work
 * shortly before config.shutdownTimeout is cut off, and repeated after the next start.
 */
export async function runConsumer({ config, log, signal, onReady }: ConsumerParts): Promise<void> {
  const late = lateAfter(signal, config.shutdownTimeout * 0.85)
  const kafka = openKafka(config.kafkaBrokers, log, memberName())
  const url = config.targetDatabaseUrl ?? config.databaseUrl
  const slots = Array.from({ length: atOnce }, (_, at) => openSlot({ url, name: `consumer ${at + 1}`, deadline: 60_000, lockTimeout }))
  const lending = openLending(slots)
  const tendSlot = openSlot({ url, name: 'consumer tend', deadline: 60_000, lockTimeout })
  const relations = openRelations({ source: config.source, destination: config.destination, autoCreate: config.autoCreate, log })
  const apply = openRounds(lending, atOnce, { relations, clockTolerance: config.clockTolerance, course: config, destination: config.destination, log })
  const tending = tendParked({ slot: tendSlot, relations, clockTolerance: config.clockTolerance, course: config, log, signal })
  try {
    const applying = besideShipping({ config, log, signal }, (signal) => superviseConsumer({
      kafka, log, signal, topic: config.topic, group: config.consumerGroup, atOnce: PARTITIONS_AT_ONCE,
      ready: () => onReady?.(),
      prepareTopic: () => ensureTopic(kafka, config.topic, config.topicPartitions, log),
      loop: (seek) => consumerLoop({
        group: config.consumerGroup, holder: config.holder, slots: lending, apply, seek, log,
        keepForeign: (slot, holding, record, foreign) => slot.run(async (sql) => {
          await keepRejected(sql, {
            path: `kafka:${holding.topic}/${holding.partition}/${record.offset}`, headers: {},
            body: record.value ?? Buffer.alloc(0), reason: foreign.reason, detail: 'a record on the topic that is not a change',
          })
        }),
      }),
    }))
    await Promise.race([applying.then(() => tending), late])
  } finally {
    await Promise.all([...slots, tendSlot].map((slot) => slot.close(config.shutdownTimeout * 0.05)))
  }
}
