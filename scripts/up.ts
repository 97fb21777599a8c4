import { DeltapostError } from '../outbox/errors.ts'
import { migrate, pairDatabases } from '../services/jobs/migrate.ts'
import { type Config, processEnvironment, readConfig } from '../services/runtime/config.ts'
import { type Environment, removeRunningStack, runningStack, STATE_FOLDER, withUnused, writeRunningStack } from './commands/environment.ts'
import { say } from './commands/print.ts'
import { keepRunning, readable, type RoleProcess } from './commands/role-process.ts'
import { type Role, ROLES } from './commands/serve.ts'
import type { UpOptions } from './commands/up.ts'
import { interruption } from './interruption.ts'
import { isFree } from './stack/free-port.ts'
import { secondDatabase } from './stack/second-database.ts'
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
    // An address of the environment goes with servers of the environment, and with no others.
    const given = stack.way === 'environment' ? config.targetDatabaseUrl : undefined
    const target = given ?? (options.twoDatabases === true ? await secondDatabase(stack) : stack.databaseUrl)
    if (target !== stack.databaseUrl) {
      await migrate(target, { log: say })
      await pairDatabases(stack.databaseUrl, target, say)
    }
    return await runRoles({ ...stack, target }, environment, config, signal, begun)
  } finally {
    removeRunningStack()
    await stack.stop()
    say('stopped; nothing is left running')
  }
}

type Place = Pick<Stack, 'databaseUrl' | 'kafkaBrokers' | 'way'> & { target: string }

/** A process of `up`: its name in the output, its role, and the roles' environment with the servers' addresses in it. */
export type Started = { name: string; role: Role; environment: Environment }

/** The three roles and, for a second database, its relay; addresses given in any other way do not count. */
export function startedRoles(environment: Environment, { databaseUrl, target, kafkaBrokers }: Omit<Place, 'way'>): Started[] {
  const two = target !== databaseUrl
  const both = {
    ...environment, DATABASE_URL: databaseUrl, DATABASE_URL_FILE: '', KAFKA_BROKERS: kafkaBrokers, KAFKA_BROKERS_FILE: '',
    TARGET_DATABASE_URL: two ? target : '', TARGET_DATABASE_URL_FILE: '',
  }
  const roles = ROLES.map((role): Started => ({ name: role, role, environment: both }))
  return two ? [...roles, { name: 'relay 2', role: 'relay', environment: { ...both, DATABASE_URL: target } }] : roles
}

async function runRoles(place: Place, environment: Environment, config: Config, asked: AbortSignal, begun: number): Promise<number> {
  const failed = new AbortController()
  const signal = AbortSignal.any([asked, failed.signal])
  const starting = startedRoles(environment, place)
  const ready = new Map<string, RoleProcess>()
  let told = false
  let listener = ''
  const codes = await Promise.all(starting.map(async ({ name, role, environment: own }) => {
    const onLine = (line: string): void => say(`${name.padEnd(8)} | ${readable(line)}`)
    const onReady = (running: RoleProcess, url: string | null): void => {
      ready.set(name, running)
      if (url !== null) listener = url
      if (told || ready.size < starting.length) return
      told = true
      writeRunningStack({ listener, database: place.databaseUrl, target: place.target, kafka: place.kafkaBrokers, pid: process.pid })
      introduce(place, listener, config, ready, performance.now() - begun)
    }
    try {
      return await keepRunning(role, { environment: own, signal, onLine, onReady })
    } finally {
      failed.abort()
    }
  }))
  return Math.max(...codes)
}

function introduce(place: Place, listener: string, config: Config, roles: ReadonlyMap<string, RoleProcess>, ms: number): void {
  const time = new Date().toISOString().replace('Z', '000Z')
  const post = `{"TIME": "${time}", "SCHEMANAME": "testdb", "TABLENAME": "test", "OPERATION": "INSERT", "DATA": {"id": "16", "name": "Ada"}}`
  say(`
ready in ${(ms / 1_000).toFixed(1)} s (servers: ${place.way})
  listener  ${listener}/events
  database  ${place.databaseUrl}${place.target === place.databaseUrl ? '' : `\n  target    ${place.target}`}
  kafka     ${place.kafkaBrokers}, topic ${config.topic}
  roles     ${[...roles].map(([name, { pid }]) => `${name} ${pid}`).join(', ')}

Post a change and see its row:
  curl -d '${post}' ${listener}/events
  psql '${place.target}' -c 'select * from testdb.test'
In another terminal: npm run cli -- status. Ctrl-C ends all.
`)
}
