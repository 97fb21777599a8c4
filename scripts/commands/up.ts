import { type Command } from 'commander'

import { inClone } from './clone.ts'
import { wholeNumber } from './migrate.ts'

export type UpOptions = { fresh?: true; twoDatabases?: true; postgresPort?: number; kafkaPort?: number }

export function addUp(program: Command): void {
  program.command('up')
    .description('PostgreSQL, Kafka and all roles in the foreground, until Ctrl-C')
    .option('--fresh', 'start empty: what an earlier run kept is deleted')
    .option('--two-databases', 'apply in a second database, with a relay of its own')
    .option('--postgres-port <port>', 'port of the database (a free one)', wholeNumber)
    .option('--kafka-port <port>', 'port of the broker (a free one)', wholeNumber)
    .addHelpText('after', `
The servers are those of DATABASE_URL and KAFKA_BROKERS where both are set, else Docker's, else embedded ones.
TARGET_DATABASE_URL counts only beside the servers of DATABASE_URL.
Their data stay in .deltapost/ between runs. The listener's port is PORT (8080).

Examples:
  npm run up
  npm run up -- --fresh
  npm run up -- --two-databases
  PORT=9000 npm run up`)
    .action(async (options: UpOptions) => {
      const { up } = await inClone('up', () => import('../up.ts'))
      process.exitCode = await up(options)
    })
}
