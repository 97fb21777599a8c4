import type { EachBatchPayload } from 'kafkajs'
import type { Log } from '../runtime/log.ts'

/** Milliseconds between commits to Kafka: each takes the broker as long as a fetch, and only lag tools look at them. */
const EVERY = 1_000

/** Called behind a batch that is applied. Rejects with what Kafka says of the group where it commits at once. */
export type Mirror = (payload: Pick<EachBatchPayload, 'isRunning' | 'uncommittedOffsets' | 'commitOffsetsIfNecessary'>) => Promise<void>

/**
 * Brings Kafka's committed offsets up to the positions, those of all partitions in one request, once a second while there
 * are batches and once behind the last of them. `hold` is where a change begins whose chunks have not all come.
 */
export function openMirror(hold: (topic: string, partition: number) => bigint | undefined, log: Log): Mirror {
  let last = Number.NEGATIVE_INFINITY
  let later = false

  const mirror: Mirror = async ({ uncommittedOffsets, commitOffsetsIfNecessary }) => {
    last = performance.now()
    const topics = uncommittedOffsets().topics.map(({ topic, partitions }) => ({
      topic, partitions: partitions.map(({ partition, offset }) => ({ partition, offset: (hold(topic, partition) ?? offset).toString() })),
    }))
    await commitOffsetsIfNecessary({ topics })
  }

  return async (payload) => {
    const rest = last + EVERY - performance.now()
    if (rest <= 0) return mirror(payload)
    if (later) return
    later = true
    setTimeout(() => {
      later = false
      if (!payload.isRunning()) return
      mirror(payload).catch((error: unknown) => log.debug({ error }, 'the offsets could not be committed to Kafka'))
    }, rest).unref()
  }
}
