import { hash } from 'node:crypto'
import type { Change, Value } from './change.ts'

/**
 * What makes a change this one and no other: uuid-shaped, from its raw TIME and its content.
 *
 * The same for all spellings of one JSON document, with or without a relay's fields, on every path. The raw TIME and not
 * the moment it means: a corrected SOURCE_TZ must not make every repeat new. In a table without a key two equal changes of
 * one microsecond are one by this: a sender that has such tables sends an Idempotency-Key.
 */
export function eventKey(change: Change): string {
  return uuidOf(`change\0${canonical(change)}`)
}

/** The key a client chose. `ordinal` is the place of the document in a batch, from 0. */
export function idempotencyKey(header: string, ordinal: number): string {
  return uuidOf(`idempotency\0${ordinal}\0${header}`)
}

/** To tell whether a key that a client chose comes again with another change. */
export function contentHash(change: Change): string {
  return uuidOf(`content\0${canonical(change)}`)
}

/**
 * The row a change is of, as JSON array text of its key before the change; null where the key is not known or not whole.
 *
 * It decides the lane only, so a spelling (016 for 16) or a stale catalogue that gives another one harms nothing: the
 * target compares typed keys.
 */
export function rowKey(change: Change, keyColumns: readonly string[] | null): string | null {
  if (keyColumns === null || keyColumns.length === 0) return null
  const values: string[] = []
  for (const name of keyColumns) {
    const column = change.columns.find((one) => one.name === name)
    const value = column?.old ?? column?.new
    if (value == null) return null
    values.push(value.replace(/ +$/, ''))
  }
  return JSON.stringify(values)
}

// NUL occurs in no name and no value (nul_character), so it can stand between them and nothing reads in two ways.
function canonical(change: Change): string {
  let text = `${change.time}\0${change.schema}\0${change.table}\0${change.operation}`
  for (const { name, ...images } of change.columns) {
    text += `\0\0${name}`
    if (images.new !== undefined) text += `\0n${spelled(images.new)}`
    if (images.old !== undefined) text += `\0o${spelled(images.old)}`
  }
  return text
}

function spelled(value: Value): string {
  return value === null ? '' : `=${value}`
}

function uuidOf(text: string): string {
  const hex = hash('sha256', text, 'hex')
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20, 32)}`
}
