import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Command } from 'commander'

import { processEnvironment } from '../services/runtime/config.ts'
import { addBench } from './commands/bench.ts'
import { addDemo } from './commands/demo.ts'
import { addDoctor } from './commands/doctor.ts'
import { addEvent } from './commands/event.ts'
import { describeFailure, exitCodeOf } from './commands/failure.ts'
import { addLanes } from './commands/lanes.ts'
import { addMigrate } from './commands/migrate.ts'
import { addNotice } from './commands/notice.ts'
import { addParked } from './commands/parked.ts'
import { addOrigin } from './commands/origin.ts'
import { addPrune } from './commands/prune.ts'
import { addRejected } from './commands/rejected.ts'
import { addResume, addStop } from './commands/resume.ts'
import { addSchema } from './commands/schema.ts'
import { addServe } from './commands/serve.ts'
import { addStatus } from './commands/status.ts'
import { addTorture } from './commands/torture.ts'
import { addUp } from './commands/up.ts'

const AFTER = `
In a clone: npm run cli -- COMMAND, and npm run up, demo, bench or migrate.
Without DATABASE_URL, commands that look at a running system use the up that runs in this folder.

Exit codes: 0 ok, 1 failed, 2 usage or configuration, 3 a check failed (doctor) or something is left to do (retry, resume), 4 cannot connect.

Examples:
  deltapost up
  deltapost status
  deltapost event show 4711`

function version(): string {
  const text = readFileSync(join(import.meta.dirname, '..', 'package.json'), 'utf8')
  return (JSON.parse(text) as { version: string }).version
}

function commandLine(): Command {
  const program = new Command('deltapost')
    .description('Moves row changes out of a legacy database into Postgres through Kafka.')
    .version(version())
    .helpCommand(false)
    .exitOverride()
    .configureOutput({ outputError: (text, write) => write(`${text.replace(/^error: /, 'Error: ').trimEnd()}\n`) })
    .addHelpText('after', AFTER)
  for (const add of [addUp, addDemo, addBench, addTorture, addServe, addMigrate, addStatus, addEvent, addSchema, addRejected, addParked, addResume, addStop, addNotice, addPrune, addLanes, addOrigin, addDoctor]) add(program)
  return program
}

// A client library may hold a timer or a socket after its end; the command is over all the same.
const LINGER_MS = 100

// Whoever reads the output may have seen enough (a pipe to head).
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE') process.exit()
  throw error
})

const program = commandLine()
try {
  await program.parseAsync()
} catch (error) {
  process.exitCode = exitCodeOf(error)
  // Commander has already said what is wrong with the words; all that lacks is where to look.
  const usage = error instanceof Error && 'code' in error && typeof error.code === 'string' && error.code.startsWith('commander.')
  if (!usage) process.stderr.write(describeFailure(error, processEnvironment()['LOG_LEVEL'] === 'debug'))
  else if (process.exitCode === 2) process.stderr.write('Try: deltapost --help\n')
}
setTimeout(() => process.exit(), LINGER_MS).unref()
