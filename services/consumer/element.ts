import type { Change, Column, Value } from '../../outbox/change.ts'
import type { Identity } from '../../outbox/record.ts'
import type { TargetColumn } from './target.ts'

/** A Kafka record, read: who the change is, what it says, where it lay. */
export type Arrival = {
  identity: Identity
  change: Change
  offset: string
  /** Milliseconds since 1970, by the clock of the database that received the change. */
  receivedAt: number
  /** The record's texts, read again only where the change is to be set aside. */
  record: () => RecordTexts
}

export type RecordTexts = { key: string | null; value: string; traceparent: string | null }

/** What building elements needs to know of a relation. */
export type ElementShape = {
  columns: ReadonlyMap<string, TargetColumn>
  key: readonly string[]
  /** Columns the source was seen to have; the others are the target's own. */
  seen: ReadonlySet<string>
}

/** One change as inbox.apply takes it: "~" members for what it is, the columns' new values as text beside them. */
export type Element = Record<string, unknown>

/** Why a change lies in inbox.parked. */
export type ParkedReason = 'REFUSED' | 'WAITING' | 'BEHIND' | 'RELATION_STOPPED' | 'SKIPPED' | 'CLOCK_AHEAD' | 'NO_KEY' | 'KEY_SHIFT'

/** A change that must not be applied as it is. */
export type SetAside = { reason: ParkedReason; message: string }

/**
 * Builds the element of a change.
 *
 * An INSERT carries every column (what it leaves out is NULL), an UPDATE those it names; the names of columns that are
 * not carried travel in "~u", each with the lowest version there is.
 */
export function buildElement(arrival: Arrival, shape: ElementShape): Element {
  const { identity, change } = arrival
  const element: Element = Object.create(null) as Element
  element['~op'] = change.operation
  element['~o'] = identity.origin
  element['~e'] = identity.epoch
  element['~t'] = identity.time
  element['~s'] = identity.seqId
  element['~f'] = arrival.offset
  if (change.operation === 'DELETE') return withDeleted(element, change.columns, shape)

  const carried = new Set<string>()
  const unread: string[] = []
  for (const column of change.columns) {
    const type = shape.columns.get(column.name)
    // Without a key the row is its image: what an update does not carry is what it was before.
    const value = column.new === undefined && shape.key.length === 0 ? column.old : column.new
    if (type === undefined || value === undefined) continue
    if (isUnfetched(value, type) || bothUnfetched(column, shape)) {
      unread.push(column.name)
      continue
    }
    carried.add(column.name)
    element[column.name] = toText(value, type, change.operation, shape)
  }
  const uncarried = change.operation === 'UPDATE' ? [...shape.columns.keys()].filter((name) => !carried.has(name)) : unread
  if (uncarried.length > 0) element['~u'] = Object.fromEntries(uncarried.map((name) => [name, [0, 0, 0]]))
  if (change.operation === 'UPDATE' && (shape.key.length === 0 || keyMoves(change.columns, shape))) {
    element['~x'] = shape.key.length > 0
    element['~b'] = imageBefore(change.columns, shape)
    // What may find another row at its old key is parked by SQL, which needs the record for that.
    if (shape.key.length > 0) return withRecord(element, arrival)
  }
  return element
}

/** The element with the record it came in, for the case that it is parked. */
export function withRecord(element: Element, arrival: Arrival): Element {
  const { key, value, traceparent } = arrival.record()
  return Object.assign(element, { '~p': value, '~k': key, '~r': traceparent })
}

/** The element with its before-image, for the question whether a superseded update is a clock fault. */
export function withBefore(element: Element, arrival: Arrival, shape: ElementShape): Element {
  return { ...element, '~b': imageBefore(arrival.change.columns, shape) }
}

/** Why a change is to be parked before anything is tried, or undefined. `tolerance` is milliseconds. */
export function setAside(arrival: Arrival, shape: ElementShape, tolerance: number): SetAside | undefined {
  const ahead = Number(arrival.identity.time) / 1_000 - arrival.receivedAt
  if (ahead > tolerance) {
    return {
      reason: 'CLOCK_AHEAD',
      message: `the source's TIME is ${Math.round(ahead / 1_000)} s later than its receipt; applied, it would make every true change look old`,
    }
  }
  if (shape.key.length === 0) return withoutKey(arrival, shape)
  const image = arrival.change.operation === 'DELETE' ? 'old' : 'new'
  const missing = shape.key.filter((name) => {
    const value = named(arrival.change, name)?.[image]
    return value === undefined || value === null
  })
  if (missing.length === 0 && arrival.change.operation === 'UPDATE' && keyMoves(arrival.change.columns, shape) && lacksColumns(arrival, shape)) {
    return { reason: 'KEY_SHIFT', message: 'the change moves the row to another key and does not carry all of its columns' }
  }
  if (missing.length === 0) return undefined
  return { reason: 'NO_KEY', message: `the change does not carry the key column ${missing.join(', ')}` }
}

/** Without a key the whole row must be there, or there is no telling which one is meant. */
function withoutKey(arrival: Arrival, shape: ElementShape): SetAside | undefined {
  const { operation, columns } = arrival.change
  const unread = columns.some((column) => {
    const type = shape.columns.get(column.name)
    return type !== undefined && (isUnfetched(column.old, type) || (operation !== 'INSERT' && isUnfetched(column.new, type)))
  })
  const lacking = operation === 'UPDATE' && (lacksColumns(arrival, shape) || columns.every((column) => column.old === undefined))
  if (!unread && !lacking) return undefined
  return { reason: 'NO_KEY', message: 'the table has no key and the change does not carry the whole row: declare the key, or send all columns' }
}

function named(change: Change, name: string): Column | undefined {
  return change.columns.find((column) => column.name === name)
}

function lacksColumns(arrival: Arrival, shape: ElementShape): boolean {
  return [...shape.columns.values()].filter((column) => shape.seen.has(column.name)).some((column) => {
    const there = named(arrival.change, column.name)
    return there?.new === undefined || isUnfetched(there.new, column) || bothUnfetched(there, shape)
  })
}

function withDeleted(element: Element, columns: readonly Column[], shape: ElementShape): Element {
  if (shape.key.length === 0) {
    element['~b'] = imageBefore(columns, shape)
    return element
  }
  for (const column of columns) {
    const type = shape.columns.get(column.name)
    if (type !== undefined && shape.key.includes(column.name)) element[column.name] = toText(column.old ?? null, type, 'DELETE', shape)
  }
  return element
}

/** True when the key's text differs; whether it is another row is decided in SQL, by the typed values. */
function keyMoves(columns: readonly Column[], shape: ElementShape): boolean {
  return columns.some((column) =>
    shape.key.includes(column.name) && typeof column.old === 'string' && column.old.trimEnd() !== column.new?.trimEnd())
}

/** The before-image as text by column name. Where an UPDATE lacks the old value of a column it did not change it. */
function imageBefore(columns: readonly Column[], shape: ElementShape): Element {
  const image: Element = Object.create(null) as Element
  for (const column of columns) {
    const type = shape.columns.get(column.name)
    // A plain value in an update is one that did not change; of a key, or where there is none, it tells which row is meant.
    const old = column.old === undefined && (shape.key.length === 0 || shape.key.includes(column.name)) ? column.new : column.old
    if (type === undefined || old === undefined || isUnfetched(old, type) || bothUnfetched(column, shape)) continue
    image[column.name] = toText(old, type, column.new === undefined ? 'DELETE' : 'UPDATE', shape)
  }
  return image
}

/** A value the sender could not read (informix.md 1.8): it says so in words, which no byte column can hold as text. */
function isUnfetched(value: Value | undefined, type: TargetColumn): boolean {
  return type.base === 'bytea' && (value === 'unsupportedtype' || value === 'error')
}

/** Said of both sides of an update it cannot be news in any type: a text that did not change, or one that was not read. */
function bothUnfetched(column: Column, shape: ElementShape): boolean {
  return shape.key.length > 0 && column.old === column.new && (column.new === 'unsupportedtype' || column.new === 'error')
}

/**
 * The text the column's input function takes.
 *
 * An UPDATE of the Informix sender writes null as the text NULL, which a NOT NULL or key column can only mean literally.
 */
function toText(value: Value, type: TargetColumn, operation: Change['operation'], shape: ElementShape): Value {
  if (value === null) return null
  if (operation === 'UPDATE' && value === 'NULL' && !type.notNull && !shape.key.includes(type.name)) return null
  return type.base === 'bytea' ? toBytea(value) : value
}

/** bytea from a Postgres literal, hex digits, or base64; anything else is left for Postgres to refuse. */
function toBytea(value: string): string {
  if (value.startsWith('\\x')) return value
  if (value.length % 2 === 0 && /^[0-9a-fA-F]*$/.test(value)) return `\\x${value}`
  if (value.length % 4 === 0 && /^[0-9A-Za-z+/]*={0,2}$/.test(value)) return `\\x${Buffer.from(value, 'base64').toString('hex')}`
  return value
}
