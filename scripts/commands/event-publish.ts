import type { Command } from 'commander'

import { beginActions, endActions } from '../../outbox/action.ts'
import { DeltapostError } from '../../outbox/errors.ts'
import { publishStored, type StoredAgain, storedOf } from '../../outbox/publish-again.ts'
import { interruption } from '../interruption.ts'
import { actorOf } from './actor.ts'
import { leaveOld, TOO_OLD } from './parked-publish.ts'
import { say } from './print.ts'
import { everySecond } from './resume.ts'
import { seqId } from './seq-id.ts'
import { type Sides, withSides } from './sides.ts'

const PAGE = 500

type PublishOptions = { old?: true; note?: string; json?: true; as?: string }

export function addEventPublish(event: Command): void {
  event.command('publish')
    .description('publishes changes again from producer_log: what the topic lost before it was applied')
    .argument('<seq_id...>', 'the numbers the listener answered', (text: string, before: string[] | undefined) => [...before ?? [], seqId(text)])
    .option('--old', 'also those older than the horizon')
    .option('--note <why>', 'for the audit')
    .option('--json', 'one JSON object a line')
    .option('--as <name>', 'who does it, for the audit')
    .addHelpText('after', `
They go into the outbox, for the relay, and the audit shows them as pending until they are published. What has an outcome
at the target keeps it: the consumer recognises a change by its origin and seq_id. With --old a change from before HORIZON
is taken: if its row was deleted since, it comes back. Exits with 3 where such a one was left out.

Examples:
  deltapost event publish 4711 4712
  psql -Atc 'select seq_id from auditlog.pending where published and not deployed' | xargs -r deltapost event publish --note "topic was lost"`)
    .action((ids: string[], options: PublishOptions) => withSides((sides) => publish(sides, [...new Set(ids)], options)))
}

async function publish({ config, first }: Sides, seqIds: readonly string[], { old, note, json, as }: PublishOptions): Promise<void> {
  const changes = await first.run((sql) => storedOf(sql, seqIds))
  const known = new Set(changes.map((change) => change.seqId))
  const missing = seqIds.filter((id) => !known.has(id))
  if (missing.length > 0) throw noSuchChange(missing)
  const signal = interruption()
  const tell = everySecond()
  const done: StoredAgain[] = []
  for (let at = 0; at < changes.length && !signal.aborted; at += PAGE) {
    const page = changes.slice(at, at + PAGE)
    const actions = await first.run((sql) => beginActions(sql, actorOf(as), 'publish', page, note ?? null))
    const again = await first.run((sql) => publishStored(sql, page.map((change) => change.seqId), old === true ? null : config.horizon))
    await first.run((sql) => endActions(sql, again.map((one, place) => ({ id: actions[place]!, outcome: OUTCOMES[one.result] }))))
    for (const one of again) say(json === true ? jsonOf(one) : lineOf(one))
    done.push(...again)
    tell(`${done.length} of ${changes.length}`)
  }
  if (json !== true) say(summary(done))
  leaveOld(done.filter(({ result }) => result === 'OLD').length)
}

const OUTCOMES: Record<StoredAgain['result'], string> = { AGAIN: 'to be published again', WAITS: 'on its way already', OLD: TOO_OLD }

function lineOf({ origin, seq_id: id, result, deployed }: StoredAgain): string {
  return `${origin}:${id}  ${OUTCOMES[result]}${result === 'AGAIN' && deployed !== null ? `; it stays ${deployed}` : ''}`
}

function jsonOf({ origin, seq_id: id, result, deployed }: StoredAgain): string {
  return JSON.stringify({ origin, seq_id: id, outcome: OUTCOMES[result], consumer_deploy_status: deployed })
}

function summary(done: readonly StoredAgain[]): string {
  const again = done.filter(({ result }) => result === 'AGAIN')
  const settled = again.filter(({ deployed }) => deployed !== null).length
  const stays = settled === 0 ? '' : `; ${settled} of them have an outcome at the target, which stays: the consumer recognises them by origin and seq_id`
  return `${again.length} to be published again, by the relay${stays}`
}

/** `seqIds` are numbers of no change here; the first few are named. */
export function noSuchChange(seqIds: readonly string[]): DeltapostError {
  const named = `${seqIds.slice(0, 5).join(', ')}${seqIds.length > 5 ? ` and ${seqIds.length - 5} more` : ''}`
  return new DeltapostError('NO_SUCH_CHANGE', `no change has the number ${named}: repeats and rejected posts use up numbers too, and what is behind the horizon is gone`,
    'take the seq_id of the answer; deltapost rejected list shows what was not accepted')
}
