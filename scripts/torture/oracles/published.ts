import type { Accepted } from '../driver.ts'
import { few, type Oracle } from './oracle.ts'
import { readTopic, type TopicRecord } from './topic.ts'

/** I3, I4: every change is on the topic with its bytes, and those of one row first appear there in their order. */
export const published: Oracle = {
  name: 'published',
  async judge({ kafka, topic, played, first }) {
    const missing = new Set(played.accepted.keys())
    const altered: string[] = []
    const order = openOrder(played.accepted)
    let repeats = 0
    const { records, foreign } = await readTopic(kafka, topic, (record) => {
      const accepted = played.accepted.get(record.seqId)
      if (accepted === undefined) return
      if (record.hash !== undefined && record.hash !== accepted.hash) altered.push(record.seqId)
      if (!missing.delete(record.seqId)) repeats += 1
      else if (record.attempt === 0) order.see(record, accepted)
    })
    const [logged] = await first<{ published: number }[]>`
      select count(*)::integer as published from auditlog.publish_log where latest and producer_publish_status = 'PUBLISHED' and kind is null`
    return {
      figure: `${records} records, ${repeats} of them again or in parts, ${logged?.published} in the log`,
      faults: [
        ...few('never published', [...missing]), ...few('published with other bytes', altered),
        ...few('published before an older change of its row', order.wrong), ...(foreign === 0 ? [] : [`${foreign} records are not ours`]),
      ],
    }
  },
}

/**
 * A change that was answered before another of its row was sent must be on the topic first. Where both were on their way
 * at once, any order is right.
 */
function openOrder(accepted: ReadonlyMap<string, Accepted>): { see: (record: TopicRecord, change: Accepted) => void; wrong: string[] } {
  const latest = new Map<string, { sentAt: number; seqId: string }>()
  const wrong: string[] = []
  return {
    wrong,
    see({ key, partition, seqId }, { answeredAt, sentAt }) {
      const row = `${partition} ${key}` // the partitions of a topic are ordered by themselves alone
      const last = latest.get(row)
      if (last !== undefined && answeredAt < last.sentAt) wrong.push(`${seqId} after ${last.seqId}`)
      if (last === undefined || sentAt > last.sentAt) latest.set(row, { sentAt: accepted.get(seqId)?.sentAt ?? sentAt, seqId })
    },
  }
}
