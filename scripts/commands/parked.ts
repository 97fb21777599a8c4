import { closeSync, openSync, writeFileSync } from 'node:fs'
import type { Command } from 'commander'

import { actionsOf } from '../../outbox/action.ts'
import { readRecord } from '../../outbox/edit-record.ts'
import { DeltapostError } from '../../outbox/errors.ts'
import {
  type After, behindOf, type ChangeId, exportPage, FROM_START, type NewestVersion, newestVersion, type ParkedCount, type ParkedEntry, type ParkedFilter, parkedPage,
  type ParkedWhole, unpublishedPage,
} from '../../outbox/parked.ts'
import { readTarget } from '../../services/consumer/target.ts'
import { interruption } from '../interruption.ts'
import { actorOf } from './actor.ts'
import { rehearse, REHEARSED } from './dry-run.ts'
import { addEdit, addSkip } from './parked-edit.ts'
import { publishMatching } from './parked-publish.ts'
import { lineOf, retryMatching, selectedRound } from './parked-retry.ts'
import { addFilters, changeId, changeIds, countsOf, entryNamed, type FilterOptions, filterOf, parkedWhole, selectionOf, sideName } from './parked-selection.ts'
import { say, sayFields, sayJson, sayTable, size } from './print.ts'
import { everySecond, NOT_DONE } from './resume.ts'
import { type Sides, withSides } from './sides.ts'
import { targetRow } from './target-row.ts'

const SHOWN = 2_048
const PAGE = 1_000
/** Lines of a list for a person. */
const LINES = 100

export function addParked(program: Command): void {
  const parked = program.command('parked').description('changes that could not be published or applied: what is wrong, and the ways out')
  addList(parked)
  parked.command('show')
    .description('all about one: the record, its row in the target, what waits behind it, what was done')
    .argument('<id>', 'its seq_id, or origin:seq_id', changeId)
    .option('--full', 'the whole record, not its first 2 KB')
    .option('--json', 'one JSON document')
    .addHelpText('after', `
Examples:
  deltapost parked show 4711
  deltapost parked show 2:4711 --json --full`)
    .action((id: ChangeId, options: { full?: true; json?: true }) => withSides((sides) => show(sides, id, options)))
  addEdit(parked)
  addRetry(parked)
  addSkip(parked)
  addFilters(parked.command('export')
    .description('the records with their reasons, one JSON object a line, to be mended elsewhere and posted again')
    .requiredOption('--out <file>', '- for stdout'))
    .addHelpText('after', `
Only what is parked at the target; what could not be published is in producer_log.

Examples:
  deltapost parked export --table guildhall.country --out country.ndjson
  deltapost parked export --status FAILED --out - | jq -r .payload`)
    .action((options: FilterOptions & { out: string }) => withSides((sides) => exportTo(sides, filterOf(options), options)))
}

function addList(parked: Command): void {
  addFilters(parked.command('list')
    .description('what is set aside, by number, and how much of what')
    .option('--side <side>', 'publish: the broker refused it; deploy: the target did', sideName))
    .option('--count', 'only how much of what')
    .option('--json', 'one JSON object a line, all unless --limit is given; with --count one document')
    .addHelpText('after', `
Examples:
  deltapost parked list --table guildhall.user_rating --since 2h
  deltapost parked list --status FAILED --count
  deltapost parked list --json > parked.ndjson`)
    .action((options: FilterOptions & { count?: true; json?: true }) => withSides((sides) => list(sides, options)))
}

function addRetry(parked: Command): void {
  addFilters(parked.command('retry')
    .description('applies parked changes now, row by row in the order of their versions, and publishes again what was given up')
    .argument('[id...]', 'seq_id, or origin:seq_id', changeIds)
    .option('--side <side>', 'publish: only what the broker refused; deploy: only what the target did', sideName)
    .option('--dry-run', 'in a transaction that is rolled back; shows the difference it would make'))
    .option('--all', 'everything that is parked and not given up')
    .option('--old', 'of what could not be published also what is older than the horizon')
    .option('--json', 'one JSON object a line')
    .option('--as <name>', 'who does it, for the audit')
    .addHelpText('after', `
What could not be published goes into the outbox again, for the relay. The rest is applied here and now: it uses up no
attempt, and a TIME in the future passes. What waited behind a change that was applied follows it.
What was given up (SKIPPED) comes back by its number or by --status SKIPPED only.
With --old a change from before HORIZON is published again: if its row was deleted since, it comes back.
Exits with 3 where something is still set aside.

Examples:
  deltapost parked retry 4711 --dry-run
  deltapost parked retry --table guildhall.user_rating --sqlstate 22001`)
    .action((ids: ChangeId[] | undefined, options: FilterOptions & { all?: true; dryRun?: true; old?: true; json?: true; as?: string }) => withSides(async (sides) => {
      const { deploy, publish } = await selectionOf(sides, ids ?? [], options)
      if (options.dryRun === true) return dryRun(sides, deploy ?? { ids: [] }, options)
      const how = { ...options, actor: actorOf(options.as), signal: interruption() }
      const published = publish === undefined ? 0 : await publishMatching(sides, publish, how)
      if (deploy !== undefined) await retryMatching(sides, deploy, { ...how, limit: (options.limit ?? Infinity) - published })
    }))
}

async function list(sides: Sides, options: FilterOptions & { count?: true; json?: true }): Promise<void> {
  const filter = filterOf(options)
  const { side, limit = options.json === true ? Infinity : LINES } = options
  if (options.count !== true) {
    const line = options.json === true ? (entry: ParkedEntry) => JSON.stringify(entry) : lister()
    let left = limit
    for (const [name, slot, page] of [['deploy', sides.target, parkedPage], ['publish', sides.first, unpublishedPage]] as const) {
      if (side !== undefined && side !== name) continue
      left -= await pages(left, (after, most) => slot.run((sql) => page(sql, filter, after, most)), (entries) => sayAll(entries.map(line)))
    }
    if (options.json === true) return
  }
  const counts = await countsOf(sides, filter, side)
  if (options.json === true) return sayJson(counts)
  if (options.count !== true && counts.length > 0) say()
  sayTable(counts.map((entry) => countLine(entry)), 'nothing is set aside')
}

/** Reads page by page until there are no more or `limit` is reached; returns how many there were. */
async function pages<T extends { origin: number; seq_id: string }>(
  limit: number, read: (after: After, most: number) => Promise<T[]>, take: (page: readonly T[]) => Promise<void>,
): Promise<number> {
  let after = FROM_START
  let done = 0
  while (done < limit) {
    const page = await read(after, Math.min(PAGE, limit - done))
    const last = page.at(-1)
    if (last === undefined) break
    await take(page)
    done += page.length
    after = { origin: last.origin, seqId: last.seq_id }
  }
  return done
}

function countLine({ count, schema_name: schema, table_name: table, side, status, reason, sqlstate }: ParkedCount): Record<string, unknown> {
  return { count, table: `${schema}.${table}`, side, status, reason, sqlstate }
}

/** Lines of a table whose rows are not known beforehand; the head comes with the first. */
function lister(): (entry: ParkedEntry) => string {
  const widths = { id: 12, table: 28, side: 7, status: 9, reason: 16, state: 5, attempts: 8, parked_at: 19 }
  let head = `  ${Object.entries(widths).map(([name, width]) => name.padEnd(width)).join('  ')}  message\n`
  return (entry) => {
    const cells = [`${entry.origin}:${entry.seq_id}`, `${entry.schema_name}.${entry.table_name}`, entry.side, entry.status, entry.reason, entry.sqlstate ?? '-',
      String(entry.attempts), entry.parked_at.slice(0, 19)]
    const line = `${head}  ${cells.map((cell, at) => cell.padEnd(Object.values(widths)[at] ?? 0)).join('  ')}  ${entry.message}`
    head = ''
    return line
  }
}

/** Waits until a slow reader has taken the lines: 100,000 of them are not to be held in memory. */
async function sayAll(lines: readonly string[]): Promise<void> {
  if (process.stdout.write(`${lines.join('\n')}\n`)) return
  await new Promise((resolve) => process.stdout.once('drain', resolve))
}

async function show(sides: Sides, id: ChangeId, { full, json }: { full?: true; json?: true }): Promise<void> {
  const { side } = await entryNamed(sides, id)
  if (side === 'publish') return showUnpublished(sides, id, json)
  const { target } = sides
  const entry = await parkedWhole(sides, id)
  const { payload, relation, row_key: key, key_columns: keyColumns, target_schema: schema, target_table: table, ...told } = entry
  const newest = appliedVersion(await target.run((sql) => newestVersion(sql, relation, key)))
  const there = await target.run((sql) => readTarget(sql, schema, table))
  const row = there === undefined ? undefined : await targetRow((work) => target.run(work), there, keyColumns ?? [], readRecord(payload, entry.schema_name))
  const behind = await target.run((sql) => behindOf(sql, entry))
  const actions = await target.run((sql) => actionsOf(sql, entry.origin, entry.seq_id))
  const text = full === true || payload.length <= SHOWN ? payload : `${payload.slice(0, SHOWN)}... (${payload.length - SHOWN} characters more: --full)`
  if (json === true) return sayJson({ ...told, row_key: key, row_version: newest, target_row: row ?? null, behind, actions, payload: text })
  sayFields({ ...told, bytes: size(told.bytes), row_key: key })
  say(`row ${schema}.${table}${key === null ? '' : ` ${key}`}`)
  if (newest !== null) sayFields({ 'newest version': newest.version, 'of origin': newest.origin, deleted: newest.deleted })
  else if (key !== null) sayFields({ 'newest version': 'never applied' })
  say(row === undefined ? '  cannot be told: no table, or no key that can be read' : row === null ? '  is not there' : `  ${JSON.stringify(row)}`)
  say(`waiting behind it: ${behind.count}`)
  if (behind.first.length > 0) sayTable(behind.first)
  say('done about it')
  sayTable(actions.map(({ id: _id, ...action }) => action), 'nothing')
  say(`payload\n  ${text}`)
  say(`Try: ${waysOut(entry)}`)
}

/** A row that was only ever parked has a version below any other, which stands for none. */
function appliedVersion(newest: NewestVersion | undefined): NewestVersion | null {
  return newest === undefined || newest.version === '0:0:0' ? null : newest
}

/** Its record is in producer_log, which event show reads with all the rest of its way. */
async function showUnpublished(sides: Sides, id: ChangeId, json: true | undefined): Promise<void> {
  const entry = await entryNamed(sides, id, 'publish')
  const actions = await sides.first.run((sql) => actionsOf(sql, entry.origin, entry.seq_id))
  if (json === true) return sayJson({ ...entry, actions })
  sayFields({ ...entry, bytes: size(entry.bytes) })
  say('done about it')
  sayTable(actions.map(({ id: _id, ...action }) => action), 'nothing')
  const again = entry.status === 'FAILED' ? `deltapost parked retry ${entry.origin}:${entry.seq_id} publishes it again` : 'the relay tries it again by itself'
  say(`Try: deltapost event show ${entry.seq_id}; ${again}`)
}

function waysOut({ origin, seq_id: seqId, reason, relation_state: state, schema_name: schema, table_name: table }: ParkedWhole): string {
  if (state === 'STOPPED') return `deltapost resume ${schema}.${table}`
  const name = `${origin}:${seqId}`
  if (reason === 'BEHIND') return `mend what it waits for: deltapost parked list --table ${schema}.${table} --reason REFUSED`
  return `deltapost parked retry ${name} --dry-run; deltapost parked edit ${name} --set COLUMN=VALUE; deltapost parked skip ${name} --note WHY`
}

async function dryRun({ config, target, targetUrl }: Sides, filter: ParkedFilter, { limit = REHEARSED, json }: { limit?: number; json?: true }): Promise<void> {
  const { changes, placeOf, more } = await selectedRound(target, filter, Math.min(limit, REHEARSED))
  const rehearsed = await rehearse(targetUrl, config, changes, placeOf)
  for (const one of rehearsed) {
    if (json === true) {
      say(JSON.stringify({ ...one, dry_run: true }))
      continue
    }
    say(`${lineOf(one)} (dry run)`)
    if (one.difference === undefined) say('  the row cannot be told')
    else sayTable(one.difference.map(({ column, before, after }) => ({ column, before: shown(before), after: shown(after) })), 'its row stays as it is')
  }
  if (rehearsed.some(({ reason }) => reason !== null)) process.exitCode = NOT_DONE
  if (json !== true) say(`${rehearsed.length} tried and taken back${more ? `; there are more: --limit takes up to ${REHEARSED} at a time` : ''}`)
}

function shown(value: string | null | undefined): string {
  if (value === undefined) return '(no row)'
  if (value === null) return 'null'
  return value.length > 200 ? `${value.slice(0, 200)}... (${value.length} characters)` : value
}

async function exportTo({ target }: Sides, filter: ParkedFilter, { out, limit = Infinity }: { out: string; limit?: number }): Promise<void> {
  const file = out === '-' ? undefined : opened(out)
  const tell = everySecond()
  try {
    let written = 0
    const done = await pages(limit, (after, most) => target.run((sql) => exportPage(sql, filter, after, most)), async (page) => {
      const lines = page.map((entry) => JSON.stringify(entry))
      if (file === undefined) await sayAll(lines)
      else writeFileSync(file, `${lines.join('\n')}\n`)
      written += page.length
      tell(`${written} written`)
    })
    process.stderr.write(`${done} changes are written to ${out === '-' ? 'stdout' : out}; they stay parked\n`)
  } finally {
    if (file !== undefined) closeSync(file)
  }
}

function opened(path: string): number {
  try {
    return openSync(path, 'w', 0o600) // it has values of rows
  } catch (cause) {
    throw new DeltapostError('FILE_UNWRITABLE', `${path} cannot be written`, 'name a file in a folder that is there and may be written', { cause })
  }
}
