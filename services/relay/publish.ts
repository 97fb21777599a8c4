import type { Kafka, Producer } from 'kafkajs'
import { recordHeaders } from '../../outbox/record.ts'
import type { PendingEvent } from '../../outbox/pending.ts'
import { checkedSend, ensureTopic, isTooLarge, openProducer, topicLimit } from '../runtime/kafka.ts'
import type { Outgoing, Share } from '../runtime/kafka.ts'
import type { Log } from '../runtime/log.ts'
import { type Joint, openJoint } from './joint.ts'
import { sendWithin } from './large.ts'

/** The way of this relay to the broker. */
export type Publisher = {
  /** The partitions of a topic, asked once and by `recount`; a missing topic is created. */
  partitions: (topic: string) => Promise<number>
  /**
   * Sends events of one partition, in order, and resolves with the offset of the first record when the broker has all.
   * What it rejects with leaves open whether they were written, unless isTooLarge says that none was.
   *
   * One event above the topic's record limit goes in chunks, the offset being that of the first; `mayGoOn` is asked
   * before each but the first. Several events that are above it together are refused with isTooLarge.
   */
  send: (topic: string, partition: number, events: readonly PendingEvent[], mayGoOn?: () => boolean) => Promise<bigint>
  /**
   * Asks for `topic` and again for all that were asked for before: how many partitions, and how large a record may be.
   * Rejects after the last where one could not be had.
   */
  recount: (topic: string) => Promise<void>
  close: () => Promise<void>
}

type Line = { producer: Producer; busy: number; retired: boolean }

/** Bytes that are taken for a topic's limit where it may not be read: a stock broker takes 1,048,588. */
const ASSUMED_LIMIT = 1_000_000
/** Where the assumed limit turns out too high it is halved, down to this. */
const LEAST_ASSUMED = 16_384
/** A broker hangs up above its socket.request.max.bytes (100 MB), whatever the topic would take. */
const MOST_LIMIT = 64 << 20

/**
 * Sends over one producer, and over a new one after any failure: what kafkajs still holds of a failed send must not be
 * written later through a connection that is in use.
 */
export function openPublisher(parts: { kafka: Kafka; partitions: number; log: Log }): Publisher {
  const { kafka, log } = parts
  const counts = new Map<string, number>()
  const joints = new Map<string, Joint>()
  const limits = openLimits(kafka, log)
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
    await limits.read(topic)
    const before = counts.get(topic)
    if (before !== undefined && before !== partitions) log.warn({ topic, before, partitions }, 'the number of partitions changed')
    counts.set(topic, partitions)
    return partitions
  }

  async function request(topic: string, shares: readonly Share[]): Promise<bigint[]> {
    const line = await (current ??= connect())
    line.busy += 1
    try {
      return await checkedSend(line.producer, topic, shares)
    } catch (error) {
      if (!isTooLarge(error)) retire(line)
      throw error
    } finally {
      leave(line)
    }
  }

  async function sendTo(topic: string, partition: number, messages: readonly Outgoing[], mayGoOn: () => boolean): Promise<bigint> {
    const joint = joints.get(topic) ?? openJoint((shares) => request(topic, shares))
    joints.set(topic, joint)
    const write = (some: readonly Outgoing[], bytes: number): Promise<bigint> => joint({ partition, messages: some }, bytes, mayGoOn)
    for (;;) {
      const limit = limits.of(topic)
      try {
        return await sendWithin(limit, messages, write, mayGoOn)
      } catch (error) {
        // Refused though it kept the limit: somebody lowered it. What was written of a run is sent anew, in smaller chunks.
        if (!isTooLarge(error) || messages.length > 1 || await limits.lower(topic, limit) >= limit) throw error
      }
    }
  }

  return {
    partitions: async (topic) => counts.get(topic) ?? count(topic),
    send: (topic, partition, events, mayGoOn = () => true) => sendTo(topic, partition, events.map(record), mayGoOn),
    async recount(topic) {
      const failures: unknown[] = []
      for (const one of new Set([topic, ...counts.keys()])) await count(one).catch((error: unknown) => failures.push(error))
      if (failures.length > 0) throw failures[0]
    },
    async close() {
      const line = await current
      if (line !== undefined && !line.retired) await line.producer.disconnect()
    },
  }
}

/** The record limits of topics as last read, in bytes of a batch. */
type Limits = { of: (topic: string) => number; read: (topic: string) => Promise<void>; lower: (topic: string, refused: number) => Promise<number> }

function openLimits(kafka: Kafka, log: Log): Limits {
  const known = new Map<string, number>()
  const unread = new Set<string>()
  const of = (topic: string): number => known.get(topic) ?? ASSUMED_LIMIT

  async function read(topic: string): Promise<void> {
    const limit = await topicLimit(kafka, topic, log)
    if (limit !== undefined) {
      known.set(topic, Math.min(limit, MOST_LIMIT))
      unread.delete(topic)
      return
    }
    if (unread.has(topic)) return
    unread.add(topic)
    log.warn({ topic, assumed: of(topic) }, 'max.message.bytes of the topic cannot be read: give this user the right DescribeConfigs on it')
  }

  return {
    of, read,
    async lower(topic, refused) {
      await read(topic)
      if (unread.has(topic)) known.set(topic, Math.min(of(topic), Math.max(LEAST_ASSUMED, Math.floor(refused / 2))))
      return of(topic)
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
