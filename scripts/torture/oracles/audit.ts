import { few, type Oracle, unequal } from './oracle.ts'
import { readTopic } from './topic.ts'

/** I9, I11, I12: each change has one row of audit with the outcome it had to have; the failures, and no others, are on the error topic. */
export const audit: Oracle = {
  name: 'audit',
  async judge({ first, target, kafka, errorTopic, played, maxRetries }) {
    const [counts] = await first<{ received: number; audited: number; distinct: number; pending: number; unpublished: number }[]>`
      select (select count(*)::integer from auditlog.producer_log) as received, count(*)::integer as audited,
             count(distinct seq_id)::integer as distinct, (select count(*)::integer from auditlog.pending) as pending,
             count(*) filter (where producer_publish_status <> 'PUBLISHED')::integer as unpublished
      from auditlog.audit_log`
    const other: string[] = []
    const failed = new Set<string>()
    const tries: string[] = []
    const statuses: Record<string, number> = {}
    const rows = first<{ seq_id: string; status: string; attempt: number }[]>`
      select seq_id::text, status, attempt from inbox.applied`.cursor(20_000)
    for await (const some of rows) {
      for (const { seq_id: seqId, status, attempt } of some) {
        statuses[status] = (statuses[status] ?? 0) + 1
        if (status === 'FAILED') failed.add(seqId)
        if (status === 'FAILED' && attempt !== maxRetries) tries.push(`${seqId} after attempt ${attempt}`)
        const refused = played.accepted.get(seqId)?.refused ?? false
        const right = refused ? ['FAILED', 'SUPERSEDED', 'APPLIED'] : ['APPLIED', 'SUPERSEDED']
        if (!right.includes(status)) other.push(`${seqId} ${status}`)
      }
    }
    const told = new Map<string, number>()
    await readTopic(kafka, errorTopic, ({ seqId }) => told.set(seqId, (told.get(seqId) ?? 0) + 1))
    const [doubled] = await target<{ n: number }[]>`
      select count(*)::integer as n from (select origin, seq_id from inbox.parked group by 1, 2 having count(*) > 1) as d`
    return {
      figure: Object.entries(statuses).map(([status, n]) => `${n} ${status}`).join(', '),
      faults: [
        ...unequal('rows of audit_log', counts?.audited ?? 0, counts?.received ?? -1), ...unequal('changes in audit_log', counts?.distinct ?? 0, counts?.received ?? -1),
        ...unequal('pending', counts?.pending ?? -1, 0), ...unequal('not published by the audit', counts?.unpublished ?? -1, 0),
        ...few('with an outcome that may not be', other), ...few('given up too early or too late', tries),
        ...few('failed and not on the error topic', [...failed].filter((seqId) => !told.has(seqId))),
        // One that a newer image settled after it was told is there too.
        ...few('on the error topic and never refused', [...told.keys()].filter((seqId) => !failed.has(seqId) && played.accepted.get(seqId)?.refused !== true)),
        ...unequal('changes parked twice', doubled?.n ?? 0, 0),
      ],
    }
  },
}
