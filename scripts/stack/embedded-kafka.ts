import { execFile } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import { promisify } from 'node:util'

import { DeltapostError } from '../../outbox/errors.ts'
import { freePorts } from './free-port.ts'
import { startGuarded, type GuardedServer } from './guarded-server.ts'
import { javaProgram, kafkaJars } from './kafka-jars.ts'
import { endOrphan } from './process-table.ts'

const START_SECONDS = 60
const STARTED = 'Kafka Server started'

/** A one-node Kafka of this process. `start` after `kill` or `stop` uses the same port and data. */
export type EmbeddedKafka = {
  port: number
  brokers: string
  start: () => Promise<void>
  kill: () => Promise<void>
  stop: () => Promise<void>
}

/** Settings of every development broker, also in Docker, where they become KAFKA_* variables. */
export const KAFKA_SETTINGS = {
  'process.roles': 'broker,controller',
  'node.id': '1',
  'controller.listener.names': 'CONTROLLER',
  'inter.broker.listener.name': 'PLAINTEXT',
  'listener.security.protocol.map': 'CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT',
  // A record of 20 MB must pass, in base64 or with escapes too.
  'message.max.bytes': '33554432',
  'replica.fetch.max.bytes': '33554432',
  // Topics come into being where the code creates them, with their partitions, or not at all.
  'auto.create.topics.enable': 'false',
  // A killed broker is let back in only after its session ended. Shorter than 9 s, so that a restart is quick, but long
  // enough that a busy machine does not fence a healthy broker.
  'broker.session.timeout.ms': '4000',
  'broker.heartbeat.interval.ms': '1000',
  'group.initial.rebalance.delay.ms': '0',
  'offsets.topic.num.partitions': '4',
  'offsets.topic.replication.factor': '1',
  'transaction.state.log.num.partitions': '4',
  'transaction.state.log.replication.factor': '1',
  'transaction.state.log.min.isr': '1',
  'share.coordinator.state.topic.replication.factor': '1',
  'share.coordinator.state.topic.min.isr': '1',
}

export const KAFKA_HEAP = ['-Xms256m', '-Xmx768m']
const JVM = ['-XX:+UseSerialGC', '-Djava.awt.headless=true']
const LOGGING = [
  '-Dorg.slf4j.simpleLogger.defaultLogLevel=warn',
  // The one line that says it is ready.
  '-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info',
  '-Dorg.slf4j.simpleLogger.showDateTime=true',
  '-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd HH:mm:ss.SSS',
]

/** Starts Apache Kafka (KRaft, one node) on 127.0.0.1 with the data below `directory`, made on first use and kept. */
export async function embeddedKafka(options: {
  directory: string
  port?: number | undefined
  fresh?: boolean | undefined
  environment?: Record<string, string> | undefined
  log: (line: string) => void
}): Promise<EmbeddedKafka> {
  const [controllerPort = 0, freePort = 0] = await freePorts(2)
  const { directory, fresh, environment, log } = options
  const place = { port: options.port ?? freePort, controllerPort }
  return kafkaNode({ directory, fresh, environment, log, place, settings: { 'controller.quorum.voters': `1@127.0.0.1:${controllerPort}` }, heap: KAFKA_HEAP, cluster: newCluster() })
}

/** Where a node listens. */
export type Place = { port: number; controllerPort: number }

/** A name for a new cluster, as all nodes of it have it in their data. */
export function newCluster(): string {
  return randomBytes(16).toString('base64url')
}

/**
 * Starts one node on 127.0.0.1, of as many as the `settings` say (they go over KAFKA_SETTINGS). Resolves when it serves,
 * which takes a majority of the controllers. `cluster` is for data that are made now.
 */
export async function kafkaNode(options: {
  directory: string
  place: Place
  settings: Readonly<Record<string, string>>
  heap: readonly string[]
  cluster: string
  fresh?: boolean | undefined
  /** Of the server, besides that of this process. */
  environment?: Record<string, string> | undefined
  log: (line: string) => void
}): Promise<EmbeddedKafka> {
  const { directory, place: { port } } = options
  const jars = await kafkaJars(options.log)
  mkdirSync(directory, { recursive: true })
  const properties = join(directory, 'server.properties')
  const pidFile = join(directory, 'kafka.pid')
  const java = { program: javaProgram(), jars, directory, heap: options.heap, environment: options.environment ?? {} }

  if (existsSync(pidFile)) await endOrphan(Number(readFileSync(pidFile, 'utf8')), properties, 'SIGTERM')
  const data = join(directory, 'data')
  if (options.fresh === true) rmSync(data, { recursive: true, force: true })
  if (!existsSync(data)) await format(java, options)
  writeProperties(properties, data, options)

  let server: GuardedServer | undefined
  const start = async (): Promise<void> => {
    server = await startServer(java, properties)
    writeFileSync(pidFile, `${server.pid}\n`)
  }
  await start()
  return {
    port,
    brokers: `127.0.0.1:${port}`,
    start,
    kill: async () => server?.kill(),
    stop: async () => {
      await server?.stop()
      rmSync(pidFile, { force: true })
    },
  }
}

type Java = { program: string; jars: string; directory: string; heap: readonly string[]; environment: Record<string, string> }

function writeProperties(file: string, data: string, { place, settings }: { place: Place; settings: Readonly<Record<string, string>> }): void {
  const all = {
    ...KAFKA_SETTINGS,
    listeners: `PLAINTEXT://127.0.0.1:${place.port},CONTROLLER://127.0.0.1:${place.controllerPort}`,
    'advertised.listeners': `PLAINTEXT://127.0.0.1:${place.port}`,
    'log.dirs': data,
    ...settings,
  }
  writeFileSync(file, Object.entries(all).map(([name, value]) => `${name}=${value}\n`).join(''))
}

/** Done beside its place and renamed, so that a directory whose formatting was cut off is not taken for a good one. */
async function format(java: Java, node: { place: Place; settings: Readonly<Record<string, string>>; cluster: string }): Promise<void> {
  const partial = join(java.directory, 'data.partial')
  const properties = join(java.directory, 'format.properties')
  rmSync(partial, { recursive: true, force: true })
  writeProperties(properties, partial, node)
  // With "=", because one name in 64 begins with "-" and would be read as an option.
  const tool = ['-cp', join(java.jars, '*'), 'kafka.tools.StorageTool', 'format', `--cluster-id=${node.cluster}`, '-c', properties]
  // The tool runs half a second: compiling its code well would take longer than running it.
  await promisify(execFile)(java.program, ['-XX:TieredStopAtLevel=1', '-XX:+UseSerialGC', ...LOGGING, ...tool])
  renameSync(partial, join(java.directory, 'data'))
}

async function startServer(java: Java, properties: string): Promise<GuardedServer> {
  const logFile = join(java.directory, 'kafka.log')
  const server = await startGuarded({
    command: java.program,
    args: [...java.heap, ...JVM, ...LOGGING, '-cp', join(java.jars, '*'), 'kafka.Kafka', properties],
    directory: java.directory,
    logFile,
    stopSignal: 'TERM',
    environment: java.environment,
  })
  let running = true
  void server.exited.then(() => (running = false))
  for (const end = Date.now() + START_SECONDS * 1000; running && Date.now() < end; await pause(30)) {
    if (server.log().includes(STARTED)) return server
  }
  await server.stop()
  throw new DeltapostError('STACK_KAFKA', `Kafka does not start:\n${server.log().slice(-4000)}`, `read ${logFile}`)
}
