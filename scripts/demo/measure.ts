import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'

import type { Sql } from '../../outbox/sql.ts'
import type { Played } from './play.ts'

/** Milliseconds from when a post was due to when its change was visible in the target; changes a second over the run. */
export type Measured = { p50: number; p99: number; worst: number; perSecond: number; seconds: number }

/**
 * How long changes took. The first post of a transaction counts from the moment the plan wanted it sent, so a sender
 * that fell behind does not hide it. Posting and applying are read from clocks of one machine.
 */
export async function measure(sql: Sql, played: Played): Promise<Measured | undefined> {
  const rows = await sql<{ seq_id: string; at: number }[]>`
    select seq_id, extract(epoch from applied_at)::float8 * 1000 as at from inbox.applied`
  const visible = new Map(rows.map(({ seq_id, at }) => [seq_id, at]))
  const lags: number[] = []
  let begin = Infinity
  let end = 0
  for (const { due, answer } of played.sent) {
    const at = answer.seqId === null ? undefined : visible.get(answer.seqId)
    if (at === undefined) continue
    lags.push(at - due)
    begin = Math.min(begin, due)
    end = Math.max(end, at)
  }
  if (lags.length === 0) return undefined
  lags.sort((a, b) => a - b)
  const at = (share: number): number => lags[Math.min(lags.length - 1, Math.ceil(lags.length * share) - 1)] ?? 0
  const seconds = (end - begin) / 1_000
  return { p50: at(0.5), p99: at(0.99), worst: at(1), perSecond: lags.length / seconds, seconds }
}

/** Resident memory in bytes and what kind of number it is: the highest so far on Linux, the present one elsewhere. */
export function memoryOf(pid: number): { bytes: number; kind: 'peak' | 'now' } {
  if (process.platform === 'linux') {
    const peak = /^VmHWM:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]
    return { bytes: Number(peak ?? 0) * 1_024, kind: 'peak' }
  }
  const told = spawnSync('ps', ['-o', 'rss=', '-p', String(pid)], { encoding: 'utf8' }).stdout
  return { bytes: Number(told.trim()) * 1_024, kind: 'now' }
}
