import test from 'ava'
import type { Sql } from 'postgres'
import { shipReceipts } from '../../../services/consumer/receipts.ts'
import { pairDatabases } from '../../../services/jobs/migrate.ts'
import { runRelay } from '../../../services/relay/main.ts'
import { readConfig } from '../../../services/runtime/config.ts'
import { openLog } from '../../../services/runtime/log.ts'
import { openSlot } from '../../../services/runtime/slot.ts'
import { openLocalWake } from '../../../services/runtime/wake.ts'
import { connect, freshDatabase } from '../../../test/support/database.ts'
import { brokers } from '../../../test/support/kafka.ts'
import { startListener } from '../../../test/support/listener.ts'
import { until } from '../../../test/support/until.ts'
import { openWay } from '../../../test/support/way.ts'
import type { Way } from '../../../test/support/way.ts'
import { seeded } from '../../demo/random.ts'
import { changeId, drive } from '../driver.ts'
import type { Played } from '../driver.ts'
import type { Posting, SourceClock, Workload } from '../workload.ts'
import { WORKLOADS, openWorkloads } from './all.ts'

const CHANGES = 2_000
const SEED = Number(process.env['TORTURE_SEED'] ?? 5)
const NAMES = Object.keys(WORKLOADS)
/** The origin of the second source. */
const SECOND = 2

/** One row less or other than it must be, for each workload. */
const DAMAGE: Readonly<Record<string, string>> = {
  churn: `update torture.churn set tag = tag || ' ' where id = (select min(id) from torture.churn)`,
  bank: 'update torture.bank set balance = balance + 0.01 where id = 7',
  append: `update torture.append set even = replace(even, '2,', '') where id = 1`,
  shift: `update torture.shift set note = coalesce(note, '') || '.' where id = (select min(id) from torture.shift)`,
  spelling: 'update torture.spelled_char set n = n - 1 where code = (select max(code) from torture.spelled_char)',
  keyless: 'delete from torture.keyless where ctid = (select min(ctid) from torture.keyless)',
  partial: 'update torture.partial set body = null where id = (select min(id) from torture.partial where body is not null)',
  skew: 'delete from torture.skew where id = 3',
  refused: `insert into torture.refused (id, kind) values (0, 'a')`,
  garbage: 'create table torture.garbage (id text)',
  origins: `delete from torture.origin_lines where ctid = (select min(ctid) from torture.origin_lines)`,
  resnapshot: 'update torture.resnapshot set n = n + 1 where id = (select max(id) from torture.resnapshot)',
  large: `update torture.large set body = body || 'x' where id = (select max(id) from torture.large)`,
}

let way: Way
let workloads: readonly Workload[]
const played: Played = { accepted: new Map(), posts: 0, answers: {}, rejected: new Set(), wrong: [] }

function sourceClock(): SourceClock {
  let last = Date.now() * 1_000 - 60_000_000
  return () => (last += 1)
}

/** A second source, as a campaign has one: a database of its own whose relay publishes to the same topic, and which is told the outcomes. */
async function openSecond(): Promise<{ url: string; sql: Sql; stop: () => Promise<void> }> {
  const { url, drop } = await freshDatabase()
  const sql = connect(url)
  await sql`update outbox.database set origin = ${SECOND}`
  await pairDatabases(url, way.url, () => undefined)
  const stopping = new AbortController()
  const { signal } = stopping
  const [first, target] = [openSlot({ url, name: 'receipts' }), openSlot({ url: way.url, name: 'receipts' })]
  const environment = { DATABASE_URL: url, KAFKA_BROKERS: brokers().join(), TOPIC: way.topic }
  const roles = [
    runRelay({ config: readConfig(environment), log: openLog('relay', 'silent'), signal, wake: openLocalWake() }),
    shipReceipts({ first, target, holder: 'second', signal, log: openLog('consumer', 'silent') }),
  ]
  const listener = await startListener(url, { topic: way.topic })
  return {
    url: listener.url, sql,
    async stop() {
      await listener.stop()
      stopping.abort()
      await Promise.all(roles)
      await Promise.all([first.close(), target.close(), sql.end({ timeout: 5 })])
      await drop()
    },
  }
}

test.before('all workloads are played at once, through a listener, a relay and a consumer', async (t) => {
  t.timeout(120_000)
  way = await openWay({ two: false, settings: { RETRY_BACKOFF_MS: '50' } })
  await way.target.unsafe(`create schema torture; grant all on schema torture to ${way.account};
    alter default privileges in schema torture grant all on tables to ${way.account}`)
  const opened = openWorkloads(NAMES, { seed: SEED, clock: sourceClock() })
  workloads = opened.map(({ workload }) => workload)
  for (const { tables } of workloads) if (tables !== '') await way.target.unsafe(tables)
  const listener = await startListener(way.url, { topic: way.topic })
  const second = await openSecond()
  await drive({
    sources: [{ origin: 1, listeners: () => [listener.url] }, { origin: SECOND, listeners: () => [second.url] }], workloads: workloads.map((workload) => ({ workload, weight: workload.name === 'large' ? 0.1 : 1 })),
    ledger: { write: async () => undefined, close: async () => undefined }, random: seeded(SEED), sessions: 16, rate: 100_000,
    enough: () => played.accepted.size >= CHANGES, signal: AbortSignal.timeout(100_000),
  }, played)
  await until(async () => (await second.sql`select from auditlog.pending union all select from outbox.event limit 1`).length === 0 && (await way.first`
    select from auditlog.pending union all select from outbox.event union all select from inbox.applied where status = 'RETRYING'
    union all select from inbox.parked where retry_at is not null limit 1`).length === 0,
  { within: 60_000, what: 'nothing pending and no retry left' })
  await Promise.all([listener.stop(), second.stop()])
})

test.after.always(() => way?.close())

test('every post of the torture workloads is answered as it must be, and a repeat with the first number', (t) => {
  t.deepEqual(played.wrong, [])
  t.true(played.rejected.size > 20, 'garbage is kept')
})

for (const name of NAMES) {
  test(`the torture workload ${name} ends as its source did, and a row that differs is told`, async (t) => {
    const workload = workloads.find((one) => one.name === name)!
    t.deepEqual(await workload.faults(way.target), [], `seed ${SEED}`)
    const damaged = await way.target.unsafe(DAMAGE[name]!)
    t.true(name === 'garbage' || damaged.count === 1, 'one row is damaged')
    t.not((await workload.faults(way.target)).length, 0)
  })
}

test('what the torture workloads call refused was refused, unless a newer image came first, and nothing else was', async (t) => {
  const outcomes = await way.target<{ origin: number; seq_id: string; status: string; failure: string | null }[]>`
    select origin, seq_id, status, failure from inbox.applied where status in ('PARKED', 'FAILED') and coalesce(failure, '') not like 'KEY_SHIFT%'`
  t.deepEqual(outcomes.filter(({ origin, seq_id: seqId }) => played.accepted.get(changeId(origin, seqId))?.refused !== true), [])
  const failed = new Set(outcomes.map(({ origin, seq_id: seqId }) => changeId(origin, seqId)))
  const marked = [...played.accepted].filter(([, { refused }]) => refused).map(([id]) => id)
  const superseded = new Set((await way.target<{ origin: number; seq_id: string }[]>`select origin, seq_id from inbox.applied where status = 'SUPERSEDED'`).map(({ origin, seq_id: seqId }) => changeId(origin, seqId)))
  t.deepEqual(marked.filter((id) => !failed.has(id) && !superseded.has(id)), [])
})

test('the weights of the torture workloads give one refused change in 200, and one in 1,000 that is as large as a record', (t) => {
  const opened = openWorkloads(NAMES, { seed: 1, clock: sourceClock(), recordLimit: 2_000 })
  const whole = opened.reduce((sum, { weight }) => sum + weight, 0)
  const share = (count: (posting: Posting) => number): number => opened.reduce((sum, { workload, weight }) => {
    const postings = Array.from({ length: 2_000 }, () => workload.next()).flat()
    return sum + weight / whole * postings.reduce((more, posting) => more + count(posting), 0) / 2_000
  }, 0)
  const all = share(({ changes }) => changes.length)
  const refused = share(({ changes }) => changes.filter((change) => change.refused).length) / all
  const large = share(({ changes }) => changes.filter(({ table }) => table === 'large').length) / all
  t.true(refused > 0.003 && refused < 0.007)
  t.true(large > 0.0003 && large < 0.002)
})
