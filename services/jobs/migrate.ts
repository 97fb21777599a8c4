import { join } from 'node:path'
import { runner } from 'node-pg-migrate'
import postgres from 'postgres'

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
