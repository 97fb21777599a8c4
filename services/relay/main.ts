import { ack, discard } from '../../outbox/ack.ts'
import { nextEvents } from '../../outbox/pending.ts'
import { refuse } from '../../outbox/refused.ts'
import { passOver } from '../../outbox/waiting.ts'
import type { Config } from '../runtime/config.ts'
import { openKafka } from '../runtime/kafka.ts'
import type { Log } from '../runtime/log.ts'
import { lateAfter } from '../runtime/shutdown.ts'
import { openSlot } from '../runtime/slot.ts'
import type { Plans } from '../runtime/slot.ts'
import type { Wake } from '../runtime/wake.ts'
import { openLanes, RENEW_EVERY } from './lanes.ts'
import { relayLoop } from './loop.ts'
import { openPublisher } from './publish.ts'
import { openBell, repeat } from './repeat.ts'
import { upkeep } from './upkeep.ts'

/** One read: more rows are not faster, and 8 MB keep a relay with slow brokers small. */
const READ = { rows: 2_000, bytes: 8 << 20 }

/**
 * With so few in flight a read is mostly planning, and its plan is kept. With more each run is planned: only with the
 * positions before it does the planner hash them, and looking through thousands for each event would take 100 ms.
 */
const FEW = 256

/** One look over events that wait: 4 ms a thousand, and the other lanes are read in between. */
const PASS = 4_000

/**
 * A relay, from its first claim to its last release. Resolves after the signal, when what was sent is acked and the lanes
 * are given back, at the latest after config.shutdownTimeout; a database or broker that is away is waited for.
 */
export async function runRelay(parts: { config: Config; log: Log; signal: AbortSignal; wake: Wake; onReady?: () => void }): Promise<void> {
  const { config, log, signal } = parts
  const { holder } = config
  const slot = (name: string, deadline = 15_000, plans?: Plans) => openSlot({ url: config.databaseUrl, name: `relay ${name}`, deadline, ...(plans && { plans }) })
  // A read of 100 MB takes seconds; one that is not answered holds up all lanes, and they are renewed over another connection.
  const slots = {
    read: slot('read', 20_000), readFew: slot('read few', 20_000, 'by index'), ack: slot('ack', 15_000, 'by index'),
    lanes: slot('lanes', 5_000), floors: slot('floors'), retries: slot('retries'), refuse: slot('refuse'), discard: slot('discard'),
  }
  const course = { maxRetries: config.maxRetries, backoff: config.retryBackoff, errorTopic: config.errorTopic, recipients: config.errorRecipients }
  const bell = openBell()
  const publisher = openPublisher({ kafka: openKafka(config.kafkaBrokers, log), partitions: config.topicPartitions, log })
  const lanes = openLanes({ slot: slots.lanes, holder, onClaim: bell.poke, onStepBack: () => keep.steppedBack(), signal, log })
  const keep = upkeep({ slots, holder, lanes: lanes.held, onDue: bell.poke })
  const claimed = Promise.withResolvers<void>()
  const reached = Promise.withResolvers<void>()
  const ended = new AbortController()
  const hurry = new AbortController()
  const tasks = [
    // Until the very end: the lanes of what is still being acked must stay ours.
    repeat({ task: () => lanes.tick().then(claimed.resolve), everyMs: RENEW_EVERY, what: 'keeping lanes', signal: ended.signal, log }),
    repeat({ task: keep.floors, everyMs: 1_000, what: 'raising floors', signal, log }),
    repeat({ task: keep.retries, everyMs: 1_000, what: 'putting retries into the outbox', signal, log }),
    repeat({ task: () => publisher.recount(config.topic).then(reached.resolve), everyMs: 60_000, what: 'asking for partitions', signal, log }),
  ]
  void Promise.all([claimed.promise, reached.promise]).then(() => parts.onReady?.())
  void lateAfter(signal, config.shutdownTimeout * 0.6).then(() => hurry.abort())
  const late = lateAfter(signal, config.shutdownTimeout * 0.85)

  await relayLoop({
    ...publisher,
    lanes: lanes.held,
    read: (held, rows = READ.rows) => {
      const flying = held.reduce((sum, { inflight }) => sum + inflight.size, 0)
      return (flying > FEW ? slots.read : slots.readFew).run((sql) => nextEvents(sql, held, { ...READ, rows }))
    },
    passOver: (held) => slots.read.run((sql) => passOver(sql, held, PASS)),
    proven: keep.proven,
    ack: (held, published) => slots.ack.run((sql) => ack(sql, holder, held, published)),
    refuse: (held, refused) => slots.refuse.run((sql) => refuse(sql, holder, held, refused, course)),
    discard: (held, events) => slots.discard.run((sql) => discard(sql, holder, held, events)),
    wake: parts.wake, bell, signal, hurry: hurry.signal, log,
  })
  ended.abort()
  await Promise.race([Promise.all(tasks)
    .then(lanes.giveBack).catch((error: unknown) => log.warn({ error }, 'could not give lanes back; their leases run out'))
    .then(publisher.close).catch((error: unknown) => log.debug({ error }, 'closing the producer')), late])
  await Promise.race([Promise.all(Object.values(slots).map((one) => one.close())), late])
}
