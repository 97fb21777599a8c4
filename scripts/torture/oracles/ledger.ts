import { changeId } from '../driver.ts'
import { few, type Oracle, unequal } from './oracle.ts'

/** I1, I2, I11: what was answered with a number is in the log, once, byte for byte; what was rejected is kept. */
export const ledger: Oracle = {
  name: 'ledger',
  async judge({ sources, played }) {
    const missing = new Set(played.accepted.keys())
    const altered: string[] = []
    const unknown: string[] = []
    let count = 0
    let kept = 0
    for (const { origin, sql } of sources) {
      const rows = sql<{ seq_id: string; hash: string }[]>`
        select seq_id::text, md5(substr(producer_payload::text, strpos(producer_payload::text, '{') + 1)) as hash
        from auditlog.producer_log where not (schema_name = 'torture' and table_name = 'late')`.cursor(20_000)
      for await (const some of rows) {
        count += some.length
        for (const { seq_id: seqId, hash } of some) {
          const id = changeId(origin, seqId)
          const accepted = played.accepted.get(id)
          if (accepted === undefined) unknown.push(id)
          else if (accepted.hash !== hash) altered.push(id)
          missing.delete(id)
        }
      }
      const [row] = await sql<{ n: number }[]>`select count(*)::integer as n from auditlog.rejected_request
        where ${origin}::text || ':' || id = any(${[...played.rejected]}::text[])`
      kept += row?.n ?? 0
    }
    return {
      figure: `${played.accepted.size} answered, ${count} in the log`,
      faults: [
        ...few('wrong answers', played.wrong), ...few('answered and lost', [...missing]),
        ...few('kept with other bytes', altered), ...few('in the log, and never answered', unknown),
        ...unequal('rejected requests kept', kept, played.rejected.size),
      ],
    }
  },
}
