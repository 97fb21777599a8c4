import { type Command, InvalidArgumentError } from 'commander'

import { relations } from '../../outbox/status.ts'
import { databaseAddress, withDatabase } from './database.ts'
import { say, sayJson, sayTable } from './print.ts'

export function addSchema(program: Command): void {
  const schema = program.command('schema').description('what is known of the tables')
  schema.command('list')
    .description('every relation, its key and where it is known from')
    .option('--json', 'one JSON document')
    .addHelpText('after', `
Example:
  deltapost schema list`)
    .action(async ({ json }: { json?: true }) => {
      const known = await withDatabase(async (sql) => relations(sql))
      if (json === true) sayJson(known)
      else sayTable(known.map((relation) => ({ ...relation, key_columns: relation.key_columns?.join(', ') })), 'none was met yet')
    })
  schema.command('key')
    .description('declare the key of a table that is known only from its payloads')
    .argument('<schema.table>', 'the table as the source names it', tableName)
    .argument('<column...>', 'its key columns, in the order of the key')
    .addHelpText('after', `
Stops the relation, makes the key, and resumes; its changes wait meanwhile.

Examples:
  deltapost schema key guildhall.country country_code
  deltapost schema key guildhall.user_rating user_id rating_type`)
    .action(async (name: TableName, columns: string[]) => {
      const { declareKey } = await import('../../services/jobs/declare-key.ts')
      const url = databaseAddress()
      await withDatabase(async (sql) => sql`select 1`, url)
      await declareKey(url, { ...name, columns, log: say })
    })
}

type TableName = { schema: string; table: string }

function tableName(text: string): TableName {
  const at = text.indexOf('.')
  if (at < 1 || at === text.length - 1) throw new InvalidArgumentError('schema and table are expected, with a dot between them')
  return { schema: text.slice(0, at), table: text.slice(at + 1) }
}
