import type { Command } from 'commander'

import { relations } from '../../outbox/status.ts'
import { readConfig } from '../../services/runtime/config.ts'
import { openLog } from '../../services/runtime/log.ts'
import { dumpSchema } from '../schema-dump.ts'
import { withDatabase } from './database.ts'
import { environmentOfRunning, withUnused } from './environment.ts'
import { addPolicy } from './policy.ts'
import { say, sayJson, sayTable } from './print.ts'
import { type TableName, tableName } from './table-name.ts'
import { bothAddresses, secondOf } from './target.ts'

export function addSchema(program: Command): void {
  const schema = program.command('schema').description('what is known of the tables')
  schema.command('list')
    .description('every relation, its key and where it is known from')
    .option('--json', 'one JSON document')
    .addHelpText('after', `
With TARGET_DATABASE_URL they are those of the target, where changes are applied.

Example:
  deltapost schema list`)
    .action(async ({ json }: { json?: true }) => {
      const { first, target } = bothAddresses()
      const known = await withDatabase(async (sql) => relations(sql), target ?? first)
      if (json === true) sayJson(known)
      else sayTable(known.map((relation) => ({ ...relation, key_columns: relation.key_columns?.join(', ') })), 'none was met yet')
    })
  schema.command('dump')
    .description('the tables, indexes, views and functions of this service in the database, as SQL')
    .addHelpText('after', `
docs/schema.sql is this of PostgreSQL 18, for reading all migrations at once.

Example:
  deltapost schema dump > docs/schema.sql`)
    .action(async () => {
      process.stdout.write(await withDatabase(dumpSchema))
    })
  schema.command('key')
    .description('declare the key of a table that is known only from its payloads')
    .argument('<schema.table>', 'the table as the source names it', tableName)
    .argument('<column...>', 'its key columns, in the order of the key')
    .addHelpText('after', `
A table that was made from payloads is built again with the key, from the changes that were received.
A table that was there before needs a unique index on these columns.
With TARGET_DATABASE_URL the key is declared in the target, before the first change of the table is applied, and told to
the first database.

Examples:
  deltapost schema key guildhall.country country_code
  deltapost schema key guildhall.user_rating user_id rating_type`)
    .action(async (name: TableName, columns: string[]) => {
      const { declareKey, tellKey } = await import('../../services/jobs/declare-key.ts')
      const config = readConfig(withUnused(environmentOfRunning(), ['KAFKA_BROKERS']))
      const target = secondOf(config.databaseUrl, config.targetDatabaseUrl)
      for (const url of new Set([config.databaseUrl, target ?? config.databaseUrl])) await withDatabase(async (sql) => sql`select 1`, url)
      const log = openLog('cli', config.logLevel === 'debug' ? 'debug' : 'warn')
      const key = { ...name, columns, source: config.source, log }
      const replayed = await declareKey(target ?? config.databaseUrl, key)
      if (target !== undefined) await tellKey(config.databaseUrl, key)
      say(`${name.schema}.${name.table} has the key ${columns.join(', ')}${replayed === 0 ? '' : `; ${replayed} changes are on their way again`}`)
    })
  addPolicy(schema)
}
