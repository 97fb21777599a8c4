import { applyOnce, fill, type Filled } from './apply.ts'
import { makeSteps, type Unfit } from './changes.ts'
import type { Bench } from './place.ts'
import type { Measured, RatioRule } from './result.ts'

const UNFIT: readonly Unfit[] = ['type', 'check']
const RETRIES = [{ name: 'MAX_RETRIES 0', maxRetries: 0 }, { name: 'retries as by default' }] as const
const TARGET = 0.8

/** Each sort of refusal against the clean run beside it. */
export const REFUSALS_RATIOS: readonly RatioRule[] = UNFIT.flatMap((unfit) => RETRIES.flatMap(({ name }) => {
  const sides = { of: `refusals: by ${unfit}, ${name}`, to: 'refusals: clean' }
  return [{ name: `refusals by ${unfit}, ${name}`, ...sides, target: TARGET }, { name: `refusals by ${unfit}, ${name}: by CPU time`, ...sides, cpu: true as const }]
}))

/**
 * The same changes three times: clean, one in a hundred refused for its type, one in a hundred refused by a check that
 * nothing but trying can tell. Runs alternate, so that a machine that others use is slow for all of them.
 */
export async function refusals(bench: Bench, keep: (run: Measured) => void): Promise<void> {
  const steps = makeSteps(bench.options.events)
  const all: Filled[] = []
  try {
    for (const unfit of [undefined, ...UNFIT]) all.push(await fill(bench, steps, { bytes: 100, ...(unfit === undefined ? {} : { unfit }) }))
    for (let repeat = 1; repeat <= Math.max(2, bench.options.repeats); repeat += 1) {
      for (const filled of all) {
        if (filled.unfit === undefined) keep(await applyOnce(bench, filled, { scenario: 'refusals', variant: 'clean', repeat }))
        else {
          for (const { name, ...settings } of RETRIES) {
            keep(await applyOnce(bench, filled, { scenario: 'refusals', variant: `by ${filled.unfit}, ${name}`, repeat, ...settings }))
          }
        }
      }
    }
  } finally {
    for (const { place } of all) await place.drop()
  }
}
