import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'

import { DeltapostError } from '../../../outbox/errors.ts'
import { freePorts } from '../../stack/free-port.ts'
import { startGuarded } from '../../stack/guarded-server.ts'
import { javaProgram, missingForJava } from '../../stack/kafka-jars.ts'
import { cacheFolder, fetchOnce, missingForFetch } from '../../stack/maven.ts'

const SETTINGS = join(import.meta.dirname, 'debezium')
const CONNECT = { folder: cacheFolder('connect-4.3.1'), what: 'Kafka Connect 4.3.1' }
const PLUGINS = { folder: cacheFolder('debezium-3.7.0'), what: 'Debezium 3.7.0 with its JDBC sink 3.6.0' }
/** 10 s on an idle machine. */
const START_SECONDS = 180
/** G1 and 2 GB: with 1 GB it was slower on the reference box, with 6 GB no faster. */
const JVM = ['-Xms2g', '-Xmx2g', '-XX:+UseG1GC', '-Djava.awt.headless=true', `-Dlog4j2.configurationFile=${join(SETTINGS, 'log4j2.properties')}`]

export type Settings = Readonly<Record<string, string>>

/** A Connect worker of this process with Debezium in it, steered over its REST interface. */
export type Connect = {
  pid: number
  /** Makes or changes a connector; settles when all its tasks run. */
  put: (name: string, settings: Settings, tasks: number) => Promise<void>
  stop: (name: string) => Promise<void>
  resume: (name: string) => Promise<void>
  remove: (name: string) => Promise<void>
  /** The first line of what went wrong with each task of these that failed. */
  failures: (names: readonly string[]) => Promise<string[]>
  close: () => Promise<void>
}

/** What this machine lacks to run it, in words, or undefined. */
export function missingForConnect(): string | undefined {
  return missingForJava() ?? missingForFetch(CONNECT.folder, CONNECT.what) ?? missingForFetch(PLUGINS.folder, PLUGINS.what)
}

/** Settings as they are in a file of peers/debezium, for whoever wants to judge them. */
export function settingsIn(file: string): Settings {
  return JSON.parse(readFileSync(join(SETTINGS, file), 'utf8')) as Settings // our own files: names and texts
}

/** Starts a distributed worker; settles when it takes connectors. */
export async function startConnect(parts: { brokers: string; directory: string; logFile: string; signal: AbortSignal; log: (line: string) => void }): Promise<Connect> {
  const { directory, signal } = parts
  const fetched = { size: '40 MB', code: 'BENCH_PEER', log: parts.log }
  const jars = await fetchOnce({ ...fetched, ...CONNECT, pom: join(SETTINGS, 'connect-jars.xml'), goal: 'copy-dependencies' })
  const plugins = await fetchOnce({ ...fetched, ...PLUGINS, pom: join(SETTINGS, 'plugins.xml'), goal: 'unpack-dependencies' })
  // Headers of the archives' format, which Maven unpacks as if they were files.
  if (existsSync(join(plugins, 'PaxHeaders.X'))) rmSync(join(plugins, 'PaxHeaders.X'), { recursive: true, force: true })
  mkdirSync(directory, { recursive: true })
  const [port = 0] = await freePorts(1)
  const properties = join(directory, 'worker.properties')
  const own = {
    'bootstrap.servers': parts.brokers, 'group.id': 'bench.connect', listeners: `http://127.0.0.1:${port}`, 'plugin.path': plugins,
    'config.storage.topic': 'bench.connect.config', 'offset.storage.topic': 'bench.connect.offset', 'status.storage.topic': 'bench.connect.status',
  }
  writeFileSync(properties, Object.entries({ ...settingsIn('worker.json'), ...own }).map(([name, value]) => `${name}=${value}\n`).join(''))
  const worker = await startGuarded({
    command: javaProgram(), args: [...JVM, '-cp', join(jars, '*'), 'org.apache.kafka.connect.cli.ConnectDistributed', properties],
    directory, logFile: parts.logFile, stopSignal: 'TERM',
  })
  const connect = steer({ pid: worker.pid, url: `http://127.0.0.1:${port}`, logFile: parts.logFile, signal, close: async () => worker.stop() })
  let ended = false
  void worker.exited.then(() => (ended = true))
  try {
    for (const end = Date.now() + START_SECONDS * 1_000; !ended && Date.now() < end; await pause(200, undefined, { signal })) {
      if (await answers(`http://127.0.0.1:${port}/connectors`)) return connect
    }
    throw new DeltapostError('BENCH_PEER', `Kafka Connect does not start:\n${worker.log().slice(-3_000)}`, 'read its last words above; java -version must say 17 or newer')
  } catch (error) {
    await worker.stop()
    throw error
  }
}

function steer({ pid, url, logFile, signal, close }: { pid: number; url: string; logFile: string; signal: AbortSignal; close: () => Promise<void> }): Connect {
  const ask = async (method: string, path: string, body?: Settings): Promise<unknown> => asked(signal, `${url}/connectors/${path}`, method, body)
  const statusOf = async (name: string): Promise<Status> => await ask('GET', `${name}/status`) as Status // as Connect's REST interface has it
  const until = async (name: string, state: string, tasks: number): Promise<void> => {
    for (let tries = 0; tries < 600; tries += 1) {
      const status = await statusOf(name).catch(() => undefined)
      const failed = [status?.connector, ...status?.tasks ?? []].find((one) => one?.state === 'FAILED')
      if (failed !== undefined) throw new DeltapostError('BENCH_PEER', `the connector ${name} failed: ${causeOf(failed.trace)}`, `mend its settings in ${SETTINGS}`)
      if (status?.connector.state === state && status.tasks.length === tasks && status.tasks.every((task) => task.state === state)) return
      await pause(100, undefined, { signal })
    }
    throw new DeltapostError('BENCH_PEER', `the connector ${name} is not ${state} after a minute`, `read ${logFile}`)
  }
  return {
    pid, close,
    put: async (name, settings, tasks) => {
      await ask('PUT', `${name}/config`, settings)
      await until(name, 'RUNNING', tasks)
    },
    stop: async (name) => {
      await ask('PUT', `${name}/stop`)
      await until(name, 'STOPPED', 0)
    },
    resume: async (name) => {
      await ask('PUT', `${name}/resume`)
    },
    remove: async (name) => {
      await ask('DELETE', name)
    },
    failures: async (names) => {
      const all = await Promise.all(names.map(async (name) => ({ name, status: await statusOf(name) })))
      return all.flatMap(({ name, status }) => status.tasks.filter(({ state }) => state === 'FAILED').map(({ trace }) => `${name} failed: ${causeOf(trace)}`))
    },
  }
}

type Status = { connector: { state: string; trace?: string }; tasks: { state: string; trace?: string }[] }

/** The innermost cause of a Java trace, which is its last. */
function causeOf(trace: string | undefined): string {
  return trace?.split('\n').filter((line) => line.startsWith('Caused by: ')).at(-1)?.slice('Caused by: '.length) ?? trace?.split('\n')[0] ?? 'no trace'
}

/** A group that is just being put together answers 409: it is asked again. */
async function asked(signal: AbortSignal, url: string, method: string, body?: Settings): Promise<unknown> {
  for (let tries = 0; ; tries += 1) {
    const answer = await fetch(url, {
      method, headers: { 'content-type': 'application/json' }, signal: AbortSignal.any([signal, AbortSignal.timeout(60_000)]),
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    })
    const text = await answer.text()
    if (answer.ok) return text === '' ? undefined : JSON.parse(text)
    if (answer.status !== 409 || tries === 100) throw new Error(`${method} ${url}: ${answer.status} ${text.slice(0, 1_000)}`)
    await pause(100, undefined, { signal })
  }
}

async function answers(url: string): Promise<boolean> {
  return fetch(url, { signal: AbortSignal.timeout(2_000) }).then(({ ok }) => ok, () => false)
}
