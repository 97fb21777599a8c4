import { setTimeout as pause } from 'node:timers/promises'

import { bodyOf } from './body.ts'
import { type Answer, type Post, now } from './sender.ts'
import { postingOrder, type RowChange, type Transaction } from './workload.ts'

/** One post that was sent: when it was due by the plan, and what came back. */
export type Sent = { change: RowChange; due: number; answer: Answer }

/** All that was posted. `repeats` were sent again and must carry the first answer's number; `failed` got no answer. */
export type Played = {
  sent: Sent[]
  repeats: { first: Answer; second: Answer }[]
  garbage: Answer[]
  failed: string[]
}

// Sessions of the source that post at the same time.
const SESSIONS = 24
// What a broken sender, a scanner or a wrong address posts: nothing of it is a change.
const GARBAGE: readonly (string | Buffer)[] = [
  '', 'null', '"text"', '{"TIME": "2026-01-01T00:00:00.1Z", "SCHEMANAME": "shop", "TABLENAME": "acc', 'name=value&x=1',
  Buffer.from([0x7b, 0x22, 0x63, 0x61, 0x66, 0xe9, 0x22, 0x7d]), '{"hello": "world"}',
]

/**
 * Posts the transactions at their due times, whether earlier ones were answered or not: an open loop, in which a slow
 * listener shows in the times instead of slowing the clock down.
 *
 * A row's next transaction is posted only after the posts of the one before were answered: the source holds the row's
 * lock until then. Progress is told after every transaction.
 */
export async function play(transactions: readonly Transaction[], post: Post, signal: AbortSignal, told: (played: Played) => void): Promise<Played> {
  const played: Played = { sent: [], repeats: [], garbage: [], failed: [] }
  const begin = now()
  const locks = new Map<string, Promise<void>>()
  const busy = new Set<Promise<void>>()
  const junkEvery = Math.max(1, Math.floor(transactions.length / GARBAGE.length))

  for (const [at, transaction] of transactions.entries()) {
    const wait = begin + transaction.due - now()
    if (wait > 1) await pause(wait, undefined, { signal })
    while (busy.size >= SESSIONS) await Promise.race(busy)
    signal.throwIfAborted()
    const rows = new Set(transaction.changes.flatMap(({ before, after }) => [before?.id, after?.id]).filter((id) => id !== undefined))
    const earlier = [...rows].flatMap((id) => locks.get(id) ?? [])
    const session = (async () => {
      await Promise.all(earlier)
      await postTransaction(transaction, begin + transaction.due, post, played)
      const junk = at % junkEvery === 0 ? GARBAGE[at / junkEvery] : undefined
      if (junk !== undefined) await attempt(played, async () => void played.garbage.push(await post('/events', junk)))
      told(played)
    })()
    for (const id of rows) locks.set(id, session)
    busy.add(session)
    void session.finally(() => busy.delete(session))
  }
  await Promise.all(busy)
  return played
}

/** The first post is due when the transaction is; each other one when its predecessor was answered. */
async function postTransaction(transaction: Transaction, begin: number, post: Post, played: Played): Promise<void> {
  let due = begin
  for (const change of postingOrder(transaction.changes)) {
    await attempt(played, async () => {
      const body = bodyOf(change)
      const answer = await post(change.repeated ? '/fileevents' : '/events', body)
      played.sent.push({ change, due, answer })
      due = answer.answeredAt
      if (change.repeated) played.repeats.push({ first: answer, second: await post('/kafkaevents', body) })
    })
  }
}

/** The sender goes on after a failed post; the count at the end tells. */
async function attempt(played: Played, work: () => Promise<void>): Promise<void> {
  try {
    await work()
  } catch (error) {
    played.failed.push(error instanceof Error ? error.message : String(error))
  }
}
