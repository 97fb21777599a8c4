import { encodeIdentity } from '../../outbox/record.ts'
import type { Sql } from '../../outbox/sql.ts'
import { readArrival } from './arrival.ts'
import { setAside } from './element.ts'
import type { Arrival, Element, ParkedReason } from './element.ts'
import { courseText, kindOf } from './failure.ts'
import type { Course } from './failure.ts'
import { singly } from './refused.ts'
import { changing } from './relations.ts'
import type { Prepared, Relations } from './relations.ts'
import { slicesOf } from './apply.ts'
import type { Slot } from '../runtime/slot.ts'

/** A change as it lies in inbox.parked, with where it was read from. Numbers that are bigint are text. */
export type Parked = {
  origin: number
  seqId: string
  epoch: number
  time: string
  reason: ParkedReason
  topic: string
  recordKey: string | null
  payload: string
  traceparent: string | null
  partition: number
  offset: string
}

export type TakeUpParts = { slot: Slot; relations: Relations; clockTolerance: number; course: Course }

/** How parked changes are taken up: `forced` by an operator, who also lets a TIME in the future pass. */
export type TakeUpOptions = { state: 'ACTIVE' | 'STOPPED'; together: boolean; forced: boolean }

/** The columns of a parked change; the caller adds from, where and order. */
export function parkedColumns(sql: Sql): ReturnType<Sql> {
  return sql`p.origin, p.seq_id as "seqId", p.epoch, p.time, p.reason, p.topic, p.record_key as "recordKey", p.payload, p.traceparent,
    a.partition, a."offset"`
}

/** The change again as it came from Kafka. */
export function arrivalOf(parked: Parked): Arrival {
  const { origin, seqId, epoch, time } = parked
  const read = readArrival({
    key: parked.recordKey === null ? null : Buffer.from(parked.recordKey),
    value: Buffer.from(parked.payload),
    headers: encodeIdentity({ origin, seqId, attempt: 0, epoch, time, seq: seqId }, parked.traceparent),
    offset: parked.offset,
    timestamp: '0',
  })
  if ('identity' in read) return read
  throw new Error(`the parked change ${origin}:${seqId} cannot be read: ${read.reason}`)
}

/**
 * Applies parked changes of one relation and topic, in the order given, as if they arrived now; those that are refused
 * are parked again. The one way back for queues, waits, and the operator's retry.
 *
 * `together` tries them in one call and takes them one by one where that is refused. Throws what stops the relation, and
 * what the environment threw; then they are parked as before.
 */
export async function takeUp(parts: TakeUpParts, changes: readonly Parked[], options: TakeUpOptions): Promise<void> {
  const arrivals = changes.map(arrivalOf)
  const [first] = arrivals
  if (first === undefined) return
  const { schema, table } = first.change
  for (let turn = 1; turn <= 5; turn += 1) {
    const prepared = await parts.slot.run((sql) => parts.relations.prepare(sql, changes[0]!.topic, arrivals, options.state))
    if (await takeUpPrepared(parts, prepared, changes, arrivals, options)) return
    parts.relations.forget(schema, table)
  }
  throw changing({ sourceSchema: schema, sourceTable: table })
}

async function takeUpPrepared(
  parts: TakeUpParts, prepared: Prepared, changes: readonly Parked[], arrivals: readonly Arrival[], options: TakeUpOptions,
): Promise<boolean> {
  const wanted: { element: Element; partition: number }[] = []
  for (const [at, arrival] of arrivals.entries()) {
    const change = changes[at]!
    const aside = setAside(arrival, prepared.shape, parts.clockTolerance)
    if (aside !== undefined && !(options.forced && aside.reason === 'CLOCK_AHEAD')) {
      await parts.slot.run((sql) => noteReason(sql, change, aside.reason, aside.message))
      continue
    }
    wanted.push({ element: { ...singly(arrival, prepared.shape), '~w': true, '~y': change.reason }, partition: change.partition })
  }
  // One by one each keeps the partition of its entry, and rows the order of their versions.
  const groups = options.together ? Map.groupBy(wanted, (one) => one.partition) : new Map([[0, wanted]])
  for (const [partition, group] of groups) {
    for (const elements of slicesOf(group.map(({ element }) => element))) {
      if (!await call(parts, prepared, elements, partition, options)) return false
    }
  }
  return true
}

async function call(parts: TakeUpParts, prepared: Prepared, elements: readonly Element[], partition: number, options: TakeUpOptions): Promise<boolean> {
  const run = async (oneByOne: boolean): Promise<boolean> => {
    const [row] = await parts.slot.run((sql) => sql<{ outcome: 'OK' | 'STALE' }[]>`
      select inbox.take_up(${prepared.statementId}, ${JSON.stringify(elements)}::text::json, ${partition}, ${options.state}, ${oneByOne},
        ${courseText(parts.course)}::text::jsonb) as outcome`)
    return row?.outcome === 'OK'
  }
  if (!options.together || elements.some((element) => '~q' in element)) return run(true)
  try {
    return await run(false)
  } catch (error) {
    if (kindOf(error) !== 'change') throw error
    return run(true)
  }
}

/** A queued change that must not be applied as it is stays parked, under its own reason. */
async function noteReason(sql: Sql, { origin, seqId, reason: was }: Parked, reason: ParkedReason, message: string): Promise<void> {
  await sql`
    with noted as (
      update inbox.parked p set reason = ${reason}, message = ${message}, retry_at = null where p.origin = ${origin} and p.seq_id = ${seqId} and p.reason = ${was}
      returning p.origin, p.seq_id
    )
    update inbox.applied a set failure = ${`${reason}: ${message}`} from noted n where a.origin = n.origin and a.seq_id = n.seq_id`
}
