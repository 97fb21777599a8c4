import { readdir } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { runner } from 'node-pg-migrate'
import postgres from 'postgres'
import { becomeSecond, comparePair, standingOf } from '../../outbox/receipt.ts'
import { openSlot } from '../runtime/slot.ts'

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
 * migrations that ran. `folder` is another set of migrations, for tests.
 */
export async function migrate(
  databaseUrl: string,
  options: { direction?: 'up' | 'down'; count?: number; folder?: string; log: (line: string) => void },
): Promise<string[]> {
  const { direction = 'up', count, folder = FOLDER, log } = options
  const ran = await runner({
    databaseUrl,
    dir: folder,
    migrationsTable: await tableFor(databaseUrl, folder),
    migrationsSchema: 'public',
    direction,
    ...(count === undefined ? {} : { count }),
    checkOrder: true,
    advisoryLockMode: 'wait',
    verbose: false,
    logger: { debug: () => {}, info: () => {}, warn: log, error: log },
  })
  const names = ran.map(({ name }) => name)
  for (const name of names) log(`migrated ${direction}: ${name}`)
  return names
}

/**
 * Makes the database of `targetUrl` the second of two, after both were migrated: a fresh one gets an origin of its own,
 * and outcomes leave receipts there. Where both addresses are of one database, nothing is done. Throws ORIGIN_TAKEN.
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
    if (origin !== there.origin || !there.keepsReceipts) log(`two databases: origin ${here.origin} takes changes in, origin ${origin} applies them and keeps receipts`)
  } finally {
    await Promise.all([first.close(), target.close()])
  }
}

/** Ours unless somebody else's migrations are kept there: some names, and our first not among them. */
async function tableFor(databaseUrl: string, folder: string): Promise<string> {
  const first = (await readdir(folder)).filter((name) => name.endsWith('.sql')).sort()[0] ?? ''
  const sql = postgres(databaseUrl, { max: 1, onnotice: () => {} })
  try {
    const [found] = await sql<{ table: string | null }[]>`select to_regclass(${`public.${TABLE}`})::text as table`
    if (found?.table == null) return TABLE
    const [kept] = await sql<{ others: boolean }[]>`
      select count(*) > 0 and not coalesce(bool_or(name = ${basename(first, '.sql')}), false) as others
      from ${sql(`public.${TABLE}`)}`
    return kept?.others === true ? TABLE_BESIDE_ANOTHER : TABLE
  } finally {
    await sql.end({ timeout: 5 })
  }
}
