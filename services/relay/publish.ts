import type { Kafka, Producer } from 'kafkajs'
import { recordHeaders } from '../../outbox/record.ts'
import type { PendingEvent } from '../../outbox/pending.ts'
import { checkedSend, ensureTopic, isTooLarge, openProducer } from '../runtime/kafka.ts'
import type { Outgoing } from '../runtime/kafka.ts'
import type { Log } from '../runtime/log.ts'

/** The way of this relay to the broker. */
export type Publisher = {
  /** The partitions of a topic, asked once and by `recount`; a missing topic is created. */
  partitions: (topic: string) => Promise<number>
  send: (topic: string, partition: number, events: readonly PendingEvent[]) => Promise<bigint>
  /** Asks for `topic` and again for all that were asked for before. */
  recount: (topic: string) => Promise<void>
  close: () => Promise<void>
}

type Line = { producer: Producer; busy: number; retired: boolean }

/**
 * Sends over one producer, and over a new one after any failure: what kafkajs still holds of a failed send must not be
 * written later through a connection that is in use.
 */
export function openPublisher(parts: { kafka: Kafka; partitions: number; log: Log }): Publisher {
  const { kafka, log } = parts
  const counts = new Map<string, number>()
  let current: Promise<Line> | undefined

  async function connect(): Promise<Line> {
    try {
      return { producer: await openProducer(kafka), busy: 0, retired: false }
    } catch (error) {
      current = undefined
      throw error
    }
  }

  function retire(line: Line): void {
    if (!line.retired) current = undefined
    line.retired = true
  }

  function leave(line: Line): void {
    line.busy -= 1
    if (!line.retired || line.busy > 0) return
    line.producer.disconnect().catch((error: unknown) => log.debug({ error }, 'closing a failed producer'))
  }

  async function count(topic: string): Promise<number> {
    const partitions = await ensureTopic(kafka, topic, parts.partitions, log)
    const before = counts.get(topic)
    if (before !== undefined && before !== partitions) log.warn({ topic, before, partitions }, 'the number of partitions changed')
    counts.set(topic, partitions)
    return partitions
  }

  return {
    partitions: async (topic) => counts.get(topic) ?? count(topic),
    async send(topic, partition, events) {
      const line = await (current ??= connect())
      line.busy += 1
      try {
        return await checkedSend(line.producer, topic, partition, events.map(record))
      } catch (error) {
        if (!isTooLarge(error)) retire(line)
        throw error
      } finally {
        leave(line)
      }
    },
    async recount(topic) {
      for (const one of new Set([topic, ...counts.keys()])) await count(one)
    },
    async close() {
      const line = await current
      if (line !== undefined && !line.retired) await line.producer.disconnect()
    },
  }
}

/** The record of an event; the reader has made sure that its change was there. */
function record({ id, version, key, value, traceparent }: PendingEvent): Outgoing {
  return {
    key: Buffer.from(key ?? ''),
    value: Buffer.from(value ?? ''),
    // The moment of publishing: the broker deletes by it, and a backlog may be older than the topic's retention.
    timestamp: String(Date.now()),
    headers: recordHeaders(id ?? '', version ?? '', traceparent),
  }
}
