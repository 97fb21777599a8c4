import type { Sql } from 'postgres'

import { changeId } from '../driver.ts'
import { few, type Oracle, unequal } from './oracle.ts'
import { readTopic } from './topic.ts'

/** I9, I11, I12: each change has one row of audit with the outcome it had to have; the failures, and no others, are on the error topic. */
export const audit: Oracle = {
  name: 'audit',
  async judge({ sources, target, kafka, errorTopic, played, maxRetries }) {
    const uneven: string[] = []
    const other: string[] = []
    const failed = new Set<string>()
    const tries: string[] = []
    const statuses: Record<string, number> = {}
    for (const { origin, sql } of sources) {
      uneven.push(...await unevenAudit(sql))
      const rows = sql<{ seq_id: string; status: string; attempt: number }[]>`
        select seq_id::text, status, attempt from inbox.applied where origin = ${origin}`.cursor(20_000)
      for await (const some of rows) {
        for (const { seq_id: seqId, status, attempt } of some) {
          const id = changeId(origin, seqId)
          statuses[status] = (statuses[status] ?? 0) + 1
          if (status === 'FAILED') failed.add(id)
          if (status === 'FAILED' && attempt !== maxRetries) tries.push(`${id} after attempt ${attempt}`)
          const refused = played.accepted.get(id)?.refused ?? false
          const right = refused ? ['FAILED', 'SUPERSEDED', 'APPLIED'] : ['APPLIED', 'SUPERSEDED']
          if (!right.includes(status)) other.push(`${id} ${status}`)
        }
      }
    }
    const told = new Map<string, number>()
    await readTopic(kafka, errorTopic, ({ id }) => told.set(id, (told.get(id) ?? 0) + 1))
    const [doubled] = await target<{ n: number }[]>`
      select count(*)::integer as n from (select origin, seq_id from inbox.parked group by 1, 2 having count(*) > 1) as d`
    return {
      figure: Object.entries(statuses).map(([status, n]) => `${n} ${status}`).join(', '),
      faults: [
        ...uneven,
        ...few('with an outcome that may not be', other), ...few('given up too early or too late', tries),
        ...few('failed and not on the error topic', [...failed].filter((id) => !told.has(id))),
        // One that a newer image settled after it was told is there too.
        ...few('on the error topic and never refused', [...told.keys()].filter((id) => !failed.has(id) && played.accepted.get(id)?.refused !== true)),
        ...unequal('changes parked twice', doubled?.n ?? 0, 0),
      ],
    }
  },
}

/** What does not add up in the audit of one source. */
async function unevenAudit(sql: Sql): Promise<string[]> {
  const [counts] = await sql<{ received: number; audited: number; distinct: number; pending: number; unpublished: number }[]>`
    select (select count(*)::integer from auditlog.producer_log) as received, count(*)::integer as audited,
           count(distinct seq_id)::integer as distinct, (select count(*)::integer from auditlog.pending) as pending,
           count(*) filter (where producer_publish_status <> 'PUBLISHED')::integer as unpublished
    from auditlog.audit_log`
  return [
    ...unequal('rows of audit_log', counts?.audited ?? 0, counts?.received ?? -1), ...unequal('changes in audit_log', counts?.distinct ?? 0, counts?.received ?? -1),
    ...unequal('pending', counts?.pending ?? -1, 0), ...unequal('not published by the audit', counts?.unpublished ?? -1, 0),
  ]
}
