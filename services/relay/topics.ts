import { partitionOf } from '../../outbox/record.ts'
import type { PendingEvent } from '../../outbox/pending.ts'
import type { Log } from '../runtime/log.ts'
import { openPartition } from './partition.ts'
import type { Flying, Partition } from './partition.ts'
import type { Refusal } from './refusal.ts'
import { openTrouble } from './repeat.ts'
import type { Bell, Trouble } from './repeat.ts'

/** A topic that cannot be had is asked for again after this, in milliseconds. */
const UNREADY_REST = 2_000

export type TopicsParts = {
  partitions: (topic: string) => Promise<number>
  send: (topic: string, partition: number, events: readonly PendingEvent[], mayGoOn: () => boolean) => Promise<bigint>
  published: (batch: readonly Flying[], partition: number, first: bigint) => void
  refused: (flying: Flying, refusal: Refusal) => void
  dropped: (batch: readonly Flying[]) => void
  /** Events for this topic are in flight. */
  flying: (topic: string) => boolean
  bell: Pick<Bell, 'poke'>
  log: Log
}

/** Where events go: the partitions of every topic that events name. */
export type Topics = {
  /** Events may be added to this topic now. Waits for nothing: the broker is asked meanwhile, and the bell poked. */
  ready: (topic: string) => boolean
  add: (topic: string, flying: Flying) => void
  /** No send begins any more; resolves when those under way have ended. */
  stop: () => Promise<void>
}

type Topic = {
  /** The partitions that events go to now, and as many as the broker told of last. */
  count: number | undefined
  told: number | undefined
  asking: boolean
  askAt: number
  partitions: Map<number, Partition>
  failing: Set<number>
  sending: Trouble
  asked: Trouble
}

export function openTopics(parts: TopicsParts): Topics {
  const topics = new Map<string, Topic>()

  function topicOf(name: string): Topic {
    const known = topics.get(name)
    if (known !== undefined) return known
    const made: Topic = {
      count: undefined, told: undefined, asking: false, askAt: 0, partitions: new Map(), failing: new Set(),
      sending: openTrouble(parts.log, `sending to the broker: topic ${name}`), asked: openTrouble(parts.log, `asking the broker for the topic ${name}`),
    }
    topics.set(name, made)
    return made
  }

  async function ask(name: string, topic: Topic): Promise<void> {
    topic.asking = true
    try {
      const told = await parts.partitions(name)
      topic.asked.worked()
      if (topic.told !== told) parts.bell.poke()
      topic.told = told
    } catch (error) {
      topic.asked.failed(error)
      topic.askAt = performance.now() + UNREADY_REST
    }
    topic.asking = false
  }

  function partition(name: string, number: number): Partition {
    const { partitions, failing, sending } = topicOf(name)
    const known = partitions.get(number)
    if (known !== undefined) return known
    const made = openPartition({
      ...parts,
      partition: number,
      send: (events, mayGoOn) => parts.send(name, number, events, mayGoOn),
      wentOn: parts.bell.poke,
      // All partitions fail when a broker goes; that is one state, and one line in the log.
      trouble: {
        failed: (error) => { failing.add(number); sending.failed(error) },
        worked: () => { if (failing.delete(number) && failing.size === 0) sending.worked() },
      },
    })
    partitions.set(number, made)
    return made
  }

  return {
    ready(name) {
      const topic = topicOf(name)
      if (!topic.asking && topic.askAt <= performance.now()) void ask(name, topic)
      if (topic.told === undefined) return false
      // With another count a lane has another partition, where its events must not overtake those on the old one.
      if (topic.count !== topic.told && topic.count !== undefined && parts.flying(name)) return false
      topic.count = topic.told
      return true
    },
    add: (name, flying) => partition(name, partitionOf(flying.event.lane, topicOf(name).count ?? 1)).add(flying),
    async stop() {
      const all = [...topics.values()].flatMap(({ partitions }) => [...partitions.values()])
      for (const one of all) one.stop()
      await Promise.all(all.map((one) => one.idle()))
    },
  }
}
