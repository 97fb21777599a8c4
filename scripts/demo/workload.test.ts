import test from 'ava'
import fc from 'fast-check'

import { bodyOf, timeText } from './body.ts'
import { makeWorkload, modelOf, postingOrder } from './workload.ts'

const options = fc.record({
  seed: fc.integer({ min: 1, max: 1_000_000 }),
  changes: fc.integer({ min: 1, max: 400 }),
  perSecond: fc.integer({ min: 1, max: 5_000 }),
  begin: fc.constant(1_790_000_000_000_000),
})

test('the same seed makes the same changes and the same bodies', (t) => {
  fc.assert(fc.property(options, (wanted) => {
    const bodies = (): string[] => makeWorkload(wanted).flatMap(({ changes }) => changes.map(bodyOf))
    const first = bodies()
    return first.length === wanted.changes && first.every((body, at) => body === bodies()[at])
  }), { numRuns: 20 })
  t.notDeepEqual(makeWorkload({ seed: 1, changes: 50, perSecond: 10, begin: 0 }), makeWorkload({ seed: 2, changes: 50, perSecond: 10, begin: 0 }))
})

test('the changes of a transaction are posted as N-1, ..., 2, 1, N', (t) => {
  t.deepEqual([1, 2, 3, 4, 5].map((n) => postingOrder(Array.from({ length: n }, (_, at) => at + 1))), [
    [1], [1, 2], [2, 1, 3], [3, 2, 1, 4], [4, 3, 2, 1, 5],
  ])
  fc.assert(fc.property(fc.array(fc.nat(), { minLength: 1, maxLength: 20 }), (changes) => {
    const posted = postingOrder(changes)
    const n = changes.length
    return posted.length === n && posted.at(-1) === changes.at(-1)
      && posted.slice(0, -1).every((change, at) => change === changes[n - 2 - at])
  }))
})

test('every change has a later time than the one before it, and its before-image is what the row was', (t) => {
  fc.assert(fc.property(options, (wanted) => {
    const rows = new Map<string, unknown>()
    let clock = 0
    for (const { time, before, after } of makeWorkload(wanted).flatMap(({ changes }) => changes)) {
      if (time <= clock) return false
      clock = time
      if (before === null ? rows.has(after?.id ?? '') : rows.get(before.id) !== before) return false
      if (before !== null) rows.delete(before.id)
      if (after !== null) rows.set(after.id, after)
    }
    return true
  }), { numRuns: 50 })
  t.pass()
})

test('the model is the same whatever order the changes come in', (t) => {
  fc.assert(fc.property(options, (wanted) => {
    const changes = makeWorkload(wanted).flatMap(({ changes: some }) => some)
    const inOrder = modelOf(changes)
    const asPosted = modelOf(makeWorkload(wanted).flatMap(({ changes: some }) => postingOrder(some)))
    return inOrder.size === asPosted.size && [...inOrder].every(([id, row]) => JSON.stringify(asPosted.get(id)) === JSON.stringify(row))
  }), { numRuns: 30 })
  t.pass()
})

test('every generated body is JSON with the values it was made from, in both dialects', (t) => {
  const changes = makeWorkload({ seed: 11, changes: 2_000, perSecond: 1_000, begin: 1_790_000_000_000_000 }).flatMap((one) => one.changes)
  const dialects = new Set<boolean>()
  for (const change of changes) {
    const body = bodyOf(change)
    const post = JSON.parse(body) as { OPERATION: string; DATA: Record<string, string | { old: string; new: string }> }
    dialects.add(body.includes('uniquedatatype'))
    for (const [name, value] of Object.entries(change.after ?? change.before ?? {})) {
      const posted = post.DATA[name]
      if (post.OPERATION !== 'UPDATE') t.is(posted, value ?? undefined)
      else t.is(typeof posted === 'object' ? posted.new : undefined, value ?? 'NULL')
    }
  }
  t.deepEqual([...dialects].sort(), [false, true])
  t.true(changes.some(({ before, after }) => before !== null && after !== null && before.id !== after.id), 'no key moved')
  t.true(changes.some(({ repeated }) => repeated), 'nothing is posted twice')
})

test('microseconds are printed without leading zeros, as the sender does', (t) => {
  t.deepEqual([5, 42, 12_345, 123_450].map((micros) => timeText(1_568_714_970_000_000 + micros)), [
    '2019-09-17T10:09:30.5Z', '2019-09-17T10:09:30.42Z', '2019-09-17T10:09:30.12345Z', '2019-09-17T10:09:30.123450Z',
  ])
})
