import { Argument, type Command } from 'commander'

import { setPolicy } from '../../outbox/action.ts'
import { actorOf } from './actor.ts'
import { say } from './print.ts'
import { knownRelation } from './resume.ts'
import { withSides } from './sides.ts'
import { type TableName, tableName } from './table-name.ts'

export function addPolicy(schema: Command): void {
  schema.command('policy')
    .description('what becomes of changes that the target refuses')
    .argument('<schema.table>', 'the table as the source names it', tableName)
    .addArgument(new Argument('<policy>', 'park: tried again, then given up, until somebody mends it; skip: given up at once').choices(['park', 'skip']))
    .option('--as <name>', 'who does it, for the audit')
    .addHelpText('after', `
Both keep the change's bytes: deltapost parked list --status SKIPPED. Changes that were refused before stay as they are.

Example:
  deltapost schema policy guildhall.user_rating skip`)
    .action(async (name: TableName, policy: 'park' | 'skip', { as }: { as?: string }) => {
      const changed = await withSides(async ({ target }) => {
        const relation = await knownRelation(target, name)
        return target.run((sql) => setPolicy(sql, actorOf(as), relation, policy))
      })
      say(`refused changes of ${name.schema}.${name.table} are ${policy === 'park' ? 'parked' : 'skipped'}${changed ? '' : ', as before'}`)
    })
}
