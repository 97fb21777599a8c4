import { DeltapostError } from '../outbox/errors.ts'
import { migrate } from '../services/jobs/migrate.ts'
import { type Config, processEnvironment, readConfig } from '../services/runtime/config.ts'
import { type Environment, removeRunningStack, runningStack, STATE_FOLDER, withUnused, writeRunningStack } from './commands/environment.ts'
import { say } from './commands/print.ts'
import { keepRunning, readable, type RoleProcess } from './commands/role-process.ts'
import { type Role, ROLES } from './commands/serve.ts'
import type { UpOptions } from './commands/up.ts'
import { interruption } from './interruption.ts'
import { isFree } from './stack/free-port.ts'
import { type Stack, startStack } from './stack/stack.ts'

/** Runs the servers and the three roles until Ctrl-C; gives the exit code. Nothing is left running. */
export async function up(options: UpOptions): Promise<number> {
  const begun = performance.now()
  const environment = processEnvironment()
  const config = readConfig(withUnused(environment, ['DATABASE_URL', 'KAFKA_BROKERS']))
  const other = runningStack()
  if (other !== undefined) {
    throw new DeltapostError('STACK_IN_USE', `npm run up runs here already (process ${other.pid}), with its listener at ${other.listener}`, 'end it with Ctrl-C first, or use it')
  }
  if (config.port !== 0 && !(await isFree(config.port))) {
    throw new DeltapostError('PORT_TAKEN', `port ${config.port} of the listener is taken`, `PORT=${config.port + 1} npm run up, or stop what listens there`)
  }
  const signal = interruption()
  const stack = await startStack({
    directory: STATE_FOLDER,
    keep: true,
    ...(options.fresh === true ? { fresh: true } : {}),
    ...(options.postgresPort === undefined ? {} : { postgresPort: options.postgresPort }),
    ...(options.kafkaPort === undefined ? {} : { kafkaPort: options.kafkaPort }),
    environment,
    log: say,
  })
  try {
    if (options.fresh === true && stack.way === 'environment') say('--fresh empties nothing: these servers are not ours')
    await migrate(stack.databaseUrl, { log: say })
    return await runRoles(stack, environment, config, signal, begun)
  } finally {
    removeRunningStack()
    await stack.stop()
    say('stopped; nothing is left running')
  }
}

/** The roles' environment: ours, with the servers' addresses in place of any other way to give them. */
export function environmentOfRoles(environment: Environment, stack: Stack): Environment {
  return { ...environment, DATABASE_URL: stack.databaseUrl, DATABASE_URL_FILE: '', KAFKA_BROKERS: stack.kafkaBrokers, KAFKA_BROKERS_FILE: '' }
}

async function runRoles(stack: Stack, environment: Environment, config: Config, asked: AbortSignal, begun: number): Promise<number> {
  const failed = new AbortController()
  const signal = AbortSignal.any([asked, failed.signal])
  const ready = new Map<Role, RoleProcess>()
  let told = false
  const onReady = (running: RoleProcess, url: string | null): void => {
    ready.set(running.role, running)
    if (url !== null) listener = url
    if (told || ready.size < ROLES.length) return
    told = true
    writeRunningStack({ listener, database: stack.databaseUrl, target: stack.databaseUrl, kafka: stack.kafkaBrokers, pid: process.pid })
    introduce(stack, listener, config, [...ready.values()], performance.now() - begun)
  }
  let listener = ''
  const codes = await Promise.all(ROLES.map(async (role) => {
    const onLine = (line: string): void => say(`${role.padEnd(8)} | ${readable(line)}`)
    try {
      return await keepRunning(role, { environment: environmentOfRoles(environment, stack), signal, onLine, onReady })
    } finally {
      failed.abort()
    }
  }))
  return Math.max(...codes)
}

function introduce(stack: Stack, listener: string, config: Config, roles: readonly RoleProcess[], ms: number): void {
  const time = new Date().toISOString().replace('Z', '000Z')
  const post = `{"TIME": "${time}", "SCHEMANAME": "testdb", "TABLENAME": "test", "OPERATION": "INSERT", "DATA": {"id": "16", "name": "Ada"}}`
  say(`
ready in ${(ms / 1_000).toFixed(1)} s (servers: ${stack.way})
  listener  ${listener}/events
  database  ${stack.databaseUrl}
  kafka     ${stack.kafkaBrokers}, topic ${config.topic}
  roles     ${roles.map(({ role, pid }) => `${role} ${pid}`).join(', ')}

Post a change and see its row:
  curl -d '${post}' ${listener}/events
  psql '${stack.databaseUrl}' -c 'select * from testdb.test'
In another terminal: npm run cli -- status. Ctrl-C ends all.
`)
}
