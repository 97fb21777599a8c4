import { timeText } from '../../demo/body.ts'
import type { Random } from '../../demo/random.ts'
import type { SourceClock } from '../workload.ts'

/** What a workload is opened with. `recordLimit`: bytes that a record of the topic may have. */
export type Parts = { random: Random; clock: SourceClock; recordLimit?: number }

/** A row as the source prints it; null where the column is null. */
export type SourceRow = Readonly<Record<string, string | null>>

/** One row change of the source. `time` is microseconds since 1970; `rows` are the rows it locks, as `table/key`. */
export type SourceChange = {
  table: string
  time: number
  before: SourceRow | null
  after: SourceRow | null
  rows: readonly string[]
  /** Columns that an update leaves out because they did not change. */
  without?: readonly string[]
  refused?: boolean
}

// What the older dialect cannot send: it escapes nothing.
const NOT_RAW = /["\\\b\t\n\f\r]/
const ESCAPES: Readonly<Record<string, string>> = { '"': '\\"', '\\': '\\\\', '/': '\\/', '\b': '\\b', '\t': '\\t', '\n': '\\n', '\f': '\\f', '\r': '\\r' }

/**
 * The change as one of the trigger's functions prints it (informix.md 1.1 to 1.4): nulls left out of inserts and deletes
 * and written as the text NULL in updates. The older function prints values as they are, so it gets none that break its JSON.
 */
export function documentOf(change: SourceChange, random: Random): string {
  const { table, time, before, after, without = [] } = change
  const values = [...Object.values(before ?? {}), ...Object.values(after ?? {})]
  const newer = random.chance(0.5) || values.some((value) => value !== null && NOT_RAW.test(value))
  const text = newer ? escaped : (value: string): string => value
  const operation = before === null ? 'INSERT' : after === null ? 'DELETE' : 'UPDATE'
  const data = before !== null && after !== null ? pairs(before, after, without, text) : present(after ?? before ?? {}, text)
  const tail = newer ? '},  \n "uniquedatatype" : "false" \n }' : '}  }'
  return `{"TIME": "${timeText(time)}", "SCHEMANAME": "torture", "TABLENAME": "${table}", "OPERATION": "${operation}", "DATA":  {${data}${tail}`
}

function present(row: SourceRow, text: (value: string) => string): string {
  return Object.entries(row).flatMap(([name, value]) => (value === null ? [] : [`"${name}" : "${text(value)}"`])).join(', ')
}

function pairs(before: SourceRow, after: SourceRow, without: readonly string[], text: (value: string) => string): string {
  return Object.entries(before).filter(([name]) => !without.includes(name))
    .map(([name, old]) => `"${name}" : { "old" : "${text(old ?? 'NULL')}", "new" : "${text(after[name] ?? 'NULL')}" }`).join(', ')
}

function escaped(value: string): string {
  return value.replace(/["\\/\b\t\n\f\r]/g, (character) => ESCAPES[character] ?? character)
}
