import { CHUNK_HEADER } from '../../outbox/chunk.ts'
import { ID_HEADER } from '../../outbox/record.ts'
import type { Identity } from '../../outbox/record.ts'
import { keepRejected } from '../../outbox/rejected.ts'
import type { Sql } from '../../outbox/sql.ts'
import type { Slot } from '../runtime/slot.ts'
import { storePosition } from './apply.ts'
import type { Holding } from './apply.ts'
import type { Part } from './arrival.ts'
import type { OpenSet } from './chunks.ts'
import { storeWaiting } from './position.ts'
import type { Session } from './session.ts'

/** A change of which nothing came for so long (milliseconds) is looked after: a chunk follows the other within a second. */
export const SILENT = 60_000

/**
 * Those of the publications that nothing more is to come of, since their change has an outcome on record: it arrived
 * whole before, by another partition, or by a later attempt.
 *
 * A retry is settled by an outcome that is not RETRYING, or by a later attempt: RETRYING is what it was sent for.
 */
async function settledOf(sql: Sql, identities: readonly Identity[]): Promise<Set<string>> {
  const rows = await sql<{ id: string }[]>`
    select i.origin || ':' || i.seq_id || ':' || i.attempt as id
    from unnest(${list(identities.map(({ origin }) => origin))}::smallint[], ${list(identities.map(({ seqId }) => seqId))}::bigint[],
                ${list(identities.map(({ attempt }) => attempt))}::integer[]) as i(origin, seq_id, attempt)
    join inbox.applied a on a.origin = i.origin and a.seq_id = i.seq_id
    where i.attempt = 0 or a.status <> 'RETRYING' or a.attempt > i.attempt`
  return new Set(rows.map(({ id }) => id))
}

/**
 * Gives up the open sets whose change has an outcome on record, and says in the position why it stays for the others.
 *
 * Age is no reason to give one up: a relay that comes back after a day sends all chunks anew, but one that was only
 * frozen goes on with the old run and acks it. So a position may stay for as long as somebody needs to look; where the
 * event is gone for good, an outcome on record (SKIPPED) lets it go on.
 */
export async function tendOpen(slot: Slot, holding: Holding, session: Pick<Session, 'from' | 'chunks'>): Promise<void> {
  const silent = session.chunks.silentFor(SILENT)
  if (silent.length === 0) return
  const settled = await slot.run((sql) => settledOf(sql, silent.map(({ identity }) => identity)))
  const [oldest, ...more] = silent.filter(({ identity }) => !settled.has(idOf(identity)))
  session.chunks.drop(silent.filter(({ identity }) => settled.has(idOf(identity))))
  if (settled.size > 0) await storePosition(slot, holding, { nextOffset: session.chunks.hold() ?? session.from })
  if (oldest === undefined) return
  await slot.run((sql) => storeWaiting(sql, holding, waitingText(oldest, more.length), oldest.identity.seqId))
}

function waitingText({ identity, chunk, head, seen }: OpenSet, more: number): string {
  return `only ${seen} of ${chunk.count} chunks of change ${idOf(identity)} have come, from offset ${head} on${more > 0 ? `, and parts of ${more} more` : ''}; `
    + `what lies behind is applied; its relay sends all of them again; where its event is gone: deltapost event publish ${identity.seqId}`
}

/**
 * Keeps chunks whose head is gone from the topic (its retention is shorter than the outage) as rejected, one entry for
 * each publication, with the bytes of the chunk that was met first. A repetition of what arrived whole is none.
 */
export async function keepHeadless(slot: Slot, at: { topic: string; partition: number }, parts: readonly Part[]): Promise<void> {
  const settled = await slot.run((sql) => settledOf(sql, parts.map(({ identity }) => identity)))
  for (const { identity, chunk, value, offset } of parts) {
    const id = idOf(identity)
    if (settled.has(id)) continue
    settled.add(id)
    await slot.run(async (sql) => {
      const [known] = await sql`
        select 1 from auditlog.rejected_request r
        where r.reason = 'incomplete_chunks' and r.headers ->> ${ID_HEADER} = ${id} and starts_with(r.path, ${`kafka:${at.topic}/`})`
      if (known !== undefined) return
      await keepRejected(sql, {
        path: `kafka:${at.topic}/${at.partition}/${offset}`, body: value, reason: 'incomplete_chunks',
        headers: { [ID_HEADER]: id, [CHUNK_HEADER]: `${chunk.index}:${chunk.count}:${chunk.total}` },
        detail: `chunk ${chunk.index + 1} of ${chunk.count} of change ${id} came and the ones before it did not; to send it again: deltapost event publish ${identity.seqId}`,
      })
    })
  }
}

function idOf({ origin, seqId, attempt }: Identity): string {
  return `${origin}:${seqId}:${attempt}`
}

/** A literal that the server reads; see outbox/ack.ts. */
function list(values: readonly (string | number)[]): string {
  return `{${values.join()}}`
}
