import type { AccountRow } from './account.ts'
import type { RowChange } from './workload.ts'

/**
 * The text of a post, byte for byte as the trigger's function prints it (informix.md 1.1 to 1.4): microseconds without
 * leading zeros, nulls left out of inserts and deletes and written as the text NULL in updates.
 *
 * Even ids are posted in the newer dialect, which escapes; the older one prints values as they are.
 */
export function bodyOf(change: RowChange): string {
  const row = change.after ?? change.before
  if (row === null) throw new Error('a change has at least one image')
  const newer = Number(row.id) % 2 === 0
  const operation = change.before === null ? 'INSERT' : change.after === null ? 'DELETE' : 'UPDATE'
  const text = newer ? escaped : (value: string): string => value
  const data = change.before !== null && change.after !== null
    ? pairs(change.before, change.after, text)
    : present(row, text)
  const tail = newer ? '},  \n "uniquedatatype" : "false" \n }' : '}  }'
  return `{"TIME": "${timeText(change.time)}", "SCHEMANAME": "shop", "TABLENAME": "account", "OPERATION": "${operation}", "DATA":  {${data}${tail}`
}

/** `2026-05-01T10:00:00.12Z` is 12 microseconds past the second: the sender prints the number without padding. */
export function timeText(micros: number): string {
  const seconds = Math.floor(micros / 1_000_000)
  return `${new Date(seconds * 1_000).toISOString().slice(0, 19)}.${micros % 1_000_000}Z`
}

function present(row: AccountRow, text: (value: string) => string): string {
  return Object.entries(row)
    .flatMap(([name, value]) => (value === null ? [] : [`"${name}" : "${text(value)}"`]))
    .join(', ')
}

function pairs(before: AccountRow, after: AccountRow, text: (value: string) => string): string {
  const now: Record<string, string | null> = after
  return Object.entries(before)
    .map(([name, old]) => `"${name}" : { "old" : "${text(old ?? 'NULL')}", "new" : "${text(now[name] ?? 'NULL')}" }`)
    .join(', ')
}

const ESCAPES: Record<string, string> = { '"': '\\"', '\\': '\\\\', '/': '\\/', '\b': '\\b', '\t': '\\t', '\n': '\\n', '\f': '\\f', '\r': '\\r' }

function escaped(value: string): string {
  return value.replace(/["\\/\b\t\n\f\r]/g, (character) => ESCAPES[character] ?? character)
}
