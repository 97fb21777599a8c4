import { seeded } from '../../demo/random.ts'
import type { SourceClock, Workload } from '../workload.ts'
import { append } from './append.ts'
import { bank } from './bank.ts'
import { churn } from './churn.ts'
import type { Parts } from './document.ts'
import { garbage } from './garbage.ts'
import { keyless } from './keyless.ts'
import { large } from './large.ts'
import { origins } from './origins.ts'
import { partial } from './partial.ts'
import { refused } from './refused.ts'
import { withRepeats } from './repeats.ts'
import { resnapshot } from './resnapshot.ts'
import { shift } from './shift.ts'
import { skew } from './skew.ts'
import { spelling } from './spelling.ts'

const repeated = (open: (parts: Parts) => Workload) => (parts: Parts): Workload => withRepeats(open(parts), parts.random)

/**
 * The workloads of a campaign. `weight` is how often one makes the next transaction, against the others: so that about
 * one change in 200 is refused and one in 1,000 about as large as a record may be. `second`: it posts from two sources.
 */
export const WORKLOADS: Readonly<Record<string, { weight: number; open: (parts: Parts) => Workload; second?: true }>> = {
  churn: { weight: 300, open: repeated(churn) },
  bank: { weight: 120, open: repeated(bank) },
  append: { weight: 100, open: repeated(append) },
  shift: { weight: 50, open: repeated(shift) },
  spelling: { weight: 80, open: repeated(spelling) },
  keyless: { weight: 80, open: repeated(keyless) },
  partial: { weight: 80, open: repeated(partial) },
  skew: { weight: 120, open: repeated(skew) },
  refused: { weight: 30, open: refused },
  garbage: { weight: 10, open: garbage },
  large: { weight: 3, open: large },
  // Behind the others: the place in this list is part of what a seed means.
  origins: { weight: 80, open: repeated(origins), second: true },
  resnapshot: { weight: 40, open: repeated(resnapshot) },
}

/** One of them posts from two sources. */
export function wantsSecond(names: readonly string[]): boolean {
  return names.some((name) => WORKLOADS[name]?.second === true)
}

/** The named workloads, each with random numbers of its own: one more or less changes nothing in the others. */
export function openWorkloads(
  names: readonly string[], { seed, clock, recordLimit }: { seed: number; clock: SourceClock; recordLimit?: number },
): { workload: Workload; weight: number }[] {
  return names.map((name) => {
    const known = WORKLOADS[name]
    if (known === undefined) throw new Error(`no workload ${name}: there are ${Object.keys(WORKLOADS).join(', ')}`)
    const random = seeded(seed + 7_919 * Object.keys(WORKLOADS).indexOf(name))
    const workload = known.open({ random, clock, ...(recordLimit === undefined ? {} : { recordLimit }) })
    return { workload, weight: known.weight }
  })
}
