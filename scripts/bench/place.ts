import { randomBytes } from 'node:crypto'
import { appendFileSync } from 'node:fs'
import { setTimeout as pause } from 'node:timers/promises'
import postgres, { type Sql } from 'postgres'

import { DeltapostError } from '../../outbox/errors.ts'
import { migrate } from '../../services/jobs/migrate.ts'
import { ensureTopic, openKafka, withAdmin } from '../../services/runtime/kafka.ts'
import { openLog } from '../../services/runtime/log.ts'
import type { Environment } from '../commands/environment.ts'
import { readable, type RoleProcess, startRole } from '../commands/role-process.ts'
import type { Role } from '../commands/serve.ts'
import type { Stack } from '../stack/stack.ts'
import { TABLE } from './changes.ts'
import { listeningProcess } from '../stack/server-process.ts'

/** What a scenario is given: the servers, what was asked for, and where to tell how it goes. */
export type Bench = {
  stack: Pick<Stack, 'databaseUrl' | 'kafkaBrokers'>
  environment: Environment
  signal: AbortSignal
  options: { seconds: number; rate: number; events: number; backlog: number; repeats: number }
  /** Where the broker keeps its records, if that is a folder of this machine. */
  kafkaData: string | undefined
  logFile: string
  /** Progress, for whoever watches. */
  tell: (line: string) => void
}

/** A database and a topic of their own on the bench's servers, with the roles that run on them. */
export type Place = {
  name: string
  databaseUrl: string
  topic: string
  sql: Sql
  /** Processes of the servers, where they can be found. */
  servers: { postgres: number | undefined; kafka: number | undefined }
  roles: RoleProcess[]
  /** Starts a role and waits until it takes work; gives the listener's address. */
  start: (role: Role, settings?: Readonly<Record<string, string>>) => Promise<string>
  stopRoles: () => Promise<void>
  /** Records on the topic. */
  records: () => Promise<number>
  /** A copy of the database as it is now, on the same topic; nobody may be connected to the original meanwhile. */
  copy: () => Promise<Place>
  /** Stops the roles and deletes database and, unless this is a copy, topic. */
  drop: () => Promise<void>
}

const PARTITIONS = 12
const READY_MS = 60_000

/** A new place: migrated, with the bench's table, statistics as an empty database has them. */
export async function openPlace(bench: Bench): Promise<Place> {
  const name = `deltapost_bench_${randomBytes(4).toString('hex')}`
  await onServer(bench, (sql) => sql`create database ${sql(name)}`)
  const place = placeOf(bench, name, name, false)
  try {
    await migrate(place.databaseUrl, { log: () => undefined })
    await place.sql.unsafe(TABLE)
    await ensureTopic(openKafka(bench.stack.kafkaBrokers.split(','), openLog('bench', 'silent')), name, PARTITIONS, openLog('bench', 'silent'))
    return place
  } catch (error) {
    await place.drop()
    throw error
  }
}

function placeOf(bench: Bench, name: string, topic: string, isCopy: boolean): Place {
  const url = new URL(bench.stack.databaseUrl)
  url.pathname = `/${name}`
  let sql: Sql | undefined
  const roles: RoleProcess[] = []
  const stopRoles = async (): Promise<void> => {
    await Promise.all(roles.splice(0).map((role) => role.stop()))
  }
  const leave = async (): Promise<void> => {
    await sql?.end({ timeout: 5 })
    sql = undefined
  }
  return {
    name, topic, roles, stopRoles,
    databaseUrl: url.href,
    servers: serversOf(bench),
    get sql() {
      return (sql ??= postgres(url.href, { max: 2, connect_timeout: 10, onnotice: () => {}, connection: { application_name: 'deltapost bench', TimeZone: 'UTC' } }))
    },
    async start(role, settings = {}) {
      const environment = environmentOf(bench, url.href, topic, name, settings)
      const running = startRole(role, environment, (line) => appendFileSync(bench.logFile, `${name} ${role} | ${readable(line)}\n`))
      roles.push(running)
      const late = pause(READY_MS, undefined, { signal: bench.signal, ref: false }).then(() => {
        throw new DeltapostError('ROLE_LATE', `the ${role} is not ready after ${READY_MS / 1_000} s`, `read ${bench.logFile}`)
      })
      return (await Promise.race([running.ready, late])) ?? ''
    },
    records: () => recordsOf(bench, topic),
    async copy() {
      await stopRoles()
      await leave()
      const other = `deltapost_bench_${randomBytes(4).toString('hex')}`
      // file_copy writes no WAL for the copy and begins and ends with a checkpoint: each run starts from the same state.
      await onServer(bench, (admin) => admin`create database ${admin(other)} template ${admin(name)} strategy file_copy`)
      return placeOf(bench, other, topic, true)
    },
    async drop() {
      await stopRoles()
      await leave()
      await onServer(bench, (admin) => admin`drop database if exists ${admin(name)} with (force)`)
      if (!isCopy) await dropTopics(bench, topic)
    },
  }
}

/** The service's defaults whatever this machine's environment says; `settings` are those a scenario varies. */
function environmentOf(bench: Bench, databaseUrl: string, topic: string, group: string, settings: Readonly<Record<string, string>>): Environment {
  const kept = Object.entries(bench.environment).filter(([name]) => /^(PATH|HOME|LANG|TMPDIR|NODE_\w+|XDG_\w+)$/.test(name))
  return {
    ...Object.fromEntries(kept),
    DATABASE_URL: databaseUrl, KAFKA_BROKERS: bench.stack.kafkaBrokers, TOPIC: topic, TOPIC_PARTITIONS: String(PARTITIONS),
    ERROR_TOPIC: `${topic}.error`, CONSUMER_GROUP: group, PORT: '0', LOG_LEVEL: 'info', ...settings,
  }
}

function serversOf({ stack }: Bench): Place['servers'] {
  const database = new URL(stack.databaseUrl)
  const [host = '', port = '9092'] = (stack.kafkaBrokers.split(',')[0] ?? '').split(':')
  return {
    postgres: listeningProcess(database.hostname, database.port === '' ? 5_432 : Number(database.port)),
    kafka: listeningProcess(host, Number(port)),
  }
}

async function onServer(bench: Bench, statement: (sql: Sql) => PromiseLike<unknown>): Promise<void> {
  const sql = postgres(bench.stack.databaseUrl, { max: 1, connect_timeout: 10, onnotice: () => {} })
  try {
    await statement(sql)
  } finally {
    await sql.end({ timeout: 5 })
  }
}

async function recordsOf(bench: Bench, topic: string): Promise<number> {
  return withAdmin(kafkaOf(bench), async (admin) => {
    const offsets = await admin.fetchTopicOffsets(topic)
    return offsets.reduce((sum, { high }) => sum + Number(high), 0)
  })
}

async function dropTopics(bench: Bench, topic: string): Promise<void> {
  await withAdmin(kafkaOf(bench), async (admin) => {
    const there = (await admin.listTopics()).filter((name) => name === topic || name.startsWith(`${topic}.`))
    if (there.length > 0) await admin.deleteTopics({ topics: there })
  })
}

function kafkaOf({ stack }: Bench): ReturnType<typeof openKafka> {
  return openKafka(stack.kafkaBrokers.split(','), openLog('bench', 'silent'))
}
