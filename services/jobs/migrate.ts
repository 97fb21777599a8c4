import { readdir } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { runner } from 'node-pg-migrate'
import postgres from 'postgres'
import { DeltapostError } from '../../outbox/errors.ts'
import { keysOf, offerKeys } from '../../outbox/name-key.ts'
import { becomeSecond, comparePair, standingOf } from '../../outbox/receipt.ts'
import { isEnvironment, openSlot, sqlstateOf } from '../runtime/slot.ts'

const FOLDER = join(import.meta.dirname, '..', '..', 'migrations')

// The command `node-pg-migrate up` reads no settings without a further package, so its own name is ours, and both can be
// used on one database. A source database may belong to an application that keeps its migrations under that name; there
// ours go under another one.
const TABLE = 'pgmigrations'
const TABLE_BESIDE_ANOTHER = 'deltapost_migrations'

/**
 * Brings a database to this version's schema (`up`), or takes the last `count` migrations back (`down`, 1 unless given).
 *
 * All in one transaction. Two at once wait for each other, and the second finds nothing to do. Returns the names of the
 * migrations that ran. `folder` is another set of migrations, for tests. Throws EARLIER_BUILD where the database was made by
 * migrations of the same names and another text, and MIGRATION_FAILED.
 */
export async function migrate(
  databaseUrl: string,
  options: { direction?: 'up' | 'down'; count?: number; folder?: string; log: (line: string) => void },
): Promise<string[]> {
  const { direction = 'up', count, folder = FOLDER, log } = options
  const { table, before } = await tableFor(databaseUrl, folder)
  let current: string | undefined
  const ran = await runner({
    databaseUrl,
    dir: folder,
    migrationsTable: table,
    migrationsSchema: 'public',
    direction,
    ...(count === undefined ? {} : { count }),
    checkOrder: true,
    singleTransaction: true,
    advisoryLockMode: 'wait',
    verbose: false,
    // What fails is thrown too; the line of it has the whole text of the migration.
    logger: { debug: () => {}, info: (line: string) => { current = /^### MIGRATION (\S+) /.exec(line)?.[1] ?? current }, warn: log, error: () => {} },
  }).catch((error: unknown) => {
    throw failureOf(error, current, before)
  })
  const names = ran.map(({ name }) => name)
  for (const name of names) log(`migrated ${direction}: ${name}`)
  return names
}

/**
 * Makes the database of `targetUrl` the second of two, after both were migrated: a fresh one gets an origin of its own,
 * outcomes leave receipts there, and keys that the first knows are known there before the first change is applied. Where
 * both addresses are of one database, nothing is done. Throws ORIGIN_TAKEN.
 */
export async function pairDatabases(firstUrl: string, targetUrl: string, log: (line: string) => void): Promise<void> {
  const first = openSlot({ url: firstUrl, name: 'migrate' })
  // Receipts of all that was applied before are written in one statement.
  const target = openSlot({ url: targetUrl, name: 'migrate', deadline: 600_000, lockTimeout: 30_000 })
  try {
    const here = await first.run(standingOf)
    const there = await target.run(standingOf)
    if (there.identity === here.identity) {
      log('TARGET_DATABASE_URL and DATABASE_URL are one database: there is no second')
      return
    }
    const origin = await target.run((sql) => becomeSecond(sql, here.origin))
    comparePair(here, await target.run(standingOf))
    const keys = await first.run(keysOf)
    const named = await target.run((sql) => offerKeys(sql, keys))
    if (named > 0) log(`two databases: the keys of ${named} tables are known to the second`)
    if (origin !== there.origin || !there.keepsReceipts) log(`two databases: origin ${here.origin} takes changes in, origin ${origin} applies them and keeps receipts`)
  } finally {
    await Promise.all([first.close(), target.close()])
  }
}

const FRESH = 'npm run up -- --fresh starts anew and deletes what the database holds; or restore a backup of a database of this build'

/** The error in words for an operator. `current` is the migration that ran, `before` how many had run in earlier calls. */
function failureOf(error: unknown, current: string | undefined, before: number): unknown {
  if (!(error instanceof Error) || isEnvironment(error)) return error
  const order = /^Not run migration (\S+) is preceding already run migration/.exec(error.message)
  if (order !== null) return new DeltapostError('EARLIER_BUILD', `the database was made by an earlier build, which had no migration ${order[1]}`, FRESH, { cause: error })
  const state = sqlstateOf(error)
  if (state === undefined || current === undefined) return error
  const why = `${state}: ${error.message}`
  // Class 42 without the missing right: what the migration builds on is not as the ones before it would have left it.
  if (before > 0 && state.startsWith('42') && state !== '42501') {
    return new DeltapostError('EARLIER_BUILD', `the database was made by an earlier build: the migration ${current} does not fit what it has (${why})`, FRESH, { cause: error })
  }
  const remedy = state === '42501' ? 'give the account of DATABASE_URL the right that is named' : 'mend what is named in the database, then npm run migrate; nothing of the migration was kept'
  return new DeltapostError('MIGRATION_FAILED', `the migration ${current} failed (${why})`, remedy, { cause: error })
}

/** Where the names of migrations are kept, and how many of ours are there: ours unless somebody else's migrations are kept there: some names, and our first not among them. */
async function tableFor(databaseUrl: string, folder: string): Promise<{ table: string; before: number }> {
  const first = (await readdir(folder)).filter((name) => name.endsWith('.sql')).sort()[0] ?? ''
  const sql = postgres(databaseUrl, { max: 1, onnotice: () => {} })
  try {
    const [found] = await sql<{ table: string | null }[]>`select to_regclass(${`public.${TABLE}`})::text as table`
    if (found?.table == null) return { table: TABLE, before: 0 }
    const [kept] = await sql<{ count: number; others: boolean }[]>`
      select count(*)::integer as count, count(*) > 0 and not coalesce(bool_or(name = ${basename(first, '.sql')}), false) as others
      from ${sql(`public.${TABLE}`)}`
    if (kept?.others !== true) return { table: TABLE, before: kept?.count ?? 0 }
    const [beside] = await sql<{ table: string | null }[]>`select to_regclass(${`public.${TABLE_BESIDE_ANOTHER}`})::text as table`
    return { table: TABLE_BESIDE_ANOTHER, before: beside?.table == null ? 0 : (await sql`select from ${sql(`public.${TABLE_BESIDE_ANOTHER}`)}`).length }
  } finally {
    await sql.end({ timeout: 5 })
  }
}
