import type { Command } from 'commander'

import { DeltapostError } from '../../outbox/errors.ts'
import { readConfig } from '../../services/runtime/config.ts'
import { openKafka } from '../../services/runtime/kafka.ts'
import { openLog } from '../../services/runtime/log.ts'
import { withDatabase } from './database.ts'
import { environmentOfRunning } from './environment.ts'
import { say, sayFields } from './print.ts'

export function addOrigin(program: Command): void {
  program.command('origin')
    .description('what makes a database one source of numbers and not another')
    .command('raise')
    .description('after the database was restored from an older backup, and before anything runs on it')
    .option('--target', 'it is the database of TARGET_DATABASE_URL that was restored')
    .option('--leave-out', 'do not apply again what was published after the backup')
    .addHelpText('after', `
New changes get a new origin and numbers above all that were handed out, so none is taken for one that the backup forgot.
Stop listener, relay and consumer first. docs/how-to/restore.md has the whole way.

Example:
  deltapost origin raise`)
    .action(async ({ target, leaveOut }: { target?: true; leaveOut?: true }) => {
      const config = readConfig(environmentOfRunning())
      if (target === true && config.targetDatabaseUrl === undefined) {
        throw new DeltapostError('NO_TARGET', 'TARGET_DATABASE_URL is not set', 'deltapost origin raise, without --target')
      }
      const [databaseUrl = config.databaseUrl, otherUrl] = target === true ? [config.targetDatabaseUrl, config.databaseUrl] : [config.databaseUrl, config.targetDatabaseUrl]
      await withDatabase(async (sql) => sql`select 1`, databaseUrl)
      const log = openLog('cli', config.logLevel === 'debug' ? 'debug' : 'warn')
      const { readTails } = await import('../../services/jobs/topic-tail.ts')
      const { raiseOrigin } = await import('../../services/jobs/origin.ts')
      const tails = await readTails(openKafka(config.kafkaBrokers, log), config.topic)
      const raised = await raiseOrigin({
        databaseUrl, otherUrl, tails, topic: config.topic, group: config.consumerGroup, leaveOut: leaveOut === true, log,
      })
      say(`origin ${raised.was} became ${raised.origin}`)
      sayFields({
        'numbers go on above': raised.nextAbove, 'settled up to': raised.settled, 'epochs raised': raised.epochs,
        'positions': leaveOut === true ? `${raised.positions} at the end of ${config.topic}` : 'as in the backup: what was published since is applied again',
      })
    })
}
