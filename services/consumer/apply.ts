import { isEnvironment, sqlstateOf } from '../runtime/slot.ts'
import type { Slot } from '../runtime/slot.ts'
import type { Log } from '../runtime/log.ts'
import { DeltapostError } from '../../outbox/errors.ts'
import { buildElement, setAside, withBefore } from './element.ts'
import type { Arrival, Element } from './element.ts'
import type { Prepared, Relations } from './relations.ts'

/** Where a batch came from and the right by which it is applied. */
export type Holding = {
  group: string
  topic: string
  partition: number
  term: string
}

export type ApplyParts = {
  slot: Slot
  relations: Relations
  /** Milliseconds by which a source's TIME may be later than its receipt. */
  clockTolerance: number
  log: Log
}

/** FENCED: another consumer has the partition. Otherwise everything up to the last arrival is applied or set aside. */
export type Outcome = 'OK' | 'FENCED'

/** One change cannot be applied. It stops its partition here; nothing before it is held up and nothing after it is lost. */
export class ChangeRefused extends DeltapostError {
  readonly seqId: string

  constructor(arrival: Arrival, holding: Holding, cause: unknown) {
    const { origin, seqId } = arrival.identity
    super('CHANGE_REFUSED',
      `Postgres refuses change ${origin}:${seqId} of ${arrival.change.schema}.${arrival.change.table} (${refusalOf(cause)}); `
      + `partition ${holding.partition} of ${holding.topic} waits at offset ${arrival.offset}`,
      `npm run cli -- event show ${seqId}, then mend the target table; the partition goes on by itself`, { cause })
    this.seqId = seqId
  }
}

/** What refused it, by name; the server's message and detail quote values of the row. */
function refusalOf(cause: unknown): string {
  const names = ['constraint_name', 'column_name', 'table_name'] as const
  const fields = cause instanceof Error ? names.flatMap((name) => name in cause ? [`${name.replace('_name', '')} ${String(cause[name as keyof Error])}`] : []) : []
  return [`SQLSTATE ${sqlstateOf(cause) ?? 'none'}`, ...fields].join(', ')
}

/**
 * Applies arrivals of one partition in their order, one call per relation.
 *
 * `nextOffset` is stored with the last call, in the transaction of its effects; an earlier stop leaves the position, and
 * what was applied before it is recognised when it comes again.
 */
export async function applyArrivals(parts: ApplyParts, holding: Holding, arrivals: readonly Arrival[], nextOffset: bigint): Promise<Outcome> {
  const groups = [...Map.groupBy(arrivals, (arrival) => `${arrival.change.schema}\u001f${arrival.change.table}`).values()]
  if (groups.length === 0) return storePosition(parts.slot, holding, nextOffset)
  for (const [at, group] of groups.entries()) {
    const end = at === groups.length - 1 ? { nextOffset, last: arrivals.at(-1)! } : undefined
    if (await applyRelation(parts, holding, group, end) === 'FENCED') return 'FENCED'
  }
  return 'OK'
}

type End = { nextOffset: bigint; last: Arrival } | undefined

async function applyRelation(parts: ApplyParts, holding: Holding, arrivals: readonly Arrival[], end: End): Promise<Outcome> {
  const { schema, table } = arrivals[0]!.change
  for (let turn = 1; ; turn += 1) {
    const prepared = await parts.slot.run((sql) => parts.relations.prepare(sql, holding.topic, arrivals))
    try {
      const outcome = await applyPrepared(parts, holding, prepared, arrivals, end)
      if (outcome !== 'STALE') return outcome
    } catch (error) {
      parts.relations.forget(schema, table)
      if (isEnvironment(error)) throw error
      if (arrivals.length === 1) throw new ChangeRefused(arrivals[0]!, holding, error)
      return applyOneByOne(parts, holding, arrivals, end)
    }
    parts.relations.forget(schema, table)
    if (turn === 5) {
      throw new DeltapostError('RELATION_CHANGING', `${schema}.${table} changed ${turn} times while a batch was being applied`,
        'wait until whoever changes it is done', { retry: true })
    }
  }
}

/** After a refusal: everything before the change that is refused gets applied, and the error names that change. */
async function applyOneByOne(parts: ApplyParts, holding: Holding, arrivals: readonly Arrival[], end: End): Promise<Outcome> {
  for (const arrival of arrivals) {
    const last = arrival === arrivals.at(-1)
    if (await applyRelation(parts, holding, [arrival], last ? end : undefined) === 'FENCED') return 'FENCED'
  }
  return 'OK'
}

async function applyPrepared(
  parts: ApplyParts, holding: Holding, prepared: Prepared, arrivals: readonly Arrival[], end: End,
): Promise<Outcome | 'STALE'> {
  const asides: Element[] = []
  const elements: Element[] = []
  const applied: Arrival[] = []
  for (const arrival of arrivals) {
    const aside = setAside(arrival, prepared.shape, parts.clockTolerance)
    const element = buildElement(arrival, prepared.shape)
    if (aside === undefined) {
      element['~i'] = elements.push(element)
      applied.push(arrival)
    } else {
      asides.push({ ...element, '~i': 1, '~reason': aside.reason, '~message': aside.message })
      parts.log.warn({ seq_id: arrival.identity.seqId, reason: aside.reason }, aside.message)
    }
  }
  if (asides.length > 0) {
    const [row] = await parts.slot.run((sql) => sql<{ park: Outcome | 'STALE' }[]>`
      select inbox.park(${holding.group}, ${holding.topic}, ${holding.partition}, ${holding.term}, ${prepared.statementId},
        ${JSON.stringify(asides)}::text::json)`)
    if (row === undefined || row.park !== 'OK') return row?.park ?? 'FENCED'
  }
  if (elements.length === 0) return end === undefined ? 'OK' : storePosition(parts.slot, holding, end.nextOffset, end.last)
  const [row] = await parts.slot.run((sql) => sql<{ outcome: Outcome | 'STALE'; superseded: number[] | null }[]>`
    select outcome, superseded from inbox.apply(${holding.group}, ${holding.topic}, ${holding.partition}, ${holding.term},
      ${prepared.statementId}, ${JSON.stringify(elements)}::text::json,
      ${end?.nextOffset.toString() ?? null}, ${end?.last.offset ?? null}, ${end?.last.identity.origin ?? null}, ${end?.last.identity.seqId ?? null})`)
  if (row === undefined) throw new Error('inbox.apply returned no row')
  if (row.superseded !== null) await flagClockFaults(parts, prepared, elements, applied, row.superseded)
  return row.outcome
}

/**
 * A superseded update whose before-image is what the target holds was not late: a clock ran ahead. It is only marked,
 * and in a statement of its own, so that the hot one carries no before-images; a mark lost to a crash is not data.
 */
async function flagClockFaults(
  parts: ApplyParts, prepared: Prepared, elements: readonly Element[], arrivals: readonly Arrival[], superseded: readonly number[],
): Promise<void> {
  const flag = prepared.statements.flag
  const updates = superseded.filter((ordinal) => arrivals[ordinal - 1]?.change.operation === 'UPDATE')
  if (flag === null || updates.length === 0) return
  const late = updates.map((ordinal) => withBefore(elements[ordinal - 1]!, arrivals[ordinal - 1]!, prepared.shape))
  const flagged = await parts.slot.run((sql) => sql.unsafe<{ seq_id: string }[]>(flag.replaceAll('($1)', '($1::text::json)'), [JSON.stringify(late)]))
  if (flagged.length > 0) parts.log.warn({ seq_ids: flagged.map((row) => row.seq_id) }, 'superseded, yet the before-image is what the target holds: a clock of the source ran ahead')
}

/** Moves the position past records that had nothing to apply. */
export async function storePosition(slot: Slot, holding: Holding, nextOffset: bigint, last?: Arrival): Promise<Outcome> {
  const [row] = await slot.run((sql) => sql<{ outcome: Outcome }[]>`
    select outcome from inbox.apply(${holding.group}, ${holding.topic}, ${holding.partition}, ${holding.term}, null, null,
      ${nextOffset.toString()}, ${last?.offset ?? null}, ${last?.identity.origin ?? null}, ${last?.identity.seqId ?? null})`)
  if (row === undefined) throw new Error('inbox.apply returned no row')
  return row.outcome
}
