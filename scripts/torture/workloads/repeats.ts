import type { Random } from '../../demo/random.ts'
import type { Posting, Workload } from '../workload.ts'
import { PATHS } from './postings.ts'

const REPEATED = 0.01
const SHUFFLED = 0.05

/**
 * The workload with some of its posts repeated, at the same time or once more on another path, and with some transactions
 * posted in any order and without waiting for what touches the same rows: what is older may come later, and TIME decides.
 */
export function withRepeats(workload: Workload, random: Random): Workload {
  function repeated(posting: Posting): Posting[] {
    if (!random.chance(REPEATED)) return [posting]
    if (random.chance(0.6)) return [{ ...posting, times: 2 + random.below(4) }]
    return [posting, { ...posting, path: random.pick(PATHS.filter((path) => path !== posting.path)) }]
  }
  return {
    ...workload,
    next() {
      const postings = workload.next()
      const all = random.chance(SHUFFLED) ? shuffled(postings, random).map((posting) => ({ ...posting, rows: [] })) : postings
      return all.flatMap(repeated)
    },
  }
}

function shuffled<T>(list: readonly T[], random: Random): T[] {
  return list.map((item) => ({ item, place: random.below(1_000_000) })).sort((a, b) => a.place - b.place).map(({ item }) => item)
}
