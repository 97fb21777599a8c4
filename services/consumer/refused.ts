import { sqlstateOf } from '../runtime/slot.ts'
import type { Slot } from '../runtime/slot.ts'
import { buildElement, withBefore, withRecord } from './element.ts'
import type { Arrival, Element, ElementShape } from './element.ts'
import { kindOf } from './failure.ts'
import type { Prepared } from './relations.ts'

/** The element of a change that is taken alone: with its record, in case that it is parked, and its before-image. */
export function singly(arrival: Arrival, shape: ElementShape): Element {
  const element = withRecord(buildElement(arrival, shape), arrival)
  if (arrival.change.operation === 'UPDATE' && shape.key.length > 0) Object.assign(element, withBefore(element, arrival, shape))
  if (isStorable(element)) return element
  return {
    ...storable(element),
    '~q': { sqlstate: '22P05', message: 'a value has a character that Postgres cannot store (NUL, or half of a surrogate pair)' },
  }
}

/** What Postgres can read of an element; of a key that it cannot read nothing is left, so it holds up no row. */
function storable(element: Element): Element {
  return Object.fromEntries(Object.entries(element).filter(([name, value]) => name === '~p' || name === '~b' || isStorable({ [name]: value }))
    .map(([name, value]) => [name, name === '~b' ? storable(value as Element) : value]))
}

/** The element of a retry: it counts only where the change is parked and this is its next attempt. */
export function retryElement(arrival: Arrival, shape: ElementShape): Element {
  return { ...singly(arrival, shape), '~w': true, '~n': arrival.identity.attempt }
}

/**
 * The arrivals that the target's types and NOT NULLs refuse, with all others of the same rows, which must keep their
 * order with them. Finds nothing on PostgreSQL 15, which can ask of a text only by failing; then a batch that fails is
 * taken one by one.
 */
export async function probe(slot: Slot, prepared: Prepared, arrivals: readonly Arrival[]): Promise<ReadonlySet<Arrival>> {
  const elements = arrivals.map((arrival, at) => Object.assign(buildElement(arrival, prepared.shape), { '~i': at + 1, '~p': undefined }))
  const unstorable = arrivals.filter((_, at) => !isStorable(elements[at]!))
  const readable = elements.filter((element) => isStorable(element))
  const refused = [...unstorable, ...await refusedByType(slot, prepared, readable).then((ordinals) => ordinals.map((ordinal) => arrivals[ordinal - 1]!))]
  if (refused.length === 0) return new Set()
  const { key } = prepared.shape
  if (key.length === 0) return new Set(refused)
  const rows = new Set(refused.flatMap((arrival) => rowsOf(arrival, key)))
  return new Set(arrivals.filter((arrival) => rowsOf(arrival, key).some((row) => rows.has(row))))
}

async function refusedByType(slot: Slot, prepared: Prepared, elements: readonly Element[]): Promise<number[]> {
  if (elements.length === 0) return []
  const text = prepared.statements.probe.replace('($1)', '($1::text::json)')
  try {
    const rows = await slot.run((sql) => sql.unsafe<{ i: number }[]>(text, [JSON.stringify(elements)]))
    return rows.map(({ i }) => i)
  } catch (error) {
    // 42883: no pg_input_is_valid, on 15. A type of an extension may raise an error where it should only say no.
    if (sqlstateOf(error) === '42883' || kindOf(error) === 'change') return []
    throw error
  }
}

/** The rows a change is of, by the text of their keys: before and after it. */
function rowsOf(arrival: Arrival, key: readonly string[]): string[] {
  const image = (side: 'old' | 'new', other: 'old' | 'new'): string => JSON.stringify(key.map((name) => {
    const column = arrival.change.columns.find((one) => one.name === name)
    return (column?.[side] ?? column?.[other])?.trimEnd() ?? null
  }))
  return [...new Set([image('new', 'old'), image('old', 'new')])]
}

/** json can hold what text cannot; one such value makes the whole document unreadable. */
function isStorable(element: Element): boolean {
  return Object.entries(element).every(([name, value]) =>
    name === '~p' || (typeof value === 'object' && value !== null ? isStorable(value as Element) : typeof value !== 'string' || (!value.includes('\0') && value.isWellFormed())))
}
