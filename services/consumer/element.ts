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
}

/** What building elements needs to know of a relation. */
export type ElementShape = {
  columns: ReadonlyMap<string, TargetColumn>
  key: readonly string[]
}

/** One change as inbox.apply takes it: "~" members for what it is, the columns' new values as text beside them. */
export type Element = Record<string, unknown>

/** A change that must not be applied as it is. */
export type SetAside = { reason: 'CLOCK_AHEAD' | 'NO_KEY' | 'KEY_SHIFT'; message: string }

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
  for (const column of change.columns) {
    const type = shape.columns.get(column.name)
    // Without a key the row is its image: what an update does not carry is what it was before.
    const value = column.new ?? (shape.key.length === 0 && column.new === undefined ? column.old : column.new)
    if (type === undefined || value === undefined || isUnfetched(value, type)) continue
    carried.add(column.name)
    element[column.name] = toText(value, type, change.operation)
  }
  const uncarried = [...shape.columns.values()].filter((column) =>
    !carried.has(column.name) && (change.operation === 'UPDATE' || isUnfetched(named(change, column.name)?.new, column)))
  if (uncarried.length > 0) element['~u'] = Object.fromEntries(uncarried.map((column) => [column.name, [0, 0, 0]]))
  if (change.operation === 'UPDATE' && (shape.key.length === 0 || keyMoves(change.columns, shape))) {
    element['~x'] = shape.key.length > 0
    element['~b'] = imageBefore(change.columns, shape)
  }
  return element
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
  if (shape.key.length === 0 && arrival.change.operation !== 'INSERT' && !arrival.change.columns.some((column) => column.old !== undefined)) {
    return { reason: 'NO_KEY', message: 'the table has no key and the change no before-image: there is no telling which row it means' }
  }
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

function named(change: Change, name: string): Column | undefined {
  return change.columns.find((column) => column.name === name)
}

function lacksColumns(arrival: Arrival, shape: ElementShape): boolean {
  return [...shape.columns.values()].some((column) => {
    const value = named(arrival.change, column.name)?.new
    return value === undefined || isUnfetched(value, column)
  })
}

function withDeleted(element: Element, columns: readonly Column[], shape: ElementShape): Element {
  if (shape.key.length === 0) {
    element['~b'] = imageBefore(columns, shape)
    return element
  }
  for (const column of columns) {
    const type = shape.columns.get(column.name)
    if (type !== undefined && shape.key.includes(column.name)) element[column.name] = toText(column.old ?? null, type, 'DELETE')
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
    if (type === undefined || column.old === undefined || isUnfetched(column.old, type)) continue
    image[column.name] = toText(column.old, type, column.new === undefined ? 'DELETE' : 'UPDATE')
  }
  return image
}

/** A value the sender could not read (informix.md 1.8): it says so in words, which no byte column can hold as text. */
function isUnfetched(value: Value | undefined, type: TargetColumn): boolean {
  return type.base === 'bytea' && (value === 'unsupportedtype' || value === 'error')
}

/**
 * The text the column's input function takes.
 *
 * An UPDATE of the Informix sender writes null as the text NULL, which a NOT NULL column can only mean literally.
 */
function toText(value: Value, type: TargetColumn, operation: Change['operation']): Value {
  if (value === null) return null
  if (operation === 'UPDATE' && value === 'NULL' && !type.notNull) return null
  return type.base === 'bytea' ? toBytea(value) : value
}

/** bytea from a Postgres literal, hex digits, or base64; anything else is left for Postgres to refuse. */
function toBytea(value: string): string {
  if (value.startsWith('\\x')) return value
  if (value.length % 2 === 0 && /^[0-9a-fA-F]*$/.test(value)) return `\\x${value}`
  if (value.length % 4 === 0 && /^[0-9A-Za-z+/]*={0,2}$/.test(value)) return `\\x${Buffer.from(value, 'base64').toString('hex')}`
  return value
}
