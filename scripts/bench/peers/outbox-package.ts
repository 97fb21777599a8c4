import { execFile, fork, spawnSync } from 'node:child_process'
import { cpSync, existsSync, mkdirSync, openSync, closeSync, renameSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'

import { DeltapostError } from '../../../outbox/errors.ts'
import { cacheFolder } from '../../stack/maven.ts'

const VERSION = '0.5.7'
const FILES = join(import.meta.dirname, 'pg-transactional-outbox')
const FOLDER = cacheFolder(`pg-transactional-outbox-${VERSION}`)
/** Of its handlers: one for two of its segments; with one each it was no faster and the server had 100 more processes. */
const CONNECTIONS = '50'

/**
 * The peer's process. `takeLate`: milliseconds from due to acknowledged, of all that it has published since it was last asked.
 * `lost`: changes that it said it could not find, and will not look for again.
 */
export type OutboxProcess = { pid: number; takeLate: () => number[]; lost: () => number; stop: () => Promise<void> }

/** What this machine lacks to have the package, in words, or undefined. */
export function missingForOutboxPackage(): string | undefined {
  if (existsSync(FOLDER) || spawnSync('npm', ['-v'], { encoding: 'utf8' }).status === 0) return undefined
  return `no npm to fetch pg-transactional-outbox ${VERSION} into ${FOLDER}`
}

/** Installs what its lock file pins, outside of the project, the first time. */
export async function outboxPackage(log: (line: string) => void): Promise<string> {
  if (existsSync(FOLDER)) return FOLDER
  log(`fetching pg-transactional-outbox ${VERSION} with npm into ${FOLDER} (once)`)
  const partial = `${FOLDER}.partial-${process.pid}`
  mkdirSync(partial, { recursive: true })
  try {
    for (const file of ['package.json', 'package-lock.json']) cpSync(join(FILES, file), join(partial, file))
    await promisify(execFile)('npm', ['ci', '--prefix', partial, '--ignore-scripts', '--no-audit', '--no-fund'])
    renameSync(partial, FOLDER)
  } catch (cause) {
    rmSync(partial, { recursive: true, force: true })
    if (existsSync(FOLDER)) return FOLDER
    throw new DeltapostError('BENCH_PEER', `pg-transactional-outbox ${VERSION} could not be fetched: ${String(cause)}`, `npm ci in a copy of ${FILES}`, { cause })
  }
  return FOLDER
}

/** Starts the listener on a slot that is there; settles when it listens. It ends when this process does. */
export async function startOutboxProcess(parts: {
  packageFolder: string; databaseUrl: string; brokers: string; topic: string; partitions: number; slot: string; logFile: string
}): Promise<OutboxProcess> {
  const log = openSync(parts.logFile, 'a')
  const child = fork(join(FILES, 'publish.ts'), {
    detached: true, stdio: ['ignore', log, log, 'ipc'],
    env: {
      PATH: process.env['PATH'], PACKAGE_FOLDER: parts.packageFolder, DATABASE_URL: parts.databaseUrl, KAFKA_BROKERS: parts.brokers, KAFKAJS_NO_PARTITIONER_WARNING: '1',
      TOPIC: parts.topic, PARTITIONS: String(parts.partitions), SLOT: parts.slot, CONNECTIONS,
    },
  })
  closeSync(log)
  const exited = new Promise<void>((resolve) => child.once('exit', () => resolve()))
  let late: number[] = []
  let lost = 0
  const ready = new Promise<void>((resolve) => child.on('message', (told: { ready?: true; lost?: true; late?: number[] }) => {
    if (told.ready === true) resolve()
    if (told.lost === true) lost += 1
    for (const ms of told.late ?? []) late.push(ms)
  }))
  const early = exited.then(() => {
    throw new DeltapostError('BENCH_PEER', 'the process of pg-transactional-outbox ended', `read ${parts.logFile}`)
  })
  early.catch(() => undefined) // after it was ready, its end shows as changes that do not arrive
  await Promise.race([ready, early])
  return {
    pid: child.pid ?? 0,
    takeLate: () => {
      const taken = late
      late = []
      return taken
    },
    lost: () => lost,
    stop: async () => {
      if (child.connected) child.disconnect()
      await exited
    },
  }
}
