import type { Sql } from '../../outbox/sql.ts'
import { traceOf } from '../../outbox/trace.ts'
import { showTrace } from '../commands/event.ts'
import { duration, say, sayFields, sayTable, size } from '../commands/print.ts'
import type { RoleProcess } from '../commands/role-process.ts'
import { type Measured, memoryOf, type Spread } from './measure.ts'
import type { Played } from './play.ts'
import type { SampleAnswer } from './samples.ts'
import type { Verdict } from './verdict.ts'

const EVERY_MS = 10_000

/** One line that is written over on a terminal, and a new one every ten seconds elsewhere. */
export function openProgress(): { told: (text: string) => void; done: () => void } {
  const terminal = process.stderr.isTTY
  let last = 0
  let width = 0
  return {
    told(text) {
      const now = performance.now()
      if (now - last < (terminal ? 100 : EVERY_MS)) return
      last = now
      process.stderr.write(terminal ? `\r${text.padEnd(width)}` : `${text}\n`)
      width = text.length
    },
    done() {
      if (terminal && width > 0) process.stderr.write(`\r${' '.repeat(width)}\r`)
      width = 0
    },
  }
}

/** Each sample with what was said to it, and with what became of those that were accepted. */
export async function showSamples(sql: Sql, samples: readonly SampleAnswer[]): Promise<void> {
  say('\nSample posts, as an Informix trigger sends them')
  const rows = await sql<{ seq_id: string; status: string; failure: string | null; where: string }[]>`
    select seq_id, consumer_deploy_status as status, consumer_failure_log as failure, schema_name || '.' || table_name as where
    from auditlog.audit_log where seq_id = any (${samples.flatMap(({ answer }) => answer.seqId ?? [])}::text[]::bigint[])`
  const fates = new Map(rows.map((row) => [row.seq_id, row]))
  sayTable(samples.map(({ name, answer }) => {
    const fate = answer.seqId === null ? undefined : fates.get(answer.seqId)
    return {
      post: name,
      answer: answer.status,
      'seq_id or rejected': answer.seqId ?? answer.rejected?.id,
      relation: fate?.where,
      outcome: fate === undefined ? `rejected: ${answer.rejected?.reason ?? ''}` : `${fate.status}${fate.failure === null ? '' : ` (${fate.failure})`}`,
    }
  }))
}

/** Some rows, and one change from its receipt to its row. */
export async function showRowsAndTrace(sql: Sql, target: Sql, played: Played): Promise<void> {
  say('\nRows of the target, shop.account')
  sayTable(await target`select id, owner, balance::text, opened::text, changed::text, note from shop.account order by id limit 5`)
  const chosen = played.sent.findLast(({ change, answer }) => answer.seqId !== null && change.before !== null && change.after !== null)
  const trace = chosen?.answer.seqId == null ? undefined : await traceOf(sql, chosen.answer.seqId)
  if (trace === undefined) return
  say(`\nOne change end to end (deltapost event show ${trace.received.seq_id})`)
  showTrace(trace)
}

/** Counts, times and memory, then the verdict. */
export function showVerdict(verdict: Verdict, measured: Measured | undefined, roles: readonly RoleProcess[]): void {
  const { counts, differences } = verdict
  say('\nCounts')
  sayFields({
    posts: verdict.posts,
    'accepted, as answered': verdict.accepted,
    received: counts.received,
    published: counts.published,
    ...Object.fromEntries(['APPLIED', 'SUPERSEDED', 'PARKED', ...Object.keys(counts.outcomes)].map((name) => [name.toLowerCase(), counts.outcomes[name] ?? 0])),
    rejected: counts.rejected,
    'rows compared with the model': verdict.rows,
  })
  if (measured !== undefined) {
    say('Times of the generated changes')
    sayFields({
      rate: `${measured.perSecond.toFixed(0)} changes/s over ${measured.seconds.toFixed(1)} s`,
      'due to visible': spreadText(measured.fromDue),
      'sent to visible': spreadText(measured.fromSent),
    })
  }
  say('Memory')
  // The second relay is that of the second database.
  const processes = [...roles.map(({ role, pid }, at) => ({ name: roles.findIndex((other) => other.role === role) < at ? `${role} 2` : role, pid })), { name: 'demo itself', pid: process.pid }]
  sayFields(Object.fromEntries(processes.map(({ name, pid }) => {
    const { bytes, kind } = memoryOf(pid)
    return [name, `${size(bytes)} (${kind})`]
  })))
  if (differences.length === 0) return say('\nEverything adds up: every change accepted is published and has an outcome, and the target is the model.')
  say(`\n${differences.length} differences:`)
  for (const difference of differences) say(`  ${difference}`)
}

function spreadText({ p50, p99, worst }: Spread): string {
  return `p50 ${duration(p50)}, p99 ${duration(p99)}, longest ${duration(worst)}`
}

/**
 * Where the changes are while the demo waits for them. Reads what is on its way, not what is done: asked every half
 * second during a long run, it must not grow with it.
 */
export async function standing(sql: Sql): Promise<{ settled: boolean; text: string; left: number }> {
  const [row] = await sql<{ received: string; waiting: number; pending: number }[]>`
    select (select last_value from outbox.position) as received,
           (select count(*)::integer from outbox.event) as waiting, (select count(*)::integer from auditlog.pending) as pending`
  const { received, waiting, pending } = row ?? { received: '0', waiting: 0, pending: 0 }
  return {
    settled: pending === 0 && waiting === 0,
    left: pending + waiting,
    text: `last position ${received}, to publish ${waiting}, on the way ${pending}`,
  }
}
