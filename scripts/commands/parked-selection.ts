import { type Command, InvalidArgumentError } from 'commander'

import { DeltapostError } from '../../outbox/errors.ts'
import { type ChangeId, countParked, countUnpublished, FROM_START, type ParkedEntry, type ParkedFilter, parkedNamed, parkedPage, type ParkedWhole, unpublishedPage } from '../../outbox/parked.ts'
import { wholeNumber } from './migrate.ts'
import type { Sides } from './sides.ts'
import { type TableName, tableName } from './table-name.ts'

/** The filters as they are typed. */
export type FilterOptions = {
  table?: TableName
  reason?: string
  sqlstate?: string
  status?: string
  side?: 'publish' | 'deploy'
  since?: string
  before?: string
  limit?: number
}

/** Adds the filters that the commands on parked changes share. */
export function addFilters(command: Command): Command {
  return command
    .option('--table <schema.table>', 'of this table, as the source names it', tableName)
    .option('--reason <reason>', 'REFUSED, WAITING, BEHIND, RELATION_STOPPED, CLOCK_AHEAD, NO_KEY, KEY_SHIFT or SKIPPED', upper)
    .option('--sqlstate <code>', 'what Postgres refused it with, such as 22001', upper)
    .option('--status <status>', 'PARKED, RETRYING, FAILED or SKIPPED', upper)
    .option('--since <time>', 'set aside at or after this time: 2026-11-21T08:00Z, or 2h for two hours ago', moment)
    .option('--before <time>', 'set aside before this time', moment)
    .option('--limit <n>', 'how many at most', wholeNumber)
}

export function filterOf({ table, reason, sqlstate, status, since, before }: FilterOptions): ParkedFilter {
  return { table, reason, sqlstate, status, since, before }
}

/** What a command that changes something is to work on, side by side; undefined: nothing of that side. */
export type Selection = { deploy: ParkedFilter | undefined; publish: ParkedFilter | undefined }

/**
 * Named changes, or those of a filter; that all are meant must be said with --all. Each named one must be there, once.
 * Throws PARKED_UNNAMED, NO_SUCH_PARKED and PARKED_AMBIGUOUS.
 */
export async function selectionOf(sides: Sides, ids: readonly ChangeId[], options: FilterOptions & { all?: true }): Promise<Selection> {
  const filter = filterOf(options)
  const { side } = options
  if (ids.length === 0) {
    if (options.all !== true && Object.values(filter).every((value) => value === undefined)) {
      throw new DeltapostError('PARKED_UNNAMED', 'neither a change nor a filter is named', 'name changes, a filter such as --table app.account, or --all')
    }
    return { deploy: side === 'publish' ? undefined : filter, publish: side === 'deploy' ? undefined : filter }
  }
  const named: Record<'deploy' | 'publish', ChangeId[]> = { deploy: [], publish: [] }
  for (const id of ids) {
    const entry = await entryNamed(sides, id, side)
    named[entry.side].push({ origin: entry.origin, seqId: entry.seq_id })
  }
  const only = (some: ChangeId[]): ParkedFilter | undefined => some.length === 0 ? undefined : { ...filter, ids: some }
  return { deploy: only(named.deploy), publish: only(named.publish) }
}

/** The entry of a change: where it is parked at the target, that one. */
export async function entryNamed({ first, target }: Sides, id: ChangeId, side?: FilterOptions['side']): Promise<ParkedEntry> {
  const parked = side === 'publish' ? [] : await target.run((sql) => parkedPage(sql, { ids: [id] }, FROM_START, 10))
  const found = parked.length > 0 || side === 'deploy' ? parked : await first.run((sql) => unpublishedPage(sql, { ids: [id] }, FROM_START, 10))
  const [one] = found
  if (one === undefined) throw notParked(id)
  if (found.length > 1) throw ambiguous(id, found.map(({ origin }) => origin))
  return one
}

/** All of a change that is parked at the target. Throws NO_SUCH_PARKED and PARKED_AMBIGUOUS. */
export async function parkedWhole(sides: Sides, id: ChangeId): Promise<ParkedWhole> {
  const { origin, seq_id: seqId } = await entryNamed(sides, id, 'deploy')
  const whole = await sides.target.run((sql) => parkedNamed(sql, { origin, seqId }))
  if (whole === undefined) throw notParked(id)
  return whole
}

/** How many there are, of both sides or one. */
export async function countsOf({ first, target }: Sides, filter: ParkedFilter, side: FilterOptions['side']): ReturnType<typeof countParked> {
  const deploy = side === 'publish' ? [] : await target.run((sql) => countParked(sql, filter))
  const publish = side === 'deploy' ? [] : await first.run((sql) => countUnpublished(sql, filter))
  return [...deploy, ...publish]
}

function notParked({ origin, seqId }: ChangeId): DeltapostError {
  return new DeltapostError('NO_SUCH_PARKED', `no change ${origin === null ? '' : `${origin}:`}${seqId} is parked`, `deltapost parked list, or deltapost event show ${seqId}`)
}

function ambiguous({ seqId }: ChangeId, origins: readonly number[]): DeltapostError {
  return new DeltapostError('PARKED_AMBIGUOUS', `changes of ${origins.length} origins have the number ${seqId}`, `name one: ${origins.map((origin) => `${origin}:${seqId}`).join(' or ')}`)
}

/** 4711, or 2:4711 where origins share numbers. */
export function changeId(text: string): ChangeId {
  const match = /^(?:(\d{1,5}):)?([1-9]\d{0,18})$/.exec(text)
  if (match?.[2] === undefined) throw new InvalidArgumentError('a seq_id, or origin:seq_id, is expected')
  return { origin: match[1] === undefined ? null : Number(match[1]), seqId: match[2] }
}

/** Several of them, as commander hands them over one by one. */
export function changeIds(text: string, before: ChangeId[] | undefined): ChangeId[] {
  return [...before ?? [], changeId(text)]
}

export function sideName(text: string): 'publish' | 'deploy' {
  if (text === 'publish' || text === 'deploy') return text
  throw new InvalidArgumentError('publish or deploy is expected')
}

function upper(text: string): string {
  return text.toUpperCase()
}

const UNITS = { m: 60_000, h: 3_600_000, d: 86_400_000 } as const

function moment(text: string): string {
  const ago = /^(\d+)(m|h|d)$/.exec(text)
  const at = ago === null ? Date.parse(text) : Date.now() - Number(ago[1]) * UNITS[ago[2] as keyof typeof UNITS]
  if (Number.isNaN(at)) throw new InvalidArgumentError('a time such as 2026-11-21T08:00Z or 2h is expected')
  return new Date(at).toISOString()
}
