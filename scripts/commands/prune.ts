import { type Command, InvalidArgumentError } from 'commander'

import { DeltapostError } from '../../outbox/errors.ts'
import { readConfig } from '../../services/runtime/config.ts'
import { withDatabase } from './database.ts'
import { environmentOfRunning, withUnused } from './environment.ts'
import { duration, say, sayFields, sayJson } from './print.ts'

export function addPrune(program: Command): void {
  program.command('prune')
    .description('leave behind what is older than the horizon, now')
    .option('--horizon <duration>', 'instead of HORIZON, such as 30d', horizonOf)
    .option('--json', 'one JSON document')
    .addHelpText('after', `
The listener does this by itself where HORIZON is set; by default everything is kept.
A partition goes when all its changes are older; rows one by one only where changes come slowly.

Examples:
  deltapost prune
  deltapost prune --horizon 90d`)
    .action(async ({ horizon, json }: { horizon?: number; json?: true }) => {
      const config = readConfig(withUnused(environmentOfRunning(), ['KAFKA_BROKERS']))
      const behind = horizon ?? config.horizon
      if (behind === 0) throw new DeltapostError('NO_HORIZON', 'HORIZON is not set, so everything is kept', 'deltapost prune --horizon 90d, or set HORIZON')
      await withDatabase(async (sql) => sql`select 1`, config.databaseUrl)
      const { pruneNow } = await import('../../services/jobs/retention.ts')
      const reports = await pruneNow({ databaseUrl: config.databaseUrl, targetDatabaseUrl: config.targetDatabaseUrl, horizon: behind, grace: config.clockTolerance })
      if (json === true) return sayJson(reports)
      for (const { cut, partitions, busy, rows } of reports) {
        say(`received before ${cut} (${duration(behind)} and CLOCK_TOLERANCE before the oldest change on its way)`)
        sayFields({ ...rows, partitions: partitions.length === 0 ? undefined : partitions.join(', ') })
        if (busy) say('  a partition stays, because somebody read producer_log all the time: try again')
      }
    })
}

/** Milliseconds. The letters are those of the settings. */
function horizonOf(text: string): number {
  const [, number, unit] = /^([1-9]\d{0,8})(s|m|h|d)$/.exec(text) ?? []
  if (number === undefined) throw new InvalidArgumentError('a duration such as 30d is expected')
  return Number(number) * ({ s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 }[unit ?? 'd'] ?? 0)
}
