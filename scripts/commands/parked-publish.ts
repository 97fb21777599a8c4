import { beginActions, endActions } from '../../outbox/action.ts'
import { FROM_START, type ParkedFilter, unpublishedPage } from '../../outbox/parked.ts'
import { publishAgain } from '../../outbox/refused.ts'
import { say } from './print.ts'
import { everySecond } from './resume.ts'
import type { Sides } from './sides.ts'

const PAGE = 500

/** Puts changes whose publishing was given up into the outbox again; those that are still being retried go on as they are. Returns how many. */
export async function publishMatching({ first }: Sides, filter: ParkedFilter, options: { actor: string; limit?: number; json?: true; signal?: AbortSignal }): Promise<number> {
  const { actor, limit = Infinity, json, signal } = options
  const tell = everySecond()
  let after = FROM_START
  let looked = 0
  let back = 0
  while (looked < limit && signal?.aborted !== true) {
    const page = await first.run((sql) => unpublishedPage(sql, { ...filter, status: filter.status ?? 'FAILED' }, after, Math.min(PAGE, limit - looked)))
    const last = page.at(-1)
    if (last === undefined) break
    looked += page.length
    after = { origin: last.origin, seqId: last.seq_id }
    const changes = page.map(({ origin, seq_id: seqId }) => ({ origin, seqId }))
    const actions = await first.run((sql) => beginActions(sql, actor, 'publish', changes))
    const again = new Set(await first.run((sql) => publishAgain(sql, changes.map(({ seqId }) => seqId))))
    const outcomes = changes.map(({ seqId }) => again.has(seqId) ? 'to be published again' : 'on its way already')
    await first.run((sql) => endActions(sql, actions.map((id, at) => ({ id, outcome: outcomes[at]! }))))
    for (const [at, { origin, seqId }] of changes.entries()) {
      say(json === true ? JSON.stringify({ origin, seq_id: seqId, side: 'publish', outcome: outcomes[at] }) : `${origin}:${seqId}  ${outcomes[at]}`)
    }
    back += again.size
    tell(`${back} to be published again`)
  }
  if (json !== true && looked > 0) say(`${back} to be published again, by the relay`)
  return looked
}
