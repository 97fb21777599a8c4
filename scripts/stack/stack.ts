import { DeltapostError } from '../../outbox/errors.ts'
import { dockerWay } from './docker.ts'
import { embeddedWay } from './embedded.ts'
import { environmentWay } from './environment.ts'
import { ownDirectory } from './owner.ts'

export type WayName = 'environment' | 'docker' | 'embedded'

/** What a caller asks for. `directory` holds data, logs and passwords; `port`s are free ones unless given. */
export type StackOptions = {
  directory: string
  /** Start empty; what an earlier run kept is deleted. */
  fresh?: boolean
  /** The data are wanted again after `stop`. */
  keep?: boolean
  way?: WayName
  postgresPort?: number
  kafkaPort?: number
  /** Of PostgreSQL, over those of every development server; a server of the environment keeps its own. */
  postgresSettings?: Readonly<Record<string, string>>
  /** Where DATABASE_URL, KAFKA_BROKERS and DELTAPOST_STACK are looked up; the process's by default. */
  environment?: Record<string, string | undefined>
  log: (line: string) => void
}

/** Running servers. `databaseUrl` names a database `deltapost` that exists; `kafkaBrokers` is `host:port,…`. */
export type Servers = {
  databaseUrl: string
  kafkaBrokers: string
  stop: () => Promise<void>
  /** Only embedded servers can be killed and started again, on the same port and data. */
  embedded?: Record<'killPostgres' | 'startPostgres' | 'killKafka' | 'startKafka', () => Promise<void>>
}

export type Stack = Servers & { way: WayName }

/** One way to have servers: `missing` says in words what it lacks here, or nothing when `start` should work. */
export type Way = {
  name: WayName
  missing: (options: StackOptions) => Promise<string | undefined>
  start: (options: StackOptions) => Promise<Servers>
}

const WAYS: readonly Way[] = [environmentWay, dockerWay, embeddedWay]

/**
 * Starts PostgreSQL and Kafka in the first way that this machine allows: addresses from the environment, Docker, or
 * servers of our own. DELTAPOST_STACK or `way` takes one and no other.
 *
 * Says in one line which way it took, so that a run on one is never mistaken for a run on another.
 */
export async function startStack(options: StackOptions, ways: readonly Way[] = WAYS): Promise<Stack> {
  const wanted = options.way ?? wantedBy(options.environment ?? process.env)
  const lacking: string[] = []
  for (const way of ways.filter(({ name }) => wanted === undefined || name === wanted)) {
    const missing = await way.missing(options)
    if (missing !== undefined) {
      lacking.push(`${way.name}: ${missing}`)
      continue
    }
    const begun = performance.now()
    try {
      const servers = await startWay(way, options)
      options.log(`servers: ${way.name}, ready in ${((performance.now() - begun) / 1000).toFixed(1)} s`)
      return { ...servers, way: way.name }
    } catch (error) {
      // A Docker without a way to get the images is like no Docker; the other two were asked for or are the last.
      if (way.name !== 'docker' || wanted === 'docker') throw error
      lacking.push(`docker: ${error instanceof Error ? error.message : String(error)}`)
      options.log(`servers: Docker is there but could not start them (${lacking.at(-1)}), trying the next way`)
    }
  }
  throw new DeltapostError(
    'STACK_IMPOSSIBLE',
    `there is no way to run PostgreSQL and Kafka here:\n${lacking.map((line) => `  ${line}`).join('\n')}`,
    'set DATABASE_URL and KAFKA_BROKERS, or start Docker, or install Java 17 and Maven',
  )
}

async function startWay(way: Way, options: StackOptions): Promise<Servers> {
  if (way.name === 'environment') return way.start(options)
  const release = ownDirectory(options.directory)
  try {
    const servers = await way.start(options)
    return {
      ...servers,
      stop: async () => {
        await servers.stop()
        release()
      },
    }
  } catch (error) {
    release()
    throw error
  }
}

function wantedBy(environment: Record<string, string | undefined>): WayName | undefined {
  const value = environment['DELTAPOST_STACK'] ?? ''
  if (value === '') return undefined
  if (value === 'environment' || value === 'docker' || value === 'embedded') return value
  throw new DeltapostError('STACK_UNKNOWN', `DELTAPOST_STACK="${value}" names no way`, 'DELTAPOST_STACK=environment, docker or embedded')
}
