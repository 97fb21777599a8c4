import type { BadChange } from '../../outbox/change.ts'
import { DeltapostError } from '../../outbox/errors.ts'
import { insertGroup, lookUpRepeats, type Accepted, type Repeat } from '../../outbox/intake.ts'
import { sqlstateOf, type Slot } from '../runtime/slot.ts'

/** What became of a change: its seq_id, the first one's if it is a repeat, or why it cannot be taken. */
export type Outcome = { seqId: string } | { reason: BadChange['reason']; detail: string }

/**
 * Commits a group and says for each change, in order, what became of it. Throws what the environment threw; then nothing
 * is known of any of them, and posting again is safe because a repeat is recognised.
 *
 * One change that Postgres refuses would fail its whole group, so a group that fails on data is halved until the culprit
 * stands alone. That costs about 2·log2(n) statements a culprit, and only where a reader let something through.
 */
export async function commitGroup(slot: Slot, changes: readonly Accepted[], again = false): Promise<Outcome[]> {
  try {
    return await commit(slot, changes)
  } catch (error) {
    const state = sqlstateOf(error) ?? ''
    // 23505: a number that was handed out before (a restore); nothing is wrong with the change.
    if (!/^(22|23|54)/.test(state) || state === '23505') throw error
    // 23514: a partition was attached while the statement waited for the default one; routed anew it passes.
    if (changes.length === 1 && state === '23514' && !again) return commitGroup(slot, changes, true)
    if (changes.length === 1) return [{ reason: 'refused_by_database', detail: `SQLSTATE ${state}` }]
    const middle = changes.length >> 1
    return [...await commitGroup(slot, changes.slice(0, middle)), ...await commitGroup(slot, changes.slice(middle))]
  }
}

async function commit(slot: Slot, changes: readonly Accepted[]): Promise<Outcome[]> {
  const seqIds: (string | undefined)[] = changes.map(() => undefined)
  for (const { ordinal, seqId } of await slot.run((sql) => insertGroup(sql, changes))) seqIds[ordinal] = seqId
  const keys = changes.filter((_, ordinal) => seqIds[ordinal] === undefined).map(({ eventKey }) => eventKey)
  const repeats = keys.length === 0 ? [] : await slot.run((sql) => lookUpRepeats(sql, keys))
  const byKey = new Map(repeats.map((repeat) => [repeat.eventKey, repeat]))
  return changes.map((change, ordinal) => {
    const seqId = seqIds[ordinal]
    return seqId === undefined ? repeatOutcome(change, byKey.get(change.eventKey)) : { seqId }
  })
}

function repeatOutcome(change: Accepted, repeat: Repeat | undefined): Outcome {
  if (repeat === undefined) {
    throw new DeltapostError('REPEAT_VANISHED', `the event key ${change.eventKey} was there and is gone`,
      'post again; if it happens twice, look for who deletes from outbox.seen', { retry: true })
  }
  if (repeat.contentHash !== change.contentHash) {
    return { reason: 'idempotency_conflict', detail: `the Idempotency-Key is that of another change, seq_id ${repeat.seqId}` }
  }
  return { seqId: repeat.seqId }
}
