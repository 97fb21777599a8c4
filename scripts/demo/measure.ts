import { spawnSync } from 'node:child_process'

import type { Sql } from '../../outbox/sql.ts'
import { peakOf } from '../stack/server-process.ts'
import type { Played } from './play.ts'

/** Milliseconds at the middle, for 99 of 100, and at most. */
export type Spread = { p50: number; p99: number; worst: number }

/** Until its change was visible in the target: from when a post was due, and from when it was sent. */
export type Measured = { fromDue: Spread; fromSent: Spread; perSecond: number; seconds: number }

/**
 * How long changes took. The first post of a transaction is due at the moment the plan wanted it sent, so that neither a
 * sender that fell behind nor a row's lock held by a post without an answer is hidden. Clocks of one machine.
 */
export async function measure(sql: Sql, played: Played): Promise<Measured | undefined> {
  const rows = await sql<{ seq_id: string; at: number }[]>`
    select seq_id, extract(epoch from applied_at)::float8 * 1000 as at from inbox.applied`
  const visible = new Map(rows.map(({ seq_id, at }) => [seq_id, at]))
  const fromDue: number[] = []
  const fromSent: number[] = []
  let begin = Infinity
  let end = 0
  for (const { due, answer } of played.sent) {
    const at = answer.seqId === null ? undefined : visible.get(answer.seqId)
    if (at === undefined) continue
    fromDue.push(at - due)
    fromSent.push(at - answer.sentAt)
    begin = Math.min(begin, due)
    end = Math.max(end, at)
  }
  if (fromDue.length === 0) return undefined
  const seconds = (end - begin) / 1_000
  return { fromDue: spread(fromDue), fromSent: spread(fromSent), perSecond: fromDue.length / seconds, seconds }
}

function spread(lags: readonly number[]): Spread {
  const sorted = lags.toSorted((a, b) => a - b)
  const at = (share: number): number => sorted[Math.ceil(sorted.length * share) - 1] ?? 0
  return { p50: at(0.5), p99: at(0.99), worst: at(1) }
}

/** Resident memory in bytes and what kind of number it is: the highest so far on Linux, the present one elsewhere. */
export function memoryOf(pid: number): { bytes: number; kind: 'peak' | 'now' } {
  const peak = peakOf(pid)
  if (peak !== undefined) return { bytes: peak, kind: 'peak' }
  const told = spawnSync('ps', ['-o', 'rss=', '-p', String(pid)], { encoding: 'utf8' }).stdout
  return { bytes: Number(told.trim()) * 1_024, kind: 'now' }
}
