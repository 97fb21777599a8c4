import { partitionOf } from '../../outbox/record.ts'
import type { PendingEvent } from '../../outbox/pending.ts'
import type { Log } from '../runtime/log.ts'
import { openPartition } from './partition.ts'
import type { Flying, Partition } from './partition.ts'
import { openTrouble } from './repeat.ts'

export type TopicsParts = {
  partitions: (topic: string) => Promise<number>
  send: (topic: string, partition: number, events: readonly PendingEvent[]) => Promise<bigint>
  published: (batch: readonly Flying[], partition: number, first: bigint) => void
  dropped: (batch: readonly Flying[]) => void
  log: Log
}

/** Where events go: the partitions of every topic that events name. */
export type Topics = {
  /** Returns the topics that events may be added to now. */
  prepare: (topics: ReadonlySet<string | null>, nothingInFlight: boolean) => Promise<ReadonlySet<string>>
  add: (topic: string, flying: Flying) => void
  /** No send begins any more; resolves when those under way have ended. */
  stop: () => Promise<void>
}

export function openTopics(parts: TopicsParts): Topics {
  const counts = new Map<string, number>()
  const open = new Map<string, Partition>()
  const failing = new Set<string>()
  const sending = openTrouble(parts.log, 'sending to the broker')
  const asking = openTrouble(parts.log, 'asking the broker for topics')

  function partition(topic: string, number: number): Partition {
    const name = `${topic}/${number}`
    const known = open.get(name)
    if (known !== undefined) return known
    const made = openPartition({
      ...parts,
      partition: number,
      send: (events) => parts.send(topic, number, events),
      // All partitions fail when a broker goes; that is one state, and one line in the log.
      trouble: {
        failed: (error) => { failing.add(name); sending.failed(error) },
        worked: () => { if (failing.delete(name) && failing.size === 0) sending.worked() },
      },
    })
    open.set(name, made)
    return made
  }

  return {
    async prepare(topics, nothingInFlight) {
      const ready = new Set<string>()
      for (const topic of topics) {
        if (topic === null) continue
        try {
          const count = await parts.partitions(topic)
          // With another count a lane has another partition, where its events must not overtake those on the old one.
          if (count !== counts.get(topic) && counts.has(topic) && !nothingInFlight) continue
          counts.set(topic, count)
          ready.add(topic)
          asking.worked()
        } catch (error) {
          asking.failed(error)
        }
      }
      return ready
    },
    add: (topic, flying) => partition(topic, partitionOf(flying.event.lane, counts.get(topic) ?? 1)).add(flying),
    async stop() {
      for (const one of open.values()) one.stop()
      await Promise.all([...open.values()].map((one) => one.idle()))
    },
  }
}
