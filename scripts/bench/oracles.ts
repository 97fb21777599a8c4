import type { Sql } from 'postgres'

import { rowOf, type Unfit } from './changes.ts'

const SHOWN = 3

/** What must be true after a run. `refused` are the changes that the target must have turned down, with their state. */
export type Expected = {
  changes: number
  /** id → version; undefined where no consumer ran. */
  model: ReadonlyMap<number, number> | undefined
  bytes: number
  refused?: { count: number; unfit: Unfit; status: 'RETRYING' | 'FAILED' }
  published: boolean
}

/** Says what is wrong: changes lost or doubled in any log, rows that are not those of the model, bytes not kept. */
export async function faultsOf(sql: Sql, expected: Expected): Promise<string[]> {
  const refused = expected.refused?.count ?? 0
  const [logs] = await sql<{ received: number; published: number; waiting: number; audited: number }[]>`
    select (select count(*)::integer from auditlog.producer_log) as received,
           (select count(*)::integer from auditlog.publish_log where latest and producer_publish_status = 'PUBLISHED') as published,
           (select count(*)::integer from outbox.event where kind = 'change') as waiting,
           (select count(*)::integer from auditlog.audit_log) as audited`
  const faults = [
    ...unequal('changes received', logs?.received, expected.changes),
    ...unequal('rows of audit_log', logs?.audited, expected.changes),
  ]
  if (expected.published) {
    faults.push(...unequal('changes published', logs?.published, expected.changes), ...unequal('changes still in the outbox', logs?.waiting, 0))
  }
  if (expected.model === undefined) return faults
  const [outcomes] = await sql<{ done: number; refused: number; others: number }[]>`
    select count(*) filter (where status in ('APPLIED', 'SUPERSEDED'))::integer as done,
           count(*) filter (where status = ${expected.refused?.status ?? 'none'})::integer as refused,
           count(*)::integer as others
    from inbox.applied`
  faults.push(
    ...unequal('changes applied', outcomes?.done, expected.changes - refused),
    ...unequal('changes refused', outcomes?.refused, refused),
    ...unequal('outcomes', outcomes?.others, expected.changes),
    ...await wrongRows(sql, expected.model, expected.bytes),
  )
  return expected.refused === undefined ? faults : [...faults, ...await lostBytes(sql, expected.refused)]
}

/** Every row of the target against the model, by its content; the rows themselves are never shown. */
export async function wrongRows(sql: Sql, model: ReadonlyMap<number, number>, bytes: number): Promise<string[]> {
  const faults: string[] = []
  let rows = 0
  let wrong = 0
  for await (const some of sql<{ id: string; n: string; at: string; note: string }[]>`
    select id::text, n::text, to_char(at, 'YYYY-MM-DD HH24:MI:SS') as at, note from bench.item`.cursor(5_000)) {
    rows += some.length
    for (const row of some) {
      const version = model.get(Number(row.id))
      const right = version === undefined ? undefined : rowOf(Number(row.id), version, bytes)
      if (right !== undefined && right.n === row.n && right.at === row.at && right.note === row.note) continue
      wrong += 1
      if (wrong <= SHOWN) faults.push(right === undefined ? `the row ${row.id} must not be there` : `the row ${row.id} is not of version ${version}`)
    }
  }
  return [...faults, ...unequal('wrong rows', wrong, 0), ...unequal('rows', rows, model.size)]
}

/** A refused change lies parked with the very text that was posted, below the members that the relay put in front. */
async function lostBytes(sql: Sql, refused: { count: number; unfit: Unfit; status: string }): Promise<string[]> {
  const mark = refused.unfit === 'type' ? '"many"' : '"-1"'
  const [parked] = await sql<{ kept: number; all: number }[]>`
    select count(*) filter (where right(p.payload, length(l.body) - 1) = substr(l.body, 2) and strpos(l.body, ${mark}) > 0)::integer as kept,
           count(*)::integer as all
    from inbox.parked p
    join (select origin, seq_id, producer_payload::text as body from auditlog.producer_log) l on l.origin = p.origin and l.seq_id = p.seq_id
    where p.reason = 'REFUSED'`
  const [records] = await sql<{ n: number }[]>`select count(*)::integer as n from outbox.event where kind = 'error'`
  return [
    ...unequal('changes parked', parked?.all, refused.count),
    ...unequal('changes parked with their bytes', parked?.kept, refused.count),
    ...unequal('records for the error topic', records?.n, refused.status === 'FAILED' ? refused.count : 0),
  ]
}

function unequal(what: string, found: number | undefined, expected: number): string[] {
  return found === expected ? [] : [`${what}: ${found}, expected ${expected}`]
}
