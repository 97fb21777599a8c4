import type { Sql } from './sql.ts'

/** What an operator did to one change or one relation, a row of auditlog.action. `outcome` null: it was cut short, or says all by itself. */
export type Action = {
  id: string
  at: string
  actor: string
  command: 'edit' | 'retry' | 'skip' | 'publish' | 'resume' | 'stop' | 'policy'
  note: string | null
  outcome: string | null
}

/** A relation as the commands on it need it. */
export type Standing = {
  id: number
  schema: string
  table: string
  state: 'ACTIVE' | 'STOPPED'
  stopReason: string | null
  stoppedBy: 'failure' | 'operator' | null
  onRefusal: 'park' | 'skip'
  /** Its changes that are queued because it is stopped. */
  queued: string
}

/** Writes the lines of changes that are about to be tried; returns their ids in the order given. */
export async function beginActions(
  sql: Sql, actor: string, command: 'retry' | 'publish', changes: readonly { origin: number; seqId: string }[], note: string | null = null,
): Promise<string[]> {
  const rows = await sql<{ id: string }[]>`
    with given as (
      select c.origin, c.seq_id, c.place
      from unnest(${changes.map(({ origin }) => origin)}::smallint[], ${changes.map(({ seqId }) => seqId)}::bigint[]) with ordinality as c(origin, seq_id, place)
    )
    insert into auditlog.action (actor, command, origin, seq_id, relation, note)
    select ${actor}, ${command}, g.origin, g.seq_id, coalesce(r.source_schema || '.' || r.source_table, c.schema_name || '.' || c.table_name), ${note}
    from given g
    left join inbox.parked p on p.origin = g.origin and p.seq_id = g.seq_id left join outbox.relation r on r.id = p.relation
    left join auditlog.producer_log c on c.seq_id = g.seq_id and c.origin = g.origin
    order by g.place
    returning id`
  return rows.map(({ id }) => id)
}

/** Says what the actions came to. */
export async function endActions(sql: Sql, ends: readonly { id: string; outcome: string }[]): Promise<void> {
  await sql`
    update auditlog.action a set outcome = e.outcome
    from unnest(${ends.map(({ id }) => id)}::bigint[], ${ends.map(({ outcome }) => outcome)}::text[]) as e(id, outcome) where a.id = e.id`
}

/** What was done to a change, oldest first; the last 50. */
export async function actionsOf(sql: Sql, origin: number, seqId: string): Promise<Action[]> {
  return sql<Action[]>`
    select * from (
      select a.id, a.at, a.actor, a.command, a.note, a.outcome from auditlog.action a
      where a.seq_id = ${seqId} and a.origin = ${origin} order by a.id desc limit 50
    ) newest order by newest.id`
}

/** The relation of a table of the source; undefined where none was met. */
export async function standingOfRelation(sql: Sql, schema: string, table: string): Promise<Standing | undefined> {
  const [row] = await sql<Standing[]>`
    select r.id, r.source_schema as schema, r.source_table as "table", r.state, r.stop_reason as "stopReason", r.stopped_by as "stoppedBy",
           r.on_refusal as "onRefusal",
           (select count(*) from inbox.parked p where p.relation = r.id and p.key is null and p.reason = 'RELATION_STOPPED') as queued
    from outbox.relation r where r.source_schema = ${schema} and r.source_table = ${table}`
  return row
}

/** Stops a relation: its changes queue until it is resumed by hand. */
export async function stopByOperator(sql: Sql, actor: string, { id, schema, table, state }: Standing, why: string): Promise<void> {
  await sql`
    with noted as (
      insert into auditlog.action (actor, command, relation, before, after, note)
      values (${actor}, 'stop', ${`${schema}.${table}`}, ${state}, 'STOPPED', ${why})
    )
    select inbox.stop_by_operator(${id}, ${why})`
}

/** The line of a resume that begins; endActions says what came of it. */
export async function beginResume(sql: Sql, actor: string, { schema, table, stopReason }: Standing): Promise<string> {
  const [row] = await sql<{ id: string }[]>`
    insert into auditlog.action (actor, command, relation, before, note)
    values (${actor}, 'resume', ${`${schema}.${table}`}, 'STOPPED', ${stopReason}) returning id`
  if (row === undefined) throw new Error('auditlog.action returned no id')
  return row.id
}

/** Decides what becomes of refused changes of a relation; false where it was so already. */
export async function setPolicy(sql: Sql, actor: string, { id }: Standing, policy: 'park' | 'skip'): Promise<boolean> {
  const rows = await sql`
    with changed as (
      update outbox.relation r set on_refusal = ${policy} from outbox.relation was
      where r.id = ${id} and was.id = r.id and r.on_refusal <> ${policy}
      returning r.source_schema || '.' || r.source_table as name, was.on_refusal as before
    )
    insert into auditlog.action (actor, command, relation, before, after)
    select ${actor}, 'policy', c.name, c.before, ${policy} from changed c returning id`
  return rows.length === 1
}
