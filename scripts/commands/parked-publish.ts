import { beginActions, endActions } from '../../outbox/action.ts'
import { FROM_START, type ParkedFilter, unpublishedPage } from '../../outbox/parked.ts'
import { behindHorizon } from '../../outbox/publish-again.ts'
import { publishAgain } from '../../outbox/refused.ts'
import { say } from './print.ts'
import { everySecond, NOT_DONE } from './resume.ts'
import type { Sides } from './sides.ts'

const PAGE = 500

export const TOO_OLD = 'refused: older than HORIZON, so a later delete of its row may be forgotten'

/** What to type where changes from before the horizon were refused; the exit code says that something is left. */
export function leaveOld(count: number): void {
  if (count === 0) return
  process.exitCode = NOT_DONE
  process.stderr.write('Try: look at the rows in the source; --old publishes them all the same, and brings a row back that was deleted since\n')
}

type PublishOptions = { actor: string; old?: true; limit?: number; json?: true; signal?: AbortSignal }

/**
 * Puts changes whose publishing was given up into the outbox again; those that are still being retried go on as they are,
 * and those from before the horizon stay without `old`. Returns how many it looked at.
 */
export async function publishMatching({ config, first }: Sides, filter: ParkedFilter, options: PublishOptions): Promise<number> {
  const { actor, limit = Infinity, json, signal } = options
  const horizon = options.old === true ? null : config.horizon
  const tell = everySecond()
  let after = FROM_START
  let looked = 0
  let back = 0
  let refused = 0
  while (looked < limit && signal?.aborted !== true) {
    const page = await first.run((sql) => unpublishedPage(sql, { ...filter, status: filter.status ?? 'FAILED' }, after, Math.min(PAGE, limit - looked)))
    const last = page.at(-1)
    if (last === undefined) break
    looked += page.length
    after = { origin: last.origin, seqId: last.seq_id }
    const changes = page.map(({ origin, seq_id: seqId }) => ({ origin, seqId }))
    const seqIds = changes.map(({ seqId }) => seqId)
    const actions = await first.run((sql) => beginActions(sql, actor, 'publish', changes))
    const again = new Set(await first.run((sql) => publishAgain(sql, seqIds, horizon)))
    const old = await first.run((sql) => behindHorizon(sql, seqIds, horizon))
    const outcomes = seqIds.map((seqId) => again.has(seqId) ? 'to be published again' : old.has(seqId) ? TOO_OLD : 'on its way already')
    await first.run((sql) => endActions(sql, actions.map((id, at) => ({ id, outcome: outcomes[at]! }))))
    for (const [at, { origin, seqId }] of changes.entries()) {
      say(json === true ? JSON.stringify({ origin, seq_id: seqId, side: 'publish', outcome: outcomes[at] }) : `${origin}:${seqId}  ${outcomes[at]}`)
    }
    back += again.size
    refused += outcomes.filter((outcome) => outcome === TOO_OLD).length
    tell(`${back} to be published again`)
  }
  if (json !== true && looked > 0) say(`${back} to be published again, by the relay${refused > 0 ? `; ${refused} are older than HORIZON` : ''}`)
  leaveOld(refused)
  return looked
}
