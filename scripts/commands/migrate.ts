import { Argument, type Command, InvalidArgumentError } from 'commander'

import { databaseAddress, withDatabase } from './database.ts'
import { say } from './print.ts'

export function addMigrate(program: Command): void {
  program.command('migrate')
    .description("bring the database's schema to this version, or take migrations back")
    .addArgument(new Argument('[direction]', 'which way').choices(['up', 'down']).default('up'))
    .option('--count <n>', 'how many migrations (all of them up, one down)', wholeNumber)
    .addHelpText('after', `
Two at once wait for each other. Going down deletes what the tables hold.

Examples:
  deltapost migrate
  deltapost migrate down --count 1`)
    .action(async (direction: 'up' | 'down', { count }: { count?: number }) => {
      const url = databaseAddress()
      // A server that does not answer is told here, with its address and exit code 4.
      await withDatabase(async (sql) => sql`select 1`, url)
      const { migrate } = await import('../../services/jobs/migrate.ts')
      const ran = await migrate(url, { direction, ...(count === undefined ? {} : { count }), log: say })
      if (ran.length === 0) say('nothing to migrate')
    })
}

export function wholeNumber(text: string): number {
  if (!/^[1-9]\d{0,8}$/.test(text)) throw new InvalidArgumentError('a whole number from 1 is expected')
  return Number(text)
}
