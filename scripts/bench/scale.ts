import { makeSteps } from './changes.ts'
import { drain } from './pipeline.ts'
import type { Bench } from './place.ts'
import type { Measured, RatioRule } from './result.ts'

const COUNTS = [1, 2, 4] as const
const named = (count: number): string => `${count} of each`

/** What several cost on the same cores: the work a second of CPU does, against that of one relay and one consumer. */
export const SCALE_RATIOS: readonly RatioRule[] = COUNTS.filter((count) => count > 1).map((count) => (
  { name: `${count} relays and consumers to one, per CPU second`, of: `scale: ${named(count)}`, to: `scale: ${named(1)}`, cpu: true }))

/** A full outbox emptied by one, two and four relays and as many consumers. */
export async function scale(bench: Bench, keep: (run: Measured) => void): Promise<void> {
  const { events, repeats } = bench.options
  for (let repeat = 1; repeat <= repeats; repeat += 1) {
    for (const count of COUNTS) {
      keep({ ...await drain(bench, { variant: named(count), bytes: 100, repeat, processes: count }, makeSteps(events)), scenario: 'scale' })
    }
  }
}
