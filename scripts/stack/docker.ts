import { createHash, randomBytes } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { ContainerRuntimeClient, StartedTestContainer } from 'testcontainers'

import { KAFKA_HEAP, KAFKA_SETTINGS } from './embedded-kafka.ts'
import { POSTGRES_SETTINGS } from './embedded-postgres.ts'
import { freePorts } from './free-port.ts'
import { KAFKA_VERSION } from './kafka-jars.ts'
import type { Servers, StackOptions, Way } from './stack.ts'

const PROBE_SECONDS = 10
const STOP_MS = 10_000

/** PostgreSQL 18 and Apache Kafka in containers. With `keep` their data lie in named volumes, else they end with them. */
export const dockerWay: Way = {
  name: 'docker',
  missing: async () => {
    const engine = await reachEngine()
    return typeof engine === 'string' ? engine : undefined
  },
  start: startContainers,
}

/** testcontainers' own probe, since a client on PATH is no proof of an engine. Loaded late: it takes half a second. */
async function reachEngine(): Promise<ContainerRuntimeClient | string> {
  const { getContainerRuntimeClient } = await import('testcontainers')
  let timer: NodeJS.Timeout | undefined
  const silence = new Promise<string>((resolve) => {
    timer = setTimeout(() => resolve(`no engine answers in ${PROBE_SECONDS} s`), PROBE_SECONDS * 1000)
  })
  const answer = getContainerRuntimeClient().catch((error: unknown) => `no engine answers (${String(error)})`)
  return Promise.race([answer, silence]).finally(() => clearTimeout(timer))
}

async function startContainers(options: StackOptions): Promise<Servers> {
  const folder = join(options.directory, 'docker')
  if (options.fresh === true) await removeKept(folder)
  const secret = secretIn(folder)
  const started = await Promise.allSettled([startPostgres(options, secret), startKafka(options, secret)])
  const [postgres, kafka] = started
  const stop = async (): Promise<void> => {
    await Promise.all(started.map(async (one) => (one.status === 'fulfilled' ? one.value.container.stop({ timeout: STOP_MS }) : undefined)))
    if (options.keep !== true) rmSync(folder, { recursive: true, force: true })
  }
  if (postgres.status === 'rejected' || kafka.status === 'rejected') {
    await stop()
    throw started.find((one) => one.status === 'rejected')?.reason
  }
  return { databaseUrl: postgres.value.address, kafkaBrokers: kafka.value.address, stop }
}

/** The database's password, from which the volumes' names follow: a deleted folder means new volumes, not a locked one. */
function secretIn(folder: string): string {
  const file = join(folder, 'secret')
  if (existsSync(file)) return readFileSync(file, 'utf8').trim()
  mkdirSync(folder, { recursive: true })
  const secret = randomBytes(12).toString('hex')
  writeFileSync(file, `${secret}\n`, { mode: 0o600 })
  return secret
}

async function removeKept(folder: string): Promise<void> {
  const engine = await reachEngine()
  if (typeof engine === 'string' || !existsSync(join(folder, 'secret'))) return
  const wanted = ['postgres', 'kafka'].map((name) => volumeOf(secretIn(folder), name))
  const { Volumes } = await engine.container.dockerode.listVolumes()
  const there = Volumes.filter(({ Name }) => wanted.includes(Name))
  for (const { Name } of there) await engine.container.dockerode.getVolume(Name).remove()
  rmSync(folder, { recursive: true })
}

function volumeOf(secret: string, name: string): string {
  return `deltapost-${createHash('sha256').update(secret).digest('hex').slice(0, 12)}-${name}`
}

type Started = { container: StartedTestContainer; address: string }

async function startPostgres(options: StackOptions, secret: string): Promise<Started> {
  const { GenericContainer, Wait } = await import('testcontainers')
  const [port = 0] = options.postgresPort === undefined ? await freePorts(1) : [options.postgresPort]
  const settings = Object.entries({ ...POSTGRES_SETTINGS, ...options.postgresSettings }).flatMap(([name, value]) => ['-c', `${name}=${value}`])
  const container = new GenericContainer('postgres:18')
    .withEnvironment({ POSTGRES_PASSWORD: secret, POSTGRES_DB: 'deltapost', POSTGRES_INITDB_ARGS: '--encoding=UTF8 --locale=C' })
    .withCommand(['postgres', ...settings])
    .withExposedPorts({ container: 5432, host: port })
    // A network connection is refused by the server that runs the init files, and taken by the one that stays.
    .withHealthCheck({ test: ['CMD-SHELL', 'pg_isready -h 127.0.0.1 -U postgres'], interval: 250, timeout: 2000, retries: 240 })
    .withWaitStrategy(Wait.forHealthCheck())
  if (options.keep === true) {
    container.withBindMounts([{ source: volumeOf(secret, 'postgres'), target: '/var/lib/postgresql' }])
  }
  const started = await container.start()
  return { container: started, address: `postgres://postgres:${secret}@${started.getHost()}:${port}/deltapost` }
}

async function startKafka(options: StackOptions, secret: string): Promise<Started> {
  const { GenericContainer, Wait } = await import('testcontainers')
  const [port = 0] = options.kafkaPort === undefined ? await freePorts(1) : [options.kafkaPort]
  const host = process.env['TESTCONTAINERS_HOST_OVERRIDE'] ?? 'localhost'
  const settings = {
    ...KAFKA_SETTINGS,
    'controller.quorum.voters': '1@localhost:9093',
    listeners: 'PLAINTEXT://:9092,CONTROLLER://:9093',
    'advertised.listeners': `PLAINTEXT://${host}:${port}`,
    'log.dirs': '/var/lib/kafka/data',
  }
  const environment = Object.fromEntries(
    Object.entries(settings).map(([name, value]) => [`KAFKA_${name.toUpperCase().replaceAll('.', '_')}`, value]),
  )
  const told: string[] = []
  const container = new GenericContainer(`apache/kafka:${KAFKA_VERSION}`)
    .withEnvironment({ ...environment, KAFKA_HEAP_OPTS: KAFKA_HEAP.join(' '), KAFKA_JVM_PERFORMANCE_OPTS: '-XX:+UseSerialGC' })
    .withLogConsumer((log) => void log.on('data', (line: Buffer) => told.push(line.toString('utf8'))))
    .withExposedPorts({ container: 9092, host: port })
    .withWaitStrategy(Wait.forLogMessage(/Kafka Server started/))
  if (options.keep === true) {
    container.withBindMounts([{ source: volumeOf(secret, 'kafka'), target: '/var/lib/kafka/data' }])
  }
  const started = await container.start().catch((cause: unknown) => {
    const message = `the Kafka container does not start: ${String(cause)}; its last words: ${told.slice(-5).join('').trim()}`
    throw new Error(message, { cause })
  })
  return { container: started, address: `${host}:${port}` }
}
