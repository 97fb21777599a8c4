import { readdir } from 'node:fs/promises'
import { join } from 'node:path'

import { DeltapostError } from '../../outbox/errors.ts'
import { comparePair, standingOf, waitingReceipts, type WaitingReceipts } from '../../outbox/receipt.ts'
import type { Sql } from '../../outbox/sql.ts'
import { statusOf } from '../../outbox/status.ts'
import { type Config, ConfigError, readConfig } from '../../services/runtime/config.ts'
import { SlotLost, sqlstateOf } from '../../services/runtime/slot.ts'
import { withDatabase } from './database.ts'
import { environmentOfRunning } from './environment.ts'
import { checkKafka } from './kafka-checks.ts'
import { duration } from './print.ts'
import { secondOf } from './target.ts'

/** `fix` is what to type or change; a check that is ok has none. */
export type Check = { name: string; result: 'ok' | 'warning' | 'fail'; told: string; fix?: string }

const OLDEST_NODE = 24
const OLDEST_POSTGRES = 150_000
const MIGRATIONS = join(import.meta.dirname, '..', '..', 'migrations')
// More than this, and times of the source cannot be compared with times of receipt.
const CLOCK_MS = 1_000
// Seconds. Shipping takes half of one.
const RECEIPTS_LATE = 60

/** Everything the service stands on, in the order in which one fault hides the next. */
export async function checkAll(): Promise<Check[]> {
  const checks = [checkNode()]
  const config = checkConfig(checks)
  if (config === undefined) return checks
  checks.push(...await checkDatabase(config.databaseUrl), ...await checkSecond(config), ...await checkKafka(config))
  return checks
}

function checkNode(): Check {
  const { node } = process.versions
  if (Number(node.split('.')[0]) >= OLDEST_NODE) return { name: 'Node.js', result: 'ok', told: node }
  return { name: 'Node.js', result: 'fail', told: `${node} runs no TypeScript`, fix: 'npm run cli -- doctor, which uses the version of package.json' }
}

function checkConfig(checks: Check[]): Config | undefined {
  try {
    const config = readConfig(environmentOfRunning())
    checks.push({ name: 'configuration', result: 'ok', told: `topic ${config.topic}, source ${config.source} in ${config.sourceTimeZone}` })
    return config
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error
    checks.push({ name: 'configuration', result: 'fail', told: error.faults.join('; '), fix: error.remedy })
    return undefined
  }
}

async function checkDatabase(url: string): Promise<Check[]> {
  return failing('database', () => withDatabase(async (sql) => [
    ...await checkServer(sql),
    await checkClock(sql),
    ...await checkSchema(sql),
  ], url))
}

/** What a database does not answer, or refuses, as a check that failed. */
async function failing(name: string, checks: () => Promise<Check[]>): Promise<Check[]> {
  try {
    return await checks()
  } catch (error) {
    if (!(error instanceof Error && (error instanceof DeltapostError || error.cause instanceof SlotLost || sqlstateOf(error) !== undefined))) throw error
    return [{ name, result: 'fail', told: error.message, fix: 'remedy' in error ? String(error.remedy) : 'npm run migrate' }]
  }
}

/** The second database, and whether the two go together; nothing where there is one. */
async function checkSecond({ databaseUrl, targetDatabaseUrl }: Config): Promise<Check[]> {
  const target = secondOf(databaseUrl, targetDatabaseUrl)
  if (target === undefined) return []
  const checks = await checkDatabase(target)
  const pair = await failing('two databases', async () => {
    const [first, second] = [await withDatabase(standingOf, databaseUrl), await withDatabase(standingOf, target)]
    if (comparePair(first, second) === 'same') return [{ name: 'two databases', result: 'warning', told: 'both addresses are of one database', fix: 'unset TARGET_DATABASE_URL' }]
    return [{ name: 'two databases', result: 'ok', told: `origin ${first.origin} takes in, origin ${second.origin} applies` }, receiptsCheck(await withDatabase(waitingReceipts, target), first.origins)]
  })
  return [...checks.map((check) => ({ ...check, name: `second ${check.name}` })), ...pair]
}

function receiptsCheck({ count, oldest_age_seconds: age, origins }: WaitingReceipts, known: readonly number[]): Check {
  const name = 'receipts'
  const foreign = origins.filter((origin) => !known.includes(origin))
  if (foreign.length > 0) return { name, result: 'warning', told: `receipts of origin ${foreign.join(', ')} wait, which the first database never had`, fix: 'deltapost serve consumer with DATABASE_URL of the database they are of' }
  if (age === null || age < RECEIPTS_LATE) return { name, result: 'ok', told: `${count} wait` }
  return { name, result: 'warning', told: `${count} wait, the oldest for ${duration(age * 1_000)}: the audit lags`, fix: 'deltapost serve consumer; its log says why it cannot tell the first database' }
}

async function checkServer(sql: Sql): Promise<Check[]> {
  const [server] = await sql<{ version: string; number: number; fsync: string; commit: string }[]>`
    select current_setting('server_version') as version, current_setting('server_version_num')::integer as number,
           current_setting('fsync') as fsync,
           (select reset_val from pg_settings where name = 'synchronous_commit') as commit`
  if (server === undefined) throw new Error('the server told nothing of itself')
  return [
    server.number >= OLDEST_POSTGRES
      ? { name: 'PostgreSQL', result: 'ok', told: server.version }
      : { name: 'PostgreSQL', result: 'fail', told: `${server.version} is too old`, fix: 'PostgreSQL 15 or newer' },
    server.fsync === 'on'
      ? { name: 'durability', result: 'ok', told: 'fsync is on; the service sets synchronous_commit itself' }
      : { name: 'durability', result: 'fail', told: 'fsync is off: a power cut loses what was answered with 200', fix: 'alter system set fsync = on; select pg_reload_conf()' },
  ]
}

/** The difference, less half of the time the question took. */
async function checkClock(sql: Sql): Promise<Check> {
  const asked = Date.now()
  const [row] = await sql<{ at: number }[]>`select extract(epoch from clock_timestamp())::float8 * 1000 as at`
  const difference = (row?.at ?? 0) - (asked + Date.now()) / 2
  if (Math.abs(difference) < CLOCK_MS) return { name: 'clocks', result: 'ok', told: `the database differs by ${duration(Math.abs(difference))}` }
  return { name: 'clocks', result: 'warning', told: `the database differs by ${duration(difference)}`, fix: 'let both machines follow one time server' }
}

async function checkSchema(sql: Sql): Promise<Check[]> {
  const missing = await missingMigrations(sql)
  if (missing.length > 0) return [{ name: 'schema', result: 'fail', told: `lacks ${missing.join(', ')}`, fix: 'npm run migrate' }]
  const status = await statusOf(sql)
  const stopped = status.relations.filter(({ state }) => state === 'STOPPED')
  const stuck = status.positions.filter(({ waiting_for: why }) => why !== null)
  const waiting = status.rejected_waiting.count
  return [
    { name: 'schema', result: 'ok', told: 'complete' },
    status.default_partition_empty
      ? { name: 'partitions', result: 'ok', told: `${status.partitions_ahead} ahead` }
      : { name: 'partitions', result: 'warning', told: 'producer_log_default holds rows', fix: "psql -c 'select auditlog.add_partitions()'" },
    status.relays.some(({ lanes }) => lanes > 0)
      ? { name: 'relays', result: 'ok', told: `${status.relays.length} with ${status.relays.reduce((sum, { lanes }) => sum + lanes, 0)} lanes` }
      : { name: 'relays', result: 'warning', told: 'no relay holds a lane: nothing is published', fix: 'deltapost serve relay' },
    stopped.length === 0
      ? { name: 'relations', result: 'ok', told: `${status.relations.length}, none stopped` }
      : {
          name: 'relations', result: 'fail', told: stopped.map(({ source, stop_reason }) => `${source} is stopped: ${stop_reason ?? 'no reason'}`).join('; '),
          fix: `mend what the reason names; it goes on by itself, or at once by ${stopped.map(({ source }) => `deltapost resume ${source}`).join('; ')}`,
        },
    stuck.length === 0
      ? { name: 'consumers', result: 'ok', told: `${status.positions.length} partitions read, none waits` }
      : { name: 'consumers', result: 'fail', told: stuck.map(({ waiting_for: why }) => why).join('; '), fix: 'mend the target as deltapost event show SEQ_ID explains; the partition goes on by itself' },
    waiting === 0
      ? { name: 'rejected', result: 'ok', told: 'none waits' }
      : { name: 'rejected', result: 'warning', told: `${waiting} posts wait for a person`, fix: 'deltapost rejected list' },
  ]
}

/** What of migrations/ did not run here. The table has one of two names: see services/jobs/migrate.ts. */
async function missingMigrations(sql: Sql): Promise<string[]> {
  const names = (await readdir(MIGRATIONS)).filter((name) => name.endsWith('.sql') && /^\d/.test(name)).map((name) => name.slice(0, -4)).sort()
  const ran = new Set<string>()
  for (const table of ['deltapost_migrations', 'pgmigrations']) {
    const [found] = await sql<{ there: boolean }[]>`select to_regclass(${`public.${table}`}) is not null as there`
    if (found?.there !== true) continue
    for (const { name } of await sql<{ name: string }[]>`select name from public.${sql(table)}`) ran.add(name)
  }
  return names.filter((name) => !ran.has(name))
}
