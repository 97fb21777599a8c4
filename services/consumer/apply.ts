import type { Log } from '../runtime/log.ts'
import { sqlstateOf } from '../runtime/slot.ts'
import type { Slot } from '../runtime/slot.ts'
import { setAside, withBefore } from './element.ts'
import type { Arrival, Element } from './element.ts'
import { courseText, kindOf } from './failure.ts'
import type { Course } from './failure.ts'
import { candidatesOf, documentOf, probe } from './probe.ts'
import type { Candidate, LiesIn, Refusal } from './probe.ts'
import { retryElement, singly } from './refused.ts'
import { changing } from './relations.ts'
import type { Prepared, Relations } from './relations.ts'
import { recordOnly, stopRelation } from './stop.ts'

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
  course: Course
  destination: string
  log: Log
}

/** FENCED: another consumer has the partition. Otherwise everything up to the last arrival is applied or set aside. */
export type Outcome = 'OK' | 'FENCED'

/** Where the partition stands after a call; undefined while other calls of the same batch are still to come. */
export type End = { nextOffset: bigint; last: Arrival } | undefined

/** Batches that are looked at before they are applied, after one was refused. */
const WARY = 20

/**
 * Applies arrivals of one partition in their order, one call per relation.
 *
 * `nextOffset` is stored with the last call, in the transaction of its effects; an earlier stop leaves the position, and
 * what was applied before it is recognised when it comes again. Changes that Postgres refuses are parked, a relation
 * that cannot be written is stopped; both are OK. Throws what the environment threw.
 */
export async function applyArrivals(parts: ApplyParts, holding: Holding, arrivals: readonly Arrival[], nextOffset: bigint): Promise<Outcome> {
  const groups = [...Map.groupBy(arrivals, (arrival) => `${arrival.change.schema}\u001f${arrival.change.table}`).values()]
  if (groups.length === 0) return storePosition(parts.slot, holding, { nextOffset })
  for (const [at, group] of groups.entries()) {
    const end = at === groups.length - 1 ? { nextOffset, last: arrivals.at(-1)! } : undefined
    if (await applyRelation(parts, holding, group, end) === 'FENCED') return 'FENCED'
  }
  return 'OK'
}

async function applyRelation(parts: ApplyParts, holding: Holding, arrivals: readonly Arrival[], end: End): Promise<Outcome> {
  const { schema, table } = arrivals[0]!.change
  for (let turn = 1; turn <= 5; turn += 1) {
    try {
      const prepared = await parts.slot.run((sql) => parts.relations.prepare(sql, holding.topic, arrivals))
      const outcome = await applyPrepared(parts, holding, prepared, arrivals, end)
      if (outcome !== 'STALE') return outcome
    } catch (error) {
      parts.relations.forget(schema, table)
      // A refusal that is not undone for one change alone, as of a constraint trigger, is its table's.
      if (kindOf(error) === 'environment') throw error
      const outcome = await stopRelation(parts, holding, arrivals, end, error)
      if (outcome !== 'STALE') return outcome
    }
    parts.relations.forget(schema, table)
  }
  throw changing({ sourceSchema: schema, sourceTable: table })
}

async function applyPrepared(
  parts: ApplyParts, holding: Holding, prepared: Prepared, arrivals: readonly Arrival[], end: End,
): Promise<Outcome | 'STALE'> {
  const asides: Element[] = []
  const plain: Arrival[] = []
  const alone: Element[] = []
  for (const arrival of arrivals) {
    const aside = setAside(arrival, prepared.shape, parts.clockTolerance)
    if (aside === undefined && arrival.identity.attempt > 0) alone.push(retryElement(arrival, prepared.shape))
    else if (aside === undefined) plain.push(arrival)
    else {
      asides.push(recordOnly(arrival, aside.reason, aside.message))
      parts.log.warn({ seq_id: arrival.identity.seqId, reason: aside.reason }, aside.message)
    }
  }
  if (asides.length > 0) {
    const [row] = await parts.slot.run((sql) => sql<{ park: Outcome | 'STALE' }[]>`
      select inbox.park(${holding.group}, ${holding.topic}, ${holding.partition}, ${holding.term}, ${prepared.statementId},
        ${JSON.stringify(asides)}::text::json)`)
    if (row === undefined || row.park !== 'OK') return row?.park ?? 'FENCED'
  }
  if (plain.length > 0) {
    const { outcome, left } = await applyTogether(parts, holding, prepared, plain, alone.length === 0 ? end : undefined)
    if (outcome !== 'OK') return outcome
    if (left.length === 0 && alone.length === 0) return 'OK' // the position moved with it
    alone.push(...left.map(({ arrival, refusal }) => singly(arrival, prepared.shape, refusal)))
  }
  if (alone.length > 0) return applyAlone(parts, holding, prepared, alone, end)
  return end === undefined ? 'OK' : storePosition(parts.slot, holding, end)
}

type Together = { outcome: Outcome | 'STALE'; left: readonly { arrival: Arrival; refusal?: Refusal | undefined }[] }

/** Applies in one call what can be; `left` are those to be taken one by one, after which the position is still to be stored. */
async function applyTogether(parts: ApplyParts, holding: Holding, prepared: Prepared, plain: readonly Arrival[], end: End): Promise<Together> {
  const candidates = candidatesOf(plain, prepared.shape)
  let found: Awaited<ReturnType<typeof probe>> = { refused: new Map(), among: new Set() }
  for (let looked = false; ; looked = true) {
    if (looked || prepared.wary > 0) found = await probe(parts.slot, prepared, candidates)
    prepared.wary = found.refused.size > 0 ? WARY : Math.max(0, prepared.wary - 1)
    const good = candidates.filter((candidate) => !found.among.has(candidate))
    const left = [...found.among].map((candidate) => ({ arrival: candidate.arrival, refusal: found.refused.get(candidate) }))
    if (left.length > 0 && !looked) parts.log.warn({ ...namesOf(plain), refused: left.length }, 'changes are refused by the target and taken one by one')
    if (good.length === 0) return { outcome: 'OK', left }
    try {
      const { outcome, held } = await applySet(parts, [{ holding, end: left.length === 0 ? end : undefined }], prepared, good)
      return { outcome, left: [...left, ...held.map((arrival) => ({ arrival }))] }
    } catch (error) {
      if (kindOf(error) !== 'change') throw error
      prepared.wary = WARY
      if (!looked) continue
      if (sqlstateOf(error) === '23514') parts.relations.forget(plain[0]!.change.schema, plain[0]!.change.table) // a CHECK that is new
      parts.log.warn({ ...namesOf(plain), changes: plain.length }, 'a change is refused by the target; the batch is taken one by one')
      return { outcome: 'OK', left: plain.map((arrival) => ({ arrival })) }
    }
  }
}

function namesOf(arrivals: readonly Arrival[]): { schema: string; table: string } {
  const { schema, table } = arrivals[0]!.change
  return { schema, table }
}

/** A partition in a call, and where it stands after that. */
export type Stand = { holding: Holding; end: { nextOffset: bigint; last?: Arrival | undefined } | undefined }

/** Applies changes of one relation that lie in the partitions of `stands`; `liesIn` says where there are several. */
export async function applySet(
  parts: ApplyParts, stands: readonly Stand[], prepared: Prepared, candidates: readonly Candidate[], liesIn?: LiesIn,
): Promise<{ outcome: Outcome | 'STALE'; held: Arrival[] }> {
  const changes = onceEach(candidates)
  const row = await callApply(parts.slot, stands, prepared.statementId, documentOf(changes, liesIn))
  if (row.superseded !== null) await flagClockFaults(parts, prepared, row.superseded.map((ordinal) => changes[ordinal - 1]!))
  return { outcome: row.outcome, held: (row.held ?? []).map((ordinal) => changes[ordinal - 1]!.arrival) }
}

/** Without what a relay published twice: a document has each change once. */
function onceEach(candidates: readonly Candidate[]): readonly Candidate[] {
  const first = new Map<string, Candidate>()
  for (const candidate of candidates) {
    const { origin, seqId } = candidate.arrival.identity
    const name = `${origin}:${seqId}`
    if (!first.has(name)) first.set(name, candidate)
  }
  return first.size === candidates.length ? candidates : [...first.values()]
}

/** Some hundreds a call, for each has a subtransaction; and no more bytes than a call of many. */
const slice = { changes: 200, bytes: 8 << 20 }

async function applyAlone(parts: ApplyParts, holding: Holding, prepared: Prepared, elements: readonly Element[], end: End): Promise<Outcome | 'STALE'> {
  const slices = [...slicesOf(elements)]
  for (const [at, changes] of slices.entries()) {
    const last = at === slices.length - 1 ? end : undefined
    const [row] = await parts.slot.run((sql) => sql<{ outcome: Outcome | 'STALE' }[]>`
      select inbox.apply_singly(${holding.group}, ${holding.topic}, ${holding.partition}, ${holding.term}, ${prepared.statementId},
        ${JSON.stringify(changes)}::text::json, ${courseText(parts.course)}::text::jsonb, ${last?.nextOffset.toString() ?? null},
        ${last?.last.offset ?? null}, ${last?.last.identity.origin ?? null}, ${last?.last.identity.seqId ?? null}) as outcome`)
    if (row?.outcome !== 'OK') return row?.outcome ?? 'FENCED'
  }
  return 'OK'
}

/** Cuts elements, whose "~i" counts anew in each slice. */
export function* slicesOf(elements: readonly Element[]): Generator<Element[]> {
  let cut: Element[] = []
  let bytes = 0
  for (const element of elements) {
    const size = String(element['~p']).length
    if (cut.length > 0 && (cut.length === slice.changes || bytes + size > slice.bytes)) {
      yield cut
      cut = []
      bytes = 0
    }
    element['~i'] = cut.push(element)
    bytes += size
  }
  if (cut.length > 0) yield cut
}

/**
 * A superseded update whose before-image is what the target holds was not late: a clock ran ahead. It is only marked,
 * and in a statement of its own, so that the hot one carries no before-images; a mark lost to a crash is not data.
 */
async function flagClockFaults(parts: ApplyParts, prepared: Prepared, superseded: readonly Candidate[]): Promise<void> {
  const flag = prepared.statements.flag
  const updates = superseded.filter(({ arrival }) => arrival.change.operation === 'UPDATE')
  if (flag === null || updates.length === 0) return
  const late = updates.map(({ element, arrival }) => withBefore(element, arrival, prepared.shape))
  const flagged = await parts.slot.run((sql) => sql.unsafe<{ seq_id: string }[]>(flag.replaceAll('($1)', '($1::text::json)'), [JSON.stringify(late)]))
  if (flagged.length > 0) parts.log.warn({ seq_ids: flagged.map((row) => row.seq_id) }, 'superseded, yet the before-image is what the target holds: a clock of the source ran ahead')
}

/** Moves the position past records that had nothing to apply. */
export async function storePosition(slot: Slot, holding: Holding, end: { nextOffset: bigint; last?: Arrival }): Promise<Outcome> {
  const { outcome } = await callApply(slot, [{ holding, end }], null, null)
  return outcome === 'FENCED' ? 'FENCED' : 'OK'
}

type Applied = { outcome: Outcome | 'STALE'; superseded: number[] | null; held: number[] | null }

async function callApply(slot: Slot, stands: readonly Stand[], statementId: number | null, document: string | null): Promise<Applied> {
  const { group, topic } = stands[0]!.holding
  const list = (of: (stand: Stand) => bigint | number | string | null | undefined): string => `{${stands.map((stand) => of(stand) ?? 'null').join()}}`
  const [row] = await slot.run((sql) => sql<Applied[]>`
    select outcome, superseded, held from inbox.apply(${group}, ${topic}, ${list(({ holding }) => holding.partition)}::integer[],
      ${list(({ holding }) => holding.term)}::bigint[], ${statementId}, ${document}::text::json,
      ${list(({ end }) => end?.nextOffset)}::bigint[], ${list(({ end }) => end?.last?.offset)}::bigint[],
      ${list(({ end }) => end?.last?.identity.origin)}::smallint[], ${list(({ end }) => end?.last?.identity.seqId)}::bigint[])`)
  if (row === undefined) throw new Error('inbox.apply returned no row')
  return row
}
