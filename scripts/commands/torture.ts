import { join, relative } from 'node:path'
import { type Command, Option } from 'commander'

import { inClone } from './clone.ts'
import { STATE_FOLDER } from './environment.ts'
import { wholeNumber } from './migrate.ts'

export type TortureOptions = {
  seed?: number
  minutes: number
  events: number
  rate: number
  sessions: number
  brokers: number
  faults?: string
  workloads?: string
  twoDatabases: boolean
  plan: string
  replay?: string
  json?: string
  mutants?: string | true
  steps: number
  keep: string
}

export function addTorture(program: Command): void {
  program.command('torture')
    .description('breaks every part under load, on servers of its own, and compares every change that was posted with what arrived')
    .option('--seed <n>', 'all that chance decides; printed where it is not given', wholeNumber)
    .option('--minutes <n>', 'how long changes are posted', wholeNumber, 5)
    .option('--events <n>', 'changes after which posting ends, if that is earlier', wholeNumber, 1_000_000)
    .option('--rate <n>', 'changes a second, at most', wholeNumber, 600)
    .option('--sessions <n>', 'sessions that post at the same time', wholeNumber, 24)
    .addOption(new Option('--brokers <n>', 'Kafka nodes; with three, replication 3 and min.insync.replicas 2').choices(['1', '3']).default(1).argParser(Number))
    .option('--faults <names>', 'which faults, separated by commas; "none" for none')
    .option('--workloads <names>', 'which workloads, separated by commas')
    .option('--two-databases', 'receive in one database and apply in another', false)
    .option('--plan <file>', 'where the schedule is written before it runs', relative('.', join(STATE_FOLDER, 'torture-plan.json')))
    .option('--replay <file>', 'runs a schedule that an earlier run wrote')
    .option('--steps <rounds>', 'kills a role at each labelled step in turn, so often, and ends then; each of --faults comes once in between', wholeNumber, 0)
    .option('--mutants [names]', 'plants known bugs, one after the other, and says which oracle saw each')
    .option('--json <file>', 'writes the report there')
    .option('--keep <folder>', 'where ledger and logs are kept', relative('.', join(STATE_FOLDER, 'torture')))
    .addHelpText('after', `
Two listeners, two relays and two consumers run as processes, each behind proxies of its own, on a real PostgreSQL and a
real Kafka that this command starts. What was posted is written to a ledger on disk before and after each answer.

Exits with 3 where an oracle is red, a labelled step was never passed, or a planted bug was not seen.

Examples:
  npm run torture -- --minutes 10
  npm run torture -- --seed 7 --faults kill-relay,kill-consumer,stall-consumer-kafka
  npm run torture -- --replay .deltapost/torture-plan.json
  npm run torture -- --steps 2
  npm run torture -- --mutants
  npm run torture -- --mutants no-tombstone,ack-before-broker`)
    .action(async (options: TortureOptions) => {
      const { torture } = await inClone('torture', () => import('../torture/main.ts'))
      process.exitCode = await torture(options)
    })
}
