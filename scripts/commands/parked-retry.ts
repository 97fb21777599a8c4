import { beginActions, endActions } from '../../outbox/action.ts'
import { matching, outcomesOf, type ParkedFilter, parkedTables, type TriedOutcome } from '../../outbox/parked.ts'
import type { Sql } from '../../outbox/sql.ts'
import { faultOf, kindOf } from '../../services/consumer/failure.ts'
import { parkedColumns, type Parked, takeUp, type TakeUpParts } from '../../services/consumer/parked.ts'
import { openRelations } from '../../services/consumer/relations.ts'
import type { Config } from '../../services/runtime/config.ts'
import { openLog } from '../../services/runtime/log.ts'
import type { Slot } from '../../services/runtime/slot.ts'
import { say } from './print.ts'
import { everySecond, NOT_DONE } from './resume.ts'
import type { Sides } from './sides.ts'
import type { Place } from './target-row.ts'

/** Changes a round: as many as one call takes one by one, and no more bytes than a call of many. */
const ROUND = { changes: 200, bytes: 8 << 20 }

/** A parked change with its row; `key` null: it holds up none. */
export type Placed = Parked & { relation: number; key: string | null }

/** What a change came to: an outcome, or why its relation cannot be written. */
export type Tried = TriedOutcome & { hindered?: string }

export type Tally = { tried: number; applied: number; superseded: number; still: number; behind: number }

type Parts = TakeUpParts & { actor: string; signal?: AbortSignal; heard: (tried: Tried) => void }

/** The parts of taking up for a command. */
export function takeUpParts(slot: Slot, config: Config): TakeUpParts {
  const log = openLog('cli', config.logLevel === 'debug' ? 'debug' : 'silent')
  return {
    slot, course: config, clockTolerance: config.clockTolerance,
    relations: openRelations({ source: config.source, destination: config.destination, autoCreate: config.autoCreate, log }),
  }
}

/** Applies now what the filter names, says of each what became of it, and sets the exit code where something is still set aside. */
export async function retryMatching({ config, target }: Sides, filter: ParkedFilter, options: { actor: string; limit?: number; json?: true; signal?: AbortSignal }): Promise<void> {
  const tell = everySecond()
  let heard = 0
  const tally = await retryParked({
    ...takeUpParts(target, config), ...options,
    heard: (tried) => {
      heard += 1
      if (options.json === true) say(JSON.stringify(tried))
      else say(lineOf(tried))
      tell(`${heard} told`)
    },
  }, filter, options.limit)
  if (options.json !== true) say(summary(tally))
  if (tally.still > 0) process.exitCode = NOT_DONE
  if (tally.still > 0) process.stderr.write('Try: deltapost parked show ID; mend the target or parked edit ID, then parked retry; or parked skip ID --note WHY\n')
}

/**
 * Applies parked changes that match, row by row in the order of their versions, and then what waited behind them; memory
 * holds a round of them. What is refused again stays parked, without an attempt.
 */
export async function retryParked(parts: Parts, filter: ParkedFilter, limit = Infinity): Promise<Tally> {
  const tally: Tally = { tried: 0, applied: 0, superseded: 0, still: 0, behind: 0 }
  const hindered = new Map<number, string>()
  for (const keyed of [true, false]) {
    let last: Placed | undefined
    while (tally.tried < limit && parts.signal?.aborted !== true) {
      const before = last
      const page = await parts.slot.run((sql) => roundOf(sql, filter, before, keyed, Math.min(ROUND.changes, limit - tally.tried)))
      const end = page.at(-1)
      if (end === undefined) break
      await retryRound(parts, page, hindered, tally)
      // What waits behind the row at the end may be on the next page, which tells what becomes of it.
      if (keyed) await drain(parts, [...before === undefined ? [] : [before], ...page].filter((row) => !sameRow(row, end)), tally)
      last = end
    }
    if (keyed && last !== undefined) await drain(parts, [last], tally)
  }
  return tally
}

function sameRow(one: Placed, other: Placed): boolean {
  return one.relation === other.relation && one.key === other.key
}

async function retryRound(parts: Parts, page: readonly Placed[], hindered: Map<number, string>, tally: Tally): Promise<void> {
  for (const group of Map.groupBy(page, ({ relation, topic }) => `${relation} ${topic}`).values()) {
    const { relation } = group[0]!
    const actions = await parts.slot.run((sql) => beginActions(sql, parts.actor, 'retry', group))
    if (!hindered.has(relation)) {
      const why = await take(parts, group, true)
      if (why !== undefined) hindered.set(relation, why)
    }
    const why = hindered.get(relation)
    const outcomes = await parts.slot.run((sql) => outcomesOf(sql, group))
    const tried = outcomes.map((outcome): Tried => why === undefined || outcome.reason === null ? outcome : { ...outcome, hindered: why })
    await parts.slot.run((sql) => endActions(sql, tried.map((one, at) => ({ id: actions[at]!, outcome: outcomeText(one) }))))
    for (const one of tried) {
      count(tally, one)
      parts.heard(one)
    }
    tally.tried += tried.length
  }
}

/** Why their relation cannot be written; undefined where they were tried. */
async function take(parts: TakeUpParts, group: readonly Placed[], forced: boolean): Promise<string | undefined> {
  try {
    await takeUp(parts, group, { state: 'ACTIVE', together: false, forced })
    return undefined
  } catch (error) {
    if (kindOf(error) !== 'relation') throw error
    return faultOf(error)
  }
}

/** Takes up what waited behind changes of these rows and is due because of them, as a consumer would; tells only what is still refused. */
async function drain(parts: Parts, rows: readonly Placed[], tally: Tally): Promise<void> {
  for (const [relation, group] of Map.groupBy(rows, (row) => row.relation)) await drainRows(parts, relation, [...new Set(group.map(({ key }) => key))], tally)
}

async function drainRows(parts: Parts, relation: number, keys: readonly (string | null)[], tally: Tally): Promise<void> {
  let after: Placed | undefined
  while (parts.signal?.aborted !== true) {
    const from = after
    const due = await parts.slot.run((sql) => dueRound(sql, relation, keys, from))
    after = due.at(-1)
    if (after === undefined) return
    for (const changes of Map.groupBy(due, ({ topic }) => topic).values()) {
      if (await take(parts, changes, false) !== undefined) return
      for (const one of await parts.slot.run((sql) => outcomesOf(sql, changes))) {
        if (one.reason === null) tally.behind += 1
        else {
          tally.still += 1
          parts.heard(one)
        }
      }
    }
  }
}

/** The first changes that match, in the order they would be tried, and where to look for the rows they are of. */
export async function selectedRound(slot: Slot, filter: ParkedFilter, limit: number): Promise<{ changes: Placed[]; placeOf: (change: Placed) => Place; more: boolean }> {
  const keyed = await slot.run((sql) => roundOf(sql, filter, undefined, true, limit + 1))
  const rest = keyed.length > limit ? [] : await slot.run((sql) => roundOf(sql, filter, undefined, false, limit + 1 - keyed.length))
  const changes = [...keyed, ...rest].slice(0, limit)
  const places = await slot.run((sql) => sql<({ id: number } & Place)[]>`
    select r.id, r.target_schema as schema, r.target_table as "table", coalesce(r.key_columns, '{}') as key from outbox.relation r
    where r.id = any(${changes.map(({ relation }) => relation)}::integer[])`)
  const known = new Map(places.map((place) => [place.id, place]))
  return { changes, placeOf: ({ relation }) => known.get(relation)!, more: keyed.length + rest.length > limit }
}

function count(tally: Tally, { reason, status }: Tried): void {
  if (reason !== null) tally.still += 1
  else if (status === 'SUPERSEDED') tally.superseded += 1
  else tally.applied += 1
}

/** The next changes in the order of their rows and versions, as many as a round may have. */
async function roundOf(sql: Sql, filter: ParkedFilter, after: Placed | undefined, keyed: boolean, limit: number): Promise<Placed[]> {
  const from = after ?? { relation: 0, key: '', epoch: 0, time: '-9223372036854775808', seqId: '0', origin: 0 }
  return within(sql, keyed
    ? sql`from ${parkedTables(sql)}
      where p.key is not null and (p.relation, p.key, p.epoch, p.time, p.seq_id, p.origin)
              > (${from.relation}, ${from.key}, ${from.epoch}, ${from.time}, ${from.seqId}, ${from.origin}) and ${wanted(sql, filter)}
      order by p.relation, p.key, p.epoch, p.time, p.seq_id, p.origin limit ${limit}`
    : sql`from ${parkedTables(sql)}
      where p.key is null and (p.relation, p.epoch, p.time, p.seq_id, p.origin)
              > (${from.relation}, ${from.epoch}, ${from.time}, ${from.seqId}, ${from.origin}) and ${wanted(sql, filter)}
      order by p.relation, p.key, p.epoch, p.time, p.seq_id, p.origin limit ${limit}`)
}

async function dueRound(sql: Sql, relation: number, keys: readonly (string | null)[], after: Placed | undefined): Promise<Placed[]> {
  const from = after ?? { key: '', epoch: 0, time: '-9223372036854775808', seqId: '0', origin: 0 }
  return within(sql, sql`from ${parkedTables(sql)}
    where p.relation = ${relation} and p.key = any(${keys}::text[]) and p.reason in ('WAITING', 'BEHIND') and p.retry_at <= clock_timestamp()
      and (p.key, p.epoch, p.time, p.seq_id, p.origin) > (${from.key}, ${from.epoch}, ${from.time}, ${from.seqId}, ${from.origin})
    order by p.relation, p.key, p.epoch, p.time, p.seq_id, p.origin limit ${ROUND.changes}`)
}

/** What was given up comes back only where it is asked for by number or as SKIPPED: whoever retries all means what is still to be done. */
function wanted(sql: Sql, filter: ParkedFilter): ReturnType<Sql> {
  const named = filter.ids !== undefined || filter.status === 'SKIPPED' || filter.reason === 'SKIPPED'
  return named ? matching(sql, filter) : sql`${matching(sql, filter)} and p.reason <> 'SKIPPED'`
}

/** Those of a page that a round has bytes for; the first always. */
async function within(sql: Sql, page: ReturnType<Sql>): Promise<Placed[]> {
  return sql<Placed[]>`
    select sized.* from (
      select page.*, sum(bytes) over (order by place) - bytes as ahead
      from (select ${parkedColumns(sql)}, p.relation, p.key, octet_length(p.payload) as bytes,
                   row_number() over (order by p.relation, p.key, p.epoch, p.time, p.seq_id, p.origin) as place ${page}) page
    ) sized where ahead < ${ROUND.bytes} order by place`
}

function outcomeText({ status, reason, sqlstate, hindered }: Tried): string {
  if (hindered !== undefined) return `not tried: ${hindered}`
  return reason === null ? status ?? 'gone' : `still ${reason}${sqlstate === null ? '' : ` ${sqlstate}`}, ${status ?? '-'}`
}

export function lineOf(tried: Tried): string {
  const why = tried.hindered === undefined && tried.reason !== null && tried.message !== null ? `: ${tried.message}` : ''
  return `${tried.origin}:${tried.seq_id}  ${outcomeText(tried)}${why}`
}

function summary({ tried, applied, superseded, still, behind }: Tally): string {
  const parts = [`${tried} tried`, `${applied} applied`, ...superseded > 0 ? [`${superseded} superseded`] : [], ...still > 0 ? [`${still} still set aside`] : []]
  return `${parts.join(', ')}${behind > 0 ? `; and ${behind} that waited behind them` : ''}`
}
