import { Argument, type Command, InvalidArgumentError } from 'commander'

import { withDatabase } from './database.ts'
import { say } from './print.ts'
import { bothAddresses } from './target.ts'

export function addMigrate(program: Command): void {
  program.command('migrate')
    .description("bring the database's schema to this version, or take migrations back")
    .addArgument(new Argument('[direction]', 'which way').choices(['up', 'down']).default('up'))
    .option('--count <n>', 'how many migrations (all of them up, one down)', wholeNumber)
    .addHelpText('after', `
Two at once wait for each other. Going down deletes what the tables hold.
With TARGET_DATABASE_URL both databases are migrated, and the second gets an origin of its own.

Examples:
  deltapost migrate
  deltapost migrate down --count 1`)
    .action(async (direction: 'up' | 'down', { count }: { count?: number }) => {
      const { first, target } = bothAddresses()
      const { migrate, pairDatabases } = await import('../../services/jobs/migrate.ts')
      for (const url of target === undefined ? [first] : [first, target]) {
        // A server that does not answer is told here, with its address and exit code 4.
        await withDatabase(async (sql) => sql`select 1`, url)
        if (target !== undefined) say(url === first ? 'the first database' : 'the second database')
        const ran = await migrate(url, { direction, ...(count === undefined ? {} : { count }), log: say })
        if (ran.length === 0) say('nothing to migrate')
      }
      if (target !== undefined && direction === 'up') await pairDatabases(first, target, say)
    })
}

export function wholeNumber(text: string): number {
  if (!/^[1-9]\d{0,8}$/.test(text)) throw new InvalidArgumentError('a whole number from 1 is expected')
  return Number(text)
}
