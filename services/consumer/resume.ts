import type { Sql } from '../../outbox/sql.ts'
import type { Log } from '../runtime/log.ts'
import { faultOf, kindOf } from './failure.ts'
import { parkedColumns, takeUp } from './parked.ts'
import type { Parked, TakeUpParts } from './parked.ts'

/** Changes taken up at a time. */
const STEP = 1_000

export type Stopped = { id: number; schema: string; table: string; stoppedBy: 'failure' | 'operator'; why: string | null }

/** Relations that are stopped; those stopped by an operator only where they are asked for. */
export async function stoppedRelations(sql: Sql): Promise<Stopped[]> {
  return sql<Stopped[]>`
    select r.id, r.source_schema as schema, r.source_table as "table", r.stopped_by as "stoppedBy", r.stop_reason as why
    from outbox.relation r where r.state = 'STOPPED' order by r.id`
}

/**
 * Takes up the queue of a stopped relation in the order of its versions and makes it active again; `progress` hears how
 * many were taken up so far. Returns false where it still cannot be written: then it stays stopped, with the reason of
 * today, and nothing of its queue is lost or counted as an attempt.
 */
export async function resumeRelation(
  parts: TakeUpParts & { log: Log }, relation: Stopped, signal: AbortSignal, progress: (done: number) => void = () => undefined,
): Promise<boolean> {
  let done = 0
  const backlog = await parts.slot.run((sql) => lengthOf(sql, relation))
  while (!signal.aborted) {
    let queue = await parts.slot.run((sql) => queueOf(sql, relation))
    if (queue.length < STEP || done >= backlog) { // what comes meanwhile may come as fast as it is taken up
      await parts.slot.run((sql) => sql`select inbox.close_queue(${relation.id}, ${relation.stoppedBy})`)
      queue = await parts.slot.run((sql) => queueOf(sql, relation))
    }
    if (queue.length === 0) {
      const [row] = await parts.slot.run((sql) => sql<{ resumed: boolean | null }[]>`select inbox.resume(${relation.id}, ${relation.stoppedBy}) as resumed`)
      if (row?.resumed === false) continue // more came meanwhile
      if (row?.resumed !== true) return false // resumed by another consumer, or stopped anew by an operator
      parts.log.info({ schema: relation.schema, table: relation.table, changes: done }, 'the relation goes on')
      return true
    }
    try {
      for (const group of Map.groupBy(queue, ({ topic }) => topic).values()) {
        await takeUp(parts, group, { state: 'STOPPED', together: true, forced: false })
      }
    } catch (error) {
      if (kindOf(error) !== 'relation') throw error
      const why = faultOf(error)
      if (relation.stoppedBy === 'failure' && why !== relation.why) await parts.slot.run((sql) => noteWhy(sql, relation.id, why))
      return false
    }
    done += queue.length
    progress(done)
  }
  return false
}

async function queueOf(sql: Sql, { id, stoppedBy }: Stopped): Promise<Parked[]> {
  return sql<Parked[]>`
    select ${parkedColumns(sql)} from inbox.parked p join inbox.applied a on a.origin = p.origin and a.seq_id = p.seq_id
    where p.relation = ${id} and p.key is null and p.reason = 'RELATION_STOPPED'
      and exists (select from outbox.relation r where r.id = ${id} and r.state = 'STOPPED' and r.stopped_by = ${stoppedBy})
    order by p.epoch, p.time, p.seq_id limit ${STEP}`
}

async function lengthOf(sql: Sql, { id }: Stopped): Promise<number> {
  const [row] = await sql<{ length: number }[]>`
    select count(*)::integer as length from inbox.parked p where p.relation = ${id} and p.key is null and p.reason = 'RELATION_STOPPED'`
  return row?.length ?? 0
}

async function noteWhy(sql: Sql, id: number, why: string): Promise<void> {
  await sql`update outbox.relation r set stop_reason = ${why} where r.id = ${id} and r.state = 'STOPPED'`
}
