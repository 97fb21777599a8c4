import test from 'ava'

import { testBench } from '../../test/support/bench.ts'
import { applyOnce, fill } from './apply.ts'
import { makeSteps, modelOf } from './changes.ts'
import { faultsOf } from './oracles.ts'
import { openPlace } from './place.ts'
import { fillOutbox } from './prefill.ts'
import { ratiosOf, type Measured } from './result.ts'

const { benchOf, drop } = testBench()
test.after.always(drop)

test('a bench of refusals ends with good rows right and bad ones parked with their bytes', async (t) => {
  const bench = benchOf()
  const filled = await fill(bench, makeSteps(400), { bytes: 100, unfit: 'check' })
  t.teardown(() => filled.place.drop())
  const run = await applyOnce(bench, filled, { scenario: 'refusals', variant: 'by check', repeat: 1, maxRetries: 0 })
  t.deepEqual(run.faults, [])
  t.true(run.perSecond > 0)
})

test('a bench does not pass where a row, a change or its bytes is wrong', async (t) => {
  const bench = benchOf()
  const steps = makeSteps(60)
  const place = await openPlace(bench)
  t.teardown(() => place.drop())
  await fillOutbox(bench, place, steps, { bytes: 100 })
  const expected = { changes: steps.length, model: undefined, bytes: 100, published: false }
  t.deepEqual(await faultsOf(place.sql, expected), [])
  t.deepEqual(await faultsOf(place.sql, { ...expected, changes: 61 }), ['changes received: 60, expected 61', 'rows of audit_log: 60, expected 61'])
  t.true((await faultsOf(place.sql, { ...expected, published: true })).includes('changes still in the outbox: 60, expected 0'))
  await place.sql`insert into bench.item values (1, 1, '2026-05-01', 'not of the model')`
  const faults = await faultsOf(place.sql, { ...expected, model: modelOf(steps) })
  t.true(faults.includes('the row 1 is not of version 1') || faults.includes('the row 1 must not be there'), faults.join('; '))
  t.true(faults.includes(`changes applied: 0, expected ${steps.length}`))
})

test('a run with a fault counts as a rate of zero in every ratio', (t) => {
  const run = (variant: string, perSecond: number, faults: string[] = []): Measured => (
    { scenario: 's', variant, repeat: 1, changes: 1, seconds: 1, perSecond, cpu: {}, peak: {}, load: 0, faults })
  const rules = [{ name: 'r', of: 's: a', to: 's: b' }]
  t.is(ratiosOf([run('a', 3), run('b', 2)], rules)[0]?.median, 1.5)
  t.is(ratiosOf([run('a', 3, ['lost one']), run('b', 2)], rules)[0]?.median, 0)
  t.deepEqual(ratiosOf([run('a', 3)], rules), [])
})
