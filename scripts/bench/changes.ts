import { timeText } from '../demo/body.ts'
import { seeded } from '../demo/random.ts'

/** How a marked change is made unfit: `type` a text that is no number, `check` a number that only the table's check refuses. */
export type Unfit = 'type' | 'check'

/**
 * One change of the invented table. A row's content follows from its id and version, so only these are kept; version 0 is
 * a row that is not there. `marked` is where an unfit change stands when there are to be some.
 */
export type Step = { id: number; before: number; after: number; marked: boolean }

export type Mix = { insert: number; update: number; delete: number }

export const MIX: Mix = { insert: 50, update: 40, delete: 10 }
export const INSERTS: Mix = { insert: 100, update: 0, delete: 0 }

/** What a row takes besides its note: id, n and at. */
const FIXED_BYTES = 20

export const TABLE = `
  create schema if not exists bench;
  create table bench.item (id bigint primary key, n integer not null check (n >= 0), at timestamp not null, note text not null)`

/**
 * Makes `count` changes of rows of a table that begins empty; the same seed makes the same.
 *
 * One in a hundred is marked: half of them insert a row, half update one, and none of these rows changes ever again, so
 * that a marked change which is refused stays refused and no other hides it. With `hot` nine of ten updates are of so
 * many rows, which are never deleted.
 */
export function makeSteps(count: number, mix: Mix = MIX, seed = 1, hot = 0): Step[] {
  const random = seeded(seed)
  const living: { id: number; version: number }[] = []
  let lastId = 0
  const takeOut = (at: number): { id: number; version: number } => {
    const last = living.pop()
    const row = at === living.length ? last : living[at]
    if (last === undefined || row === undefined) throw new Error('no such row')
    if (row !== last) living[at] = last
    return row
  }
  return Array.from({ length: count }, (_, at): Step => {
    const marked = at % 100 === 50
    const kind = random.below(mix.insert + mix.update + mix.delete)
    if (living.length === 0 || kind < mix.insert) {
      lastId += 1
      if (!marked) living.push({ id: lastId, version: 1 })
      return { id: lastId, before: 0, after: 1, marked }
    }
    // The first rows stay where they are: only what lies behind them is taken out.
    const cold = Math.min(hot, living.length - 1)
    const updates = kind < mix.insert + mix.update && !marked
    const chosen = updates && hot > 0 && random.chance(0.9) ? random.below(Math.min(hot, living.length)) : cold + random.below(living.length - cold)
    if (marked) {
      const { id, version } = takeOut(chosen)
      return { id, before: version, after: version + 1, marked }
    }
    if (kind >= mix.insert + mix.update) {
      const { id, version } = takeOut(chosen)
      return { id, before: version, after: 0, marked }
    }
    const row = living[chosen]
    if (row === undefined) throw new Error('no such row')
    row.version += 1
    return { id: row.id, before: row.version - 1, after: row.version, marked }
  })
}

/** The rows that must stand in the table after all of these: id → version. Unfit ones change nothing. */
export function modelOf(steps: readonly Step[], unfit?: Unfit): Map<number, number> {
  const rows = new Map<number, number>()
  for (const { id, after, marked } of steps) {
    if (marked && unfit !== undefined) continue
    if (after === 0) rows.delete(id)
    else rows.set(id, after)
  }
  return rows
}

export type Row = { id: string; n: string; at: string; note: string }

/** The content of a row in one of its versions, as text; `bytes` of it in all. */
export function rowOf(id: number, version: number, bytes: number): Row {
  const second = (id + version) % 60
  return {
    id: String(id),
    n: String((id * 31 + version * 7) % 1_000_000),
    at: `2026-05-01 10:00:${String(second).padStart(2, '0')}`,
    note: `${id}/${version} ${FILLER.slice((id + version) % 97)}`.slice(0, bytes - FIXED_BYTES),
  }
}

const FILLER = Array.from({ length: 700 }, (_, at) => `${((at + 1) * 2_654_435_761 % 4_294_967_296).toString(36)} `).join('')

/** The post of a change as an Informix trigger prints it, `micros` after 1970. */
export function bodyOf(step: Step, micros: number, bytes: number, unfit?: Unfit): string {
  const { id, before, after } = step
  const old = before === 0 ? undefined : rowOf(id, before, bytes)
  const now = after === 0 ? undefined : rowOf(id, after, bytes)
  if (now !== undefined && step.marked && unfit !== undefined) now.n = unfit === 'type' ? 'many' : '-1'
  const operation = old === undefined ? 'INSERT' : now === undefined ? 'DELETE' : 'UPDATE'
  const data = old === undefined ? plain(now) : now === undefined ? plain(old) : pairs(old, now)
  return `{"TIME": "${timeText(micros)}", "SCHEMANAME": "bench", "TABLENAME": "item", "OPERATION": "${operation}", "DATA":  {${data}}  }`
}

function plain(row: Row | undefined): string {
  return Object.entries(row ?? {}).map(([name, value]) => `"${name}" : "${value}"`).join(', ')
}

function pairs(old: Row, now: Row): string {
  const after: Record<string, string> = now
  return Object.entries(old).map(([name, value]) => `"${name}" : { "old" : "${value}", "new" : "${after[name]}" }`).join(', ')
}
