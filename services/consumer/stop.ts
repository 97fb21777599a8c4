import type { ApplyParts, End, Holding, Outcome } from './apply.ts'
import { withRecord } from './element.ts'
import type { Arrival, Element, ParkedReason } from './element.ts'
import { faultOf } from './failure.ts'
import { DeltapostError } from '../../outbox/errors.ts'

/**
 * Stops the relation of these arrivals, unless it is stopped already, and parks them behind those that were parked
 * before, in the transaction that moves the position. STALE: it was resumed meanwhile.
 */
export async function stopRelation(
  parts: ApplyParts, holding: Holding, arrivals: readonly Arrival[], end: End, error: unknown,
): Promise<Outcome | 'STALE'> {
  const { schema, table } = arrivals[0]!.change
  const relation = await parts.slot.run((sql) => parts.relations.meet(sql, schema, table))
  // What was stopped when it was looked at may go on by now: that is no reason to stop it anew.
  const why = relation.state === 'STOPPED' || (error instanceof DeltapostError && error.code === 'RELATION_STOPPED') ? null : faultOf(error)
  const elements = arrivals.map((arrival) => recordOnly(arrival, 'RELATION_STOPPED', 'its relation was stopped when it came'))
  const [row] = await parts.slot.run((sql) => sql<{ outcome: Outcome | 'STALE' }[]>`
    select inbox.stop(${holding.group}, ${holding.topic}, ${holding.partition}, ${holding.term}, ${relation.id}, ${parts.destination}, ${why},
      ${JSON.stringify(elements)}::text::json, ${end?.nextOffset.toString() ?? null}, ${end?.last.offset ?? null},
      ${end?.last.identity.origin ?? null}, ${end?.last.identity.seqId ?? null}) as outcome`)
  if (why !== null && row?.outcome === 'OK') {
    parts.log.error({ schema, table, why }, 'the relation is stopped: its changes queue until it can be written, or until deltapost resume')
  }
  return row?.outcome ?? 'FENCED'
}

/** The element of a change that is parked unread: nothing of its values, which Postgres may be unable to read. */
export function recordOnly(arrival: Arrival, reason: ParkedReason, message: string): Element {
  const { identity } = arrival
  return withRecord({
    '~o': identity.origin, '~s': identity.seqId, '~e': identity.epoch, '~t': identity.time, '~f': arrival.offset,
    ...identity.attempt > 0 && { '~n': identity.attempt },
    '~reason': reason, '~message': message,
  }, arrival)
}
