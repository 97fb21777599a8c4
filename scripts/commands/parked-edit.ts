import { readFileSync } from 'node:fs'
import { resolve } from 'node:path'
import { type Command, InvalidArgumentError } from 'commander'

import { BadChange } from '../../outbox/change.ts'
import { readRecord, sameRow, withChange, withValues } from '../../outbox/edit-record.ts'
import { DeltapostError } from '../../outbox/errors.ts'
import { type ChangeId, editParked, FROM_START, type ParkedFilter, parkedPage, type ParkedWhole, skipParked } from '../../outbox/parked.ts'
import { actorOf } from './actor.ts'
import { retryMatching } from './parked-retry.ts'
import { addFilters, changeId, changeIds, type FilterOptions, parkedWhole, selectionOf } from './parked-selection.ts'
import { say } from './print.ts'
import { everySecond } from './resume.ts'
import { type Sides, withSides } from './sides.ts'

type Values = ReadonlyMap<string, string | null>
type EditOptions = { file?: string; set?: Values; setNull?: Values; retry?: true; note?: string; as?: string }

export function addEdit(parked: Command): void {
  parked.command('edit')
    .description('replaces the record of a parked change, or values in it')
    .argument('<id>', 'its seq_id, or origin:seq_id', changeId)
    .option('--file <path>', 'the change as a sender would post it, or a record')
    .option('--set <column=value>', 'this value, of the row as the change leaves it; may be repeated', assignment)
    .option('--set-null <column>', 'no value', (name: string, before: Values | undefined) => new Map([...before ?? [], [name, null]]))
    .option('--retry', 'and apply it now')
    .option('--note <why>', 'for the audit')
    .option('--as <name>', 'who does it, for the audit')
    .addHelpText('after', `
The number and the version of the change stay, and so must its table and the row it is of.
The record as it came stays in producer_log, or else in the audit (deltapost parked show).

Examples:
  deltapost parked edit 4711 --set country_code=DE --retry
  deltapost parked edit 4711 --file mended.json --note "ticket 12"`)
    .action((id: ChangeId, options: EditOptions) => withSides((sides) => edit(sides, id, options)))
}

export function addSkip(parked: Command): void {
  addFilters(parked.command('skip')
    .description('gives parked changes up; what waits behind them is tried again')
    .argument('[id...]', 'seq_id, or origin:seq_id', changeIds)
    .requiredOption('--note <why>', 'for the audit')
    .option('--all', 'everything that is parked')
    .option('--as <name>', 'who does it, for the audit'))
    .addHelpText('after', `
Their records stay: deltapost parked list --status SKIPPED, and deltapost parked retry ID takes one back.

Examples:
  deltapost parked skip 4711 --note "the country was never used"
  deltapost parked skip --table guildhall.user_rating --sqlstate 22001 --note "ticket 12"`)
    .action((ids: ChangeId[] | undefined, options: FilterOptions & { all?: true; note: string; as?: string }) =>
      withSides(async (sides) => skip(sides, (await selectionOf(sides, ids ?? [], { ...options, side: 'deploy' })).deploy ?? {}, options)))
}

async function edit(sides: Sides, id: ChangeId, options: EditOptions): Promise<void> {
  const was = await parkedWhole(sides, id)
  const name = `${was.origin}:${was.seq_id}`
  const payload = edited(was, options)
  if (!await sides.target.run((sql) => editParked(sql, actorOf(options.as), was, payload, options.note ?? null))) {
    throw new DeltapostError('PARKED_CHANGED', `the change ${name} was applied or edited meanwhile`, `deltapost parked show ${name}`)
  }
  say(`${name} is edited${options.retry === true ? '' : `; to apply it: deltapost parked retry ${name}`}`)
  if (options.retry === true) await retryMatching(sides, { ids: [{ origin: was.origin, seqId: was.seq_id }] }, { actor: actorOf(options.as) })
}

/** The record with what the options say, if it is then still a change of the same row. */
function edited(was: ParkedWhole, { file, set, setNull }: EditOptions): string {
  const values = new Map([...set ?? [], ...setNull ?? []])
  if ((file === undefined) === (values.size === 0)) {
    throw new DeltapostError('EDIT_UNNAMED', file === undefined ? 'nothing to change is named' : '--file replaces the whole record', 'either --file PATH, or --set COLUMN=VALUE and --set-null COLUMN')
  }
  try {
    const payload = file === undefined ? withValues(was.payload, values) : withChange(was.payload, textOf(file), was.schema_name)
    const [before, after] = [was.payload, payload].map((text) => readRecord(text, was.schema_name))
    if (before === undefined || after === undefined) throw new Error('two records are read as two changes')
    if (after.schema !== before.schema || after.table !== before.table) throw refused(`it is a change of ${after.schema}.${after.table}, and the parked one of ${before.schema}.${before.table}`)
    // What waits behind it waits for this row, and would wait for ever.
    if (was.row_key !== null && !sameRow(before, after, was.key_columns ?? [])) throw refused('its key is another: it is a change of another row')
    return payload
  } catch (error) {
    if (error instanceof BadChange) throw refused(`it is no change: ${error.reason}, ${error.message}`)
    throw error
  }
}

function refused(why: string): DeltapostError {
  return new DeltapostError('EDIT_REFUSED', `the edited record is not taken: ${why}`, 'mend it; or deltapost parked skip, and post the right change to the listener')
}

function textOf(file: string): string {
  try {
    return readFileSync(file, 'utf8')
  } catch (cause) {
    throw new DeltapostError('FILE_UNREADABLE', `${resolve(file)} cannot be read`, 'name the file with its whole path', { cause })
  }
}

async function skip({ target }: Sides, filter: ParkedFilter, { note, limit = Infinity, as }: { note: string; limit?: number; as?: string }): Promise<void> {
  const tell = everySecond()
  let after = FROM_START
  let looked = 0
  let skipped = 0
  while (looked < limit) {
    const page = await target.run((sql) => parkedPage(sql, filter, after, Math.min(200, limit - looked)))
    const last = page.at(-1)
    if (last === undefined) break
    looked += page.length
    after = { origin: last.origin, seqId: last.seq_id }
    const done = await target.run((sql) => skipParked(sql, actorOf(as), page.map(({ origin, seq_id: seqId }) => ({ origin, seqId })), note))
    skipped += done.filter(({ was }) => was !== null).length
    tell(`${skipped} skipped`)
  }
  say(`${skipped} skipped${looked > skipped ? `; ${looked - skipped} were skipped before or are parked no more` : ''}`)
}

function assignment(text: string, before: Values | undefined): Values {
  const at = text.indexOf('=')
  if (at < 1) throw new InvalidArgumentError('column=value is expected')
  return new Map([...before ?? [], [text.slice(0, at), text.slice(at + 1)]])
}
