import { type Command, InvalidArgumentError } from 'commander'

import { readConfig } from '../../services/runtime/config.ts'
import { openLog } from '../../services/runtime/log.ts'
import { withDatabase } from './database.ts'
import { environmentOfRunning, withUnused } from './environment.ts'
import { say } from './print.ts'

export function addLanes(program: Command): void {
  program.command('lanes')
    .description('change the number of lanes, a constant of the database, while everything runs')
    .argument('<number>', '1 to 9999', laneCount)
    .option('--within <seconds>', 'how long to wait until few changes wait', (text: string) => laneCount(text), 60)
    .addHelpText('after', `
Senders wait for about a second, relays claim their lanes anew. At most 100,000 changes may wait to be published.

Example:
  deltapost lanes 128`)
    .action(async (lanes: number, { within }: { within: number }) => {
      const config = readConfig(withUnused(environmentOfRunning(), ['KAFKA_BROKERS']))
      await withDatabase(async (sql) => sql`select 1`, config.databaseUrl)
      const { changeLanes } = await import('../../services/jobs/lanes.ts')
      const log = openLog('cli', config.logLevel === 'debug' ? 'debug' : 'warn')
      const was = await changeLanes({ databaseUrl: config.databaseUrl, lanes, within: within * 1_000, log })
      say(was === lanes ? `there are ${lanes} lanes` : `${was} lanes became ${lanes}`)
    })
}

function laneCount(text: string): number {
  if (!/^[1-9]\d{0,3}$/.test(text)) throw new InvalidArgumentError('a whole number from 1 to 9999 is expected')
  return Number(text)
}
