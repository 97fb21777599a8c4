import type { Accepted } from '../driver.ts'
import { few, type Oracle } from './oracle.ts'
import { readTopic, type TopicRecord } from './topic.ts'

/** I3, I4: every change is on the topic with its bytes, and those of one row first appear there in their order. */
export const published: Oracle = {
  name: 'published',
  async judge({ kafka, topic, played, sources }) {
    const missing = new Set(played.accepted.keys())
    const altered: string[] = []
    const order = openOrder(played.accepted)
    let repeats = 0
    const { records, foreign } = await readTopic(kafka, topic, (record) => {
      const accepted = played.accepted.get(record.id)
      if (accepted === undefined) return
      if (record.hash !== undefined && record.hash !== accepted.hash) altered.push(record.id)
      if (!missing.delete(record.id)) repeats += 1
      else if (record.attempt === 0) order.see(record, accepted)
    })
    let logged = 0
    for (const { sql } of sources) {
      const [row] = await sql<{ n: number }[]>`
        select count(*)::integer as n from auditlog.publish_log where latest and producer_publish_status = 'PUBLISHED' and kind is null`
      logged += row?.n ?? 0
    }
    return {
      figure: `${records} records, ${repeats} of them again or in parts, ${logged} in the log`,
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
  const latest = new Map<string, { sentAt: number; id: string }>()
  const wrong: string[] = []
  return {
    wrong,
    see({ key, partition, id }, { answeredAt, sentAt }) {
      const row = `${id.split(':', 1).join()} ${partition} ${key}` // origins, and the partitions of a topic, are ordered by themselves alone
      const last = latest.get(row)
      if (last !== undefined && answeredAt < last.sentAt) wrong.push(`${id} after ${last.id}`)
      if (last === undefined || sentAt > last.sentAt) latest.set(row, { sentAt: accepted.get(id)?.sentAt ?? sentAt, id })
    },
  }
}
