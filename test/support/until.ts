import { setTimeout as pause } from 'node:timers/promises'

const EVERY_MS = 20

/**
 * Waits until `condition` gives something true, and returns it. The only waiting that tests may do.
 *
 * Asked every 20 ms for `within` milliseconds (10 s unless given); then fails, naming `what` and the last answer or error.
 */
export async function until<T>(
  condition: () => T | Promise<T>,
  { within = 10_000, what = condition.toString() }: { within?: number; what?: string } = {},
): Promise<NonNullable<T>> {
  const end = Date.now() + within
  for (let last: unknown; ; await pause(EVERY_MS)) {
    try {
      const answer = await condition()
      if (answer) return answer
      last = answer
    } catch (error) {
      last = error
    }
    if (Date.now() > end) {
      const cause = last instanceof Error ? { cause: last } : {}
      throw new Error(`not within ${within} ms: ${what}; last answer: ${last instanceof Error ? last.message : JSON.stringify(last)}`, cause)
    }
  }
}
