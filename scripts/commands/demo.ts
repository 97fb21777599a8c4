import { type Command } from 'commander'

import { inClone } from './clone.ts'
import { wholeNumber } from './migrate.ts'

export type DemoOptions = { events: number; rate: number; seed?: number; twoDatabases?: true }

export function addDemo(program: Command): void {
  program.command('demo')
    .description('the whole way on servers of its own: posts changes, waits, compares, ends')
    .option('--events <n>', 'how many changes are generated', wholeNumber, 5_000)
    .option('--rate <n>', 'how many of them a second', wholeNumber, 300)
    .option('--seed <n>', 'the same seed makes the same changes (another each time)', wholeNumber)
    .option('--two-databases', 'apply in a second database, with a relay of its own')
    .addHelpText('after', `
Exits with 0 only when every count adds up and the target's rows are those of the model.

Examples:
  npm run demo
  npm run demo -- --two-databases
  npm run demo -- --events 50000 --rate 1000 --seed 7`)
    .action(async (options: DemoOptions) => {
      const { demo } = await inClone('demo', () => import('../demo/main.ts'))
      process.exitCode = await demo(options)
    })
}
