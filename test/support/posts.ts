import { setTimeout as pause } from 'node:timers/promises'
import type { Answer, Post } from '../../scripts/demo/sender.ts'

/** The sender cannot repeat a post; who replays its spool can. Repeating is safe: a repeat is recognised. */
export function untilAnswered(post: Post): Post {
  return async (path, body): Promise<Answer> => {
    for (let tries = 0; ; tries += 1) {
      try {
        const answer = await post(path, body)
        if (answer.status !== 503) return answer
      } catch (error) {
        if (tries > 1_000) throw error
      }
      await pause(20)
    }
  }
}
