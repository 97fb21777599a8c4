import { appendFileSync, mkdirSync } from 'node:fs'
import { join } from 'node:path'
import kafkajs, { type Kafka } from 'kafkajs'
import postgres, { type Sql } from 'postgres'

import { migrate, pairDatabases } from '../../services/jobs/migrate.ts'
import { processEnvironment } from '../../services/runtime/config.ts'
import { ensureTopic, openKafka, withAdmin } from '../../services/runtime/kafka.ts'
import { openLog } from '../../services/runtime/log.ts'
import type { Role } from '../commands/serve.ts'
import { freePorts } from '../stack/free-port.ts'
import { createDatabase } from '../stack/database.ts'
import type { EmbeddedPostgres } from '../stack/embedded-postgres.ts'
import { TARGETS_RELAY } from './faults/fault.ts'
import type { Edge, Rig } from './faults/fault.ts'
import { startProxy } from './proxy.ts'
import { keepRole, type KeptRole } from './role-keeper.ts'
import type { Plant } from './plant.ts'

/** The servers of a run, outside of all proxies. */
export type Servers = {
  postgres: EmbeddedPostgres
  kafka: Rig['kafka']
  /** Ports of the brokers. */
  ports: readonly number[]
  clocks: Rig['clocks']
  directory: string
}

export type RigOptions = {
  servers: Servers
  /** Of its databases, topics, group and files. */
  name: string
  counts: Readonly<Record<Role, number>>
  twoDatabases: boolean
  /** A second source besides: a database that is a further origin, with a listener and a relay, and one of the consumers. */
  second: boolean
  plants: readonly Plant[]
  settings: Readonly<Record<string, string>>
  signal: AbortSignal
  log: (line: string) => void
  incident: (what: string) => void
}

/** A database where changes are received. */
export type Source = { origin: number; sql: Sql; listeners: () => string[] }

export type Place = {
  /** Where changes are received, and where they are applied. */
  first: Sql
  target: Sql
  /** The first and, where there is one, the second. */
  sources: readonly [Source, ...Source[]]
  urls: Urls
  kafka: Kafka
  topic: string
  errorTopic: string
  group: string
  roles: readonly KeptRole[]
  edges: readonly Edge[]
  admin: Rig['admin']
  start: () => Promise<void>
  close: () => Promise<void>
}

type Urls = { first: string; target: string; second: string | undefined }

/** Enough that partitions can be added while it runs. */
export const PARTITIONS = 6
/** What a stock broker takes, in bytes of a batch: above it a change goes in chunks. */
export const RECORD_LIMIT = 1_048_588

/** Databases and topics of their own on the servers, and the roles as processes, each behind proxies of its own. */
export async function openPlace(options: RigOptions): Promise<Place> {
  const { servers, name, twoDatabases, signal } = options
  const brokers = servers.ports.map((port) => `127.0.0.1:${port}`)
  const kafka = openKafka(brokers, openLog('torture', 'silent'))
  const urls = await makeDatabases(servers.postgres, options)
  const connections = { max: 4, onnotice: () => {}, connect_timeout: 10, idle_timeout: 30 }
  const first = postgres(urls.first, connections)
  const target = twoDatabases ? postgres(urls.target, connections) : first
  const second = urls.second === undefined ? undefined : postgres(urls.second, connections)
  const [topic, errorTopic, group] = [name, `${name}.error`, name]
  for (const [made, partitions] of [[topic, PARTITIONS], [errorTopic, 2]] as const) await ensureTopic(kafka, made, partitions, openLog('torture', 'silent'))
  await withAdmin(kafka, (admin) => admin.alterConfigs({
    validateOnly: false, resources: [{ type: kafkajs.ConfigResourceTypes.TOPIC, name: topic, configEntries: [{ name: 'max.message.bytes', value: String(RECORD_LIMIT) }] }],
  }))
  const { roles, edges, closeEdges } = await makeRoles(options, { urls, brokers, topic, errorTopic, group })

  const listenersOf = (isSecond: boolean): string[] => roles.filter((role) => role.role === 'listener' && role.second === isSecond).map((role) => role.url())
  const sources: Place['sources'] = [
    { origin: FIRST, sql: first, listeners: () => listenersOf(false) },
    ...(second === undefined ? [] : [{ origin: SECOND, sql: second, listeners: () => listenersOf(true) }]),
  ]

  return {
    first, target, sources, urls, kafka, topic, errorTopic, group, roles, edges,
    admin: (task) => withAdmin(kafka, task).then(() => undefined),
    async start() {
      await Promise.all(roles.map((role) => role.start()))
      signal.throwIfAborted()
    },
    async close() {
      await Promise.all(roles.map((role) => role.stop()))
      await closeEdges()
      await Promise.all([first, target, ...(second === undefined ? [] : [second])].map((sql) => sql.end({ timeout: 5 })))
      const away = postgres(servers.postgres.url('postgres'), { max: 1, onnotice: () => {} })
      for (const database of new Set(Object.values(urls).flatMap((url) => (url === undefined ? [] : [new URL(url).pathname.slice(1)])))) {
        await away`drop database if exists ${away(database)} with (force)`
      }
      await away.end({ timeout: 5 })
      await withAdmin(kafka, async (admin) => {
        const ours = (await admin.listTopics()).filter((one) => one === topic || one.startsWith(`${topic}.`))
        if (ours.length > 0) await admin.deleteTopics({ topics: ours })
      })
    },
  }
}

/** Of a new database; and of the second source, above that of a target which is the second of two databases. */
const FIRST = 1
const SECOND = 3

async function makeDatabases(server: EmbeddedPostgres, { name, twoDatabases, second }: Pick<RigOptions, 'name' | 'twoDatabases' | 'second'>): Promise<Urls> {
  const quiet = (): void => undefined
  const make = async (database: string): Promise<string> => {
    await createDatabase(server.url('postgres'), database)
    await migrate(server.url(database), { log: quiet })
    return server.url(database)
  }
  const first = await make(name)
  const target = twoDatabases ? await make(`${name}_target`) : first
  if (twoDatabases) await pairDatabases(first, target, quiet)
  if (!second) return { first, target, second: undefined }
  const other = await make(`${name}_second`)
  const sql = postgres(other, { max: 1, onnotice: () => {} })
  await sql`update outbox.database set origin = ${SECOND}`
  await sql.end({ timeout: 5 })
  await pairDatabases(other, target, quiet)
  return { first, target, second: other }
}

type Names = { urls: Urls; brokers: readonly string[]; topic: string; errorTopic: string; group: string }

/** A process of a role, and the database it works for: `target` where that is not the one it takes changes from. */
type Post = { role: Role; name: string; second: boolean; database: string; target: string | undefined }

/** A source has listeners, relays and consumers that tell it the outcomes. A target that is no source has a relay too. */
function postsOf({ counts, twoDatabases }: RigOptions, { first, target, second }: Urls): Post[] {
  const several = (role: Role, count: number): Post[] => Array.from({ length: count }, (_, at) => ({
    role, name: `${role} ${at}`, second: false, database: first, target: twoDatabases && role !== 'relay' ? target : undefined,
  }))
  const other = (role: Role): Post[] => (second === undefined ? [] : [{ role, name: `${role} second`, second: true, database: second, target: role === 'relay' ? undefined : target }])
  return [
    ...several('listener', counts.listener), ...other('listener'),
    ...other('relay'), ...several('relay', counts.relay),
    ...(twoDatabases ? [{ role: 'relay' as const, name: TARGETS_RELAY, second: false, database: target, target: undefined }] : []),
    ...several('consumer', second === undefined ? counts.consumer : Math.max(1, counts.consumer - 1)), ...other('consumer'),
  ]
}

async function makeRoles(options: RigOptions, names: Names): Promise<{ roles: KeptRole[]; edges: Edge[]; closeEdges: () => Promise<void> }> {
  const { servers, settings, plants, incident } = options
  const directory = join(servers.directory, options.name)
  mkdirSync(directory, { recursive: true })
  const edges: Edge[] = []
  const roles: KeptRole[] = []
  const posts = postsOf(options, names.urls)
  const ports = await freePorts(posts.filter(({ role }) => role === 'listener').length)
  for (const { role, name, second, database, target } of posts) {
    const behind: Record<string, number> = {}
    for (const [to, port] of [['postgres', servers.postgres.port], ...servers.ports.map((one) => ['kafka', one] as const)] as const) {
      if (to === 'kafka' && role === 'listener') continue
      const proxy = await startProxy({ host: '127.0.0.1', port })
      edges.push({ from: name, to, proxy })
      behind[port] = proxy.port
    }
    roles.push(keepRole({
      role, name, second, directory, incident,
      orders: { edges: behind, plants },
      onLine: (line) => appendFileSync(join(directory, 'roles.log'), `${name} | ${line}\n`),
      environment: {
        PATH: processEnvironment()['PATH'] ?? '', DATABASE_URL: database, ...(target !== undefined && { TARGET_DATABASE_URL: target }),
        KAFKA_BROKERS: names.brokers.join(), TOPIC: names.topic, TOPIC_PARTITIONS: String(PARTITIONS), ERROR_TOPIC: names.errorTopic, CONSUMER_GROUP: names.group,
        PORT: String(role === 'listener' ? ports.pop() : 0), LOG_LEVEL: 'info', ...settings,
      },
    }))
  }
  return { roles, edges, closeEdges: async () => { await Promise.all(edges.map(({ proxy }) => proxy.close())) } }
}
