import type { Sql } from '../../outbox/sql.ts'
import { kindOf } from './failure.ts'
import { parkedColumns, takeUp } from './parked.ts'
import type { Parked, TakeUpParts } from './parked.ts'

/** Rows a round, and changes of one row a round: a row with ten thousand waiting changes holds up no other row. */
const ROWS = 50
const CHANGES = 200

type Row = { relation: number; key: string | null }

/**
 * Tries again, without an attempt, what is due: changes that wait for a row of another table or a value to become free,
 * and those that waited behind a change of their row which is settled. Returns how many were tried; 0 where nothing is due.
 *
 * Any number of consumers may do so at once: each change is locked as it is taken. A row that fails is put off, and the
 * first error of the environment is thrown when all rows had their turn.
 */
export async function unparkDue(parts: TakeUpParts): Promise<number> {
  const rows = await parts.slot.run(dueRows)
  let tried = 0
  let failed: Error | undefined
  for (const row of rows) {
    const changes = await parts.slot.run((sql) => waitingOf(sql, row))
    tried += changes.length
    for (const group of Map.groupBy(changes, ({ topic }) => topic).values()) {
      try {
        await takeUp(parts, group, { state: 'ACTIVE', together: false, forced: false })
      } catch (error) {
        // Its relation is stopped or about to be; or this row has a trouble of its own, which is not the other rows'.
        await parts.slot.run((sql) => putOff(sql, row))
        if (kindOf(error) === 'environment') failed ??= error instanceof Error ? error : new Error(String(error))
      }
    }
  }
  if (failed !== undefined) throw failed
  return tried
}

async function dueRows(sql: Sql): Promise<Row[]> {
  return sql<Row[]>`
    select d.relation, d.key from (
      select p.relation, p.key, p.retry_at from inbox.parked p
      where p.retry_at <= clock_timestamp() and p.reason in ('WAITING', 'BEHIND') order by p.retry_at limit ${ROWS * CHANGES}
    ) d group by d.relation, d.key order by min(d.retry_at) limit ${ROWS}`
}

/** The changes of a row that are due, in the order of their versions. */
async function waitingOf(sql: Sql, { relation, key }: Row): Promise<Parked[]> {
  return sql<Parked[]>`
    select ${parkedColumns(sql)} from inbox.parked p join inbox.applied a on a.origin = p.origin and a.seq_id = p.seq_id
    where p.relation = ${relation} and ${keyIs(sql, key)} and p.reason in ('WAITING', 'BEHIND') and p.retry_at <= clock_timestamp()
    order by p.epoch, p.time, p.seq_id limit ${CHANGES}`
}

async function putOff(sql: Sql, { relation, key }: Row): Promise<void> {
  await sql`
    update inbox.parked p set retry_at = clock_timestamp() + interval '5 s'
    where p.relation = ${relation} and ${keyIs(sql, key)} and p.reason in ('WAITING', 'BEHIND') and p.retry_at <= clock_timestamp()`
}

/** By the index: "is not distinct from" would read all that is parked of the relation, for each row. */
function keyIs(sql: Sql, key: string | null): ReturnType<Sql> {
  return key === null ? sql`p.key is null` : sql`p.key = ${key}`
}
