import { setTimeout as pause } from 'node:timers/promises'

import { DeltapostError } from '../../outbox/errors.ts'

/** Nothing moved for so long: it never will. Longer than a rebalance and a lease together. */
const STILL_MS = 45_000

/**
 * Asks every `everyMs` how far it is until that is `goal`, and returns the last answer. Rejects when the count has stood
 * still for 45 s, naming `what`.
 */
export async function reach<T extends { count: number }>(parts: {
  what: string; goal: number; everyMs: number; signal: AbortSignal; ask: () => Promise<T>; told?: (count: number) => void
}): Promise<T> {
  let since = performance.now()
  let last = -1
  for (;;) {
    const answer = await parts.ask()
    if (answer.count >= parts.goal) return answer
    if (answer.count !== last) since = performance.now()
    last = answer.count
    parts.told?.(last)
    if (performance.now() - since > STILL_MS) {
      throw new DeltapostError('BENCH_STILL', `${parts.what}: ${last} of ${parts.goal}, and nothing moved for ${STILL_MS / 1_000} s`, 'read .deltapost/bench.log')
    }
    await pause(parts.everyMs, undefined, { signal: parts.signal })
  }
}
