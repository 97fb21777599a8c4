import { few, type Oracle, unequal } from './oracle.ts'

/** I1, I2, I11: what was answered with a number is in the log, once, byte for byte; what was rejected is kept. */
export const ledger: Oracle = {
  name: 'ledger',
  async judge({ first, played }) {
    const missing = new Set(played.accepted.keys())
    const altered: string[] = []
    const unknown: string[] = []
    const rows = first<{ seq_id: string; hash: string }[]>`
      select seq_id::text, md5(substr(producer_payload::text, strpos(producer_payload::text, '{') + 1)) as hash
      from auditlog.producer_log where not (schema_name = 'torture' and table_name = 'late')`.cursor(20_000)
    let count = 0
    for await (const some of rows) {
      count += some.length
      for (const { seq_id: seqId, hash } of some) {
        const accepted = played.accepted.get(seqId)
        if (accepted === undefined) unknown.push(seqId)
        else if (accepted.hash !== hash) altered.push(seqId)
        missing.delete(seqId)
      }
    }
    const [kept] = await first<{ n: number }[]>`
      select count(*)::integer as n from auditlog.rejected_request where id = any(${[...played.rejected]}::bigint[])`
    return {
      figure: `${played.accepted.size} answered, ${count} in the log`,
      faults: [
        ...few('wrong answers', played.wrong), ...few('answered and lost', [...missing]),
        ...few('kept with other bytes', altered), ...few('in the log, and never answered', unknown),
        ...unequal('rejected requests kept', kept?.n ?? 0, played.rejected.size),
      ],
    }
  },
}
