import { buildElement, withBefore, withRecord } from './element.ts'
import type { Arrival, Element, ElementShape } from './element.ts'
import { isStorable, UNSTORABLE } from './probe.ts'
import type { Refusal } from './probe.ts'

/**
 * The element of a change that is taken alone: with its record, in case that it is parked, its before-image, and why it
 * is refused, where that is known.
 */
export function singly(arrival: Arrival, shape: ElementShape, refusal?: Refusal): Element {
  const element = withRecord(buildElement(arrival, shape), arrival)
  if (arrival.change.operation === 'UPDATE' && shape.key.length > 0) Object.assign(element, withBefore(element, arrival, shape))
  if (!isStorable(element)) return { ...storable(element), '~q': UNSTORABLE }
  return refusal === undefined ? element : Object.assign(element, { '~q': refusal })
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
