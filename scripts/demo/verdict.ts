import type { Sql } from '../../outbox/sql.ts'
import type { AccountRow } from './account.ts'
import { wrongFacts, type SampleAnswer } from './samples.ts'
import type { Played } from './play.ts'
import { modelOf } from './workload.ts'

export type Counts = {
  received: number
  waiting: number
  published: number
  outcomes: Record<string, number>
  audited: number
  pending: number
  rejected: number
}

/** `differences` is empty exactly when everything adds up. */
export type Verdict = { counts: Counts; accepted: number; posts: number; rejectedAnswers: number; rows: number; differences: string[] }

const SHOWN = 5

/**
 * Compares what the listener answered with the logs, the logs with each other, and the target with the model. `target` is
 * `sql` where there is one database; where there are two, its outcomes are compared with those that were told.
 */
export async function judge(sql: Sql, target: Sql, played: Played, samples: readonly SampleAnswer[]): Promise<Verdict> {
  const answers = [...played.sent, ...samples].map(({ answer }) => answer)
  const all = [...answers, ...played.garbage, ...played.repeats.map(({ second }) => second)]
  const accepted = new Set(all.flatMap(({ seqId }) => seqId ?? []))
  const rejected = new Set(all.flatMap((answer) => answer.rejected?.id ?? []))
  const counts = await countAll(sql)
  const applied = Object.values(counts.outcomes).reduce((sum, count) => sum + count, 0)
  const model = modelOf(played.sent.filter(({ answer }) => answer.seqId !== null).map(({ change }) => change))

  const differences = [
    ...unequal('changes accepted', accepted.size, 'rows of producer_log', counts.received),
    ...unequal('rows of producer_log', counts.received, 'published', counts.published),
    ...unequal('published', counts.published, 'with an outcome', applied),
    ...unequal('rows of producer_log', counts.received, 'rows of audit_log', counts.audited),
    ...unequal('still in the outbox', counts.waiting, 'expected there', 0),
    ...unequal('pending', counts.pending, 'expected', 0),
    ...unequal('answers with a rejection', rejected.size, 'rows of rejected_request', counts.rejected),
    ...await unknown(sql, accepted),
    ...played.failed.slice(0, SHOWN).map((why) => `a post got no answer: ${why}`),
    ...unequal('posts without an answer', played.failed.length, 'expected', 0),
    ...played.sent.flatMap(({ change, answer }) => (answer.seqId === null ? [`refused (${answer.status} ${answer.rejected?.reason ?? ''}): the change of ${change.time}`] : [])).slice(0, SHOWN),
    ...played.repeats.flatMap(({ first, second }) => (first.seqId === second.seqId ? [] : [`a repeat of ${first.seqId} was answered ${second.seqId}`])).slice(0, SHOWN),
    ...played.garbage.flatMap(({ status, rejected: answer }) => (status >= 400 && status < 500 && answer !== null ? [] : [`a body that is no change was answered ${status}`])),
    ...await unlikeModel(target, model),
    ...await wrongFacts(target),
    ...(sql === target ? [] : await untold(sql, target)),
  ]
  return { counts, accepted: accepted.size, posts: all.length, rejectedAnswers: rejected.size, rows: model.size, differences }
}

/** The logs, counted. The audit's own count is of the view, so that a contradiction between the logs shows. */
async function countAll(sql: Sql): Promise<Counts> {
  const [row] = await sql<Counts[]>`
    select (select count(*)::integer from auditlog.producer_log) as received,
           (select count(*)::integer from outbox.event) as waiting,
           (select count(*)::integer from auditlog.publish_log where latest and producer_publish_status = 'PUBLISHED') as published,
           (select coalesce(json_object_agg(status, n), '{}') from (select status, count(*)::integer as n from inbox.applied group by status order by status) as s) as outcomes,
           (select count(*)::integer from auditlog.audit_log) as audited,
           (select count(*)::integer from auditlog.pending) as pending,
           (select count(*)::integer from auditlog.rejected_request) as rejected`
  if (row === undefined) throw new Error('the counts returned no row')
  return row
}

/** Answers whose seq_id the log does not have. */
async function unknown(sql: Sql, accepted: ReadonlySet<string>): Promise<string[]> {
  const rows = await sql<{ seq_id: string }[]>`
    select answered as seq_id from unnest(${[...accepted]}::text[]) as answered
    where not exists (select from auditlog.producer_log p where p.seq_id = answered::bigint) limit ${SHOWN}`
  return rows.map(({ seq_id }) => `answered ${seq_id}, which is not in producer_log`)
}

/** Receipts and events that wait in the second database: outcomes not yet told, retries not yet published. */
export async function waitingInSecond(target: Sql): Promise<number> {
  const [row] = await target<{ waiting: number }[]>`
    select ((select count(*) from inbox.receipt) + (select count(*) from outbox.event))::integer as waiting`
  return row?.waiting ?? 0
}

/** Outcomes of the second database that the first was not told, or otherwise, and what still waits there. */
async function untold(first: Sql, target: Sql): Promise<string[]> {
  const outcomes = async (sql: Sql): Promise<string> => JSON.stringify(await sql`
    select status, count(*) as changes, md5(string_agg(origin || ':' || seq_id || ':' || attempt, ',' order by origin, seq_id)) as which
    from inbox.applied group by status order by status`)
  const [here, there] = [await outcomes(first), await outcomes(target)]
  return [
    ...(here === there ? [] : [`outcomes in the first database: ${here}, in the second: ${there}`]),
    ...unequal('receipts and events waiting in the second database', await waitingInSecond(target), 'expected', 0),
  ]
}

/** The rows of shop.account that differ from the model, compared by their types: 10.5 and 10.50 are one amount. */
export async function unlikeModel(sql: Sql, model: ReadonlyMap<string, AccountRow>): Promise<string[]> {
  const rows = await sql<{ id: number; expected: unknown; found: unknown }[]>`
    with expected as (
      select * from json_to_recordset(${JSON.stringify([...model.values()])}::text::json)
        as m(id integer, owner varchar(60), balance numeric(12,2), opened date, changed timestamp(3), note text)
    )
    select id, to_json(e) as expected, to_json(a) as found
    from expected e full join shop.account a using (id)
    where to_jsonb(e) is distinct from to_jsonb(a) order by id`
  const shown = rows.slice(0, SHOWN).map(({ id, expected, found }) => `row ${id} is ${JSON.stringify(found)}, expected ${JSON.stringify(expected)}`)
  return rows.length === 0 ? [] : [`${rows.length} rows of shop.account differ from the model`, ...shown]
}

function unequal(what: string, count: number, other: string, otherCount: number): string[] {
  return count === otherCount ? [] : [`${what}: ${count}, ${other}: ${otherCount}`]
}
