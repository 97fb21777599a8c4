import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'

import { seeded } from '../demo/random.ts'
import { drive, type Played } from './driver.ts'
import { happens, type Happened } from './happen.ts'
import { openLedger } from './ledger.ts'
import { askAll } from './oracles/all.ts'
import { watchEffects } from './oracles/effects.ts'
import type { Finding } from './oracles/oracle.ts'
import type { Plan } from './plan.ts'
import { plantSql, type SqlPlant } from './plant-sql.ts'
import type { Plant } from './plant.ts'
import { openPlace, type Place, RECORD_LIMIT, type Servers } from './rig.ts'
import { watchRoles, type Growth } from './watch.ts'
import type { Workload } from './workload.ts'
import { openWorkloads, wantsSecond } from './workloads/all.ts'

export type CampaignOptions = {
  plan: Plan
  servers: Servers
  /** Of its databases, topics and files; no other campaign on these servers has it. */
  name: string
  counts: { listener: number; relay: number; consumer: number }
  plants?: readonly Plant[]
  sqlPlants?: readonly SqlPlant[]
  settings?: Readonly<Record<string, string>>
  /** Beyond what the backlog takes, in seconds. */
  patience: number
  signal: AbortSignal
  progress: (line: string) => void
}

export type Result = {
  plan: Plan
  seconds: number
  drainSeconds: number
  changes: number
  posts: number
  answers: Record<string, number>
  happened: readonly Happened[]
  notes: Record<string, number>
  growth: Growth
  findings: readonly Finding[]
}

/** A backlog is worked off at least so fast, in changes a second: what "in time" means beyond the patience. */
const LEAST_DRAIN = 200
export const MAX_RETRIES = 2
const SETTINGS = { MAX_RETRIES: String(MAX_RETRIES), RETRY_BACKOFF_MS: '200' }
/** A TIME that is a little behind the clock, as it is when a post arrives. */
const BEHIND_US = 1_000_000

/** Posts, breaks and mends by the plan, waits until all is through, and asks every oracle. */
export async function campaign(options: CampaignOptions): Promise<Result> {
  const { plan, progress, signal } = options
  const incidents: string[] = []
  const place = await openPlace({
    ...options, twoDatabases: plan.twoDatabases, second: wantsSecond(plan.workloads), plants: options.plants ?? [], settings: { ...SETTINGS, ...options.settings },
    log: progress, incident: (what) => { incidents.push(what); progress(`  ! ${what}`) },
  })
  try {
    const workloads = openWorkloads(plan.workloads, { seed: plan.seed, clock: sourceClock(), recordLimit: RECORD_LIMIT })
    await prepare(place, workloads.map(({ workload }) => workload), options.sqlPlants ?? [])
    await place.start()
    const watch = watchRoles(place)
    const begun = performance.now()
    const played: Played = { accepted: new Map(), posts: 0, answers: {}, rejected: new Set(), wrong: [] }
    const ended = new AbortController()
    const ledger = await openLedger(join(options.servers.directory, options.name, 'ledger.jsonl'))
    let scheduled = false
    let wanted: string | undefined
    const enough = (): boolean => scheduled || played.accepted.size >= plan.events || performance.now() - begun > plan.minutes * 60_000
    const driving = drive({
      sources: place.sources,
      workloads, wanted: () => wanted, ledger, random: seeded(plan.seed + 1), sessions: plan.sessions, rate: plan.rate, enough, signal,
    }, played).finally(() => ended.abort())
    const said = setInterval(() => progress(`  ${played.accepted.size} changes, lag ${watch.lag().toFixed(1)} s`), 10_000)
    const { happened, notes } = await happens({
      place, servers: options.servers, plan, watch, want: (workload) => { wanted = workload }, over: ended.signal, signal, log: progress,
    })
    scheduled = happened.length > 0 // what was planned is done, so nothing more is posted
    await driving.finally(() => clearInterval(said))
    await ledger.close()
    const posted = performance.now()
    const backlog = await waiting(place)
    progress(`  posted ${played.accepted.size} changes in ${((posted - begun) / 1_000).toFixed(0)} s; ${backlog} are on their way`)
    const limit = options.patience * 1_000 + backlog / LEAST_DRAIN * 1_000
    const notDrained = await drained(place, limit, signal) ? undefined : `${await waiting(place)} changes are still on their way ${(limit / 1_000).toFixed(0)} s after the last fault: ${await someWaiting(place)}`
    const drainSeconds = (performance.now() - posted) / 1_000
    const growth = await watch.end()
    const findings = await askAll({
      played, incidents, notDrained, growth, workloads: workloads.map(({ workload }) => workload), maxRetries: MAX_RETRIES, ...place,
    })
    return {
      plan, seconds: (posted - begun) / 1_000, drainSeconds, changes: played.accepted.size, posts: played.posts, answers: played.answers, happened, notes, growth, findings,
    }
  } finally {
    await place.close()
  }
}

function sourceClock(): () => number {
  let last = 0
  return () => {
    last = Math.max(last + 1, Date.now() * 1_000 - BEHIND_US)
    return last
  }
}

async function prepare({ target, first }: Place, workloads: readonly Workload[], plants: readonly SqlPlant[]): Promise<void> {
  await target.unsafe('create schema torture')
  for (const { tables } of workloads) if (tables !== '') await target.unsafe(tables)
  await watchEffects(target, workloads.map(({ name }) => name))
  for (const sql of new Set([first, target])) await plantSql(sql, plants)
}

/** Changes without an outcome, events in an outbox, retries and receipts that are to come. */
export async function waiting({ sources, target }: Pick<Place, 'sources' | 'target'>): Promise<number> {
  let here = 0
  for (const { sql } of sources) {
    const [row] = await sql<{ n: number }[]>`select ((select count(*) from auditlog.pending) + (select count(*) from outbox.event))::integer as n`
    here += row?.n ?? 0
  }
  const [there] = await target<{ n: number }[]>`
    select ((select count(*) from inbox.applied where status = 'RETRYING') + (select count(*) from inbox.receipt)
      + (select count(*) from inbox.parked where reason in ('WAITING', 'BEHIND', 'RELATION_STOPPED', 'CLOCK_AHEAD')))::integer as n`
  const beyond = sources.some(({ sql }) => sql === target) ? 0 : (await target<{ n: number }[]>`select count(*)::integer as n from outbox.event`)[0]?.n ?? 0
  return here + (there?.n ?? 0) + beyond
}

/** A few of them, and where they are. */
async function someWaiting({ sources, target }: Pick<Place, 'sources' | 'target'>): Promise<string> {
  const here = await Promise.all(sources.map(({ origin, sql }) => sql<{ what: string }[]>`
    (select format('pending %s:%s', ${origin}::integer, seq_id) as what from auditlog.pending limit 5)
    union all (select format('outbox %s %s of %s:%s in lane %s', kind, position, ${origin}::integer, seq_id, lane) from outbox.event limit 5)`))
  const there = await target<{ what: string }[]>`
    (select format('%s attempt %s of %s: %s', status, attempt, seq_id, failure) as what from inbox.applied where status = 'RETRYING' limit 5)
    union all (select format('parked %s %s, key %s, waits %s, due %s', reason, seq_id, key, waits, retry_at) from inbox.parked where reason in ('REFUSED', 'WAITING', 'BEHIND', 'RELATION_STOPPED', 'CLOCK_AHEAD') limit 5)
    union all (select format('receipt of %s', seq_id) from inbox.receipt limit 5)
    union all (select format('relation %s %s', source_table, state) from outbox.relation where state <> 'ACTIVE' limit 5)`
  return [...here.flat(), ...there].map(({ what }) => what).join('; ')
}

/** Nothing waits, and still nothing does a moment later: an apply may put what it refused back into the outbox. */
async function drained(place: Place, limit: number, signal: AbortSignal): Promise<boolean> {
  const end = performance.now() + limit
  for (let quiet = 0; performance.now() < end; ) {
    signal.throwIfAborted()
    quiet = await waiting(place) === 0 ? quiet + 1 : 0
    if (quiet === 2) return true
    await pause(500)
  }
  return false
}
