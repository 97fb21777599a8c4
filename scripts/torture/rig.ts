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
  directory: string
}

export type RigOptions = {
  servers: Servers
  /** Of its databases, topics, group and files. */
  name: string
  counts: Readonly<Record<Role, number>>
  twoDatabases: boolean
  plants: readonly Plant[]
  settings: Readonly<Record<string, string>>
  signal: AbortSignal
  log: (line: string) => void
  incident: (what: string) => void
}

export type Place = {
  /** Where changes are received, and where they are applied. */
  first: Sql
  target: Sql
  urls: { first: string; target: string }
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

/** Enough that partitions can be added while it runs. */
export const PARTITIONS = 6
/** What a stock broker takes, in bytes of a batch: above it a change goes in chunks. */
export const RECORD_LIMIT = 1_048_588

/** Databases and topics of their own on the servers, and the roles as processes, each behind proxies of its own. */
export async function openPlace(options: RigOptions): Promise<Place> {
  const { servers, name, twoDatabases, signal } = options
  const brokers = servers.ports.map((port) => `127.0.0.1:${port}`)
  const kafka = openKafka(brokers, openLog('torture', 'silent'))
  const urls = await makeDatabases(servers.postgres, name, twoDatabases)
  const connections = { max: 4, onnotice: () => {}, connect_timeout: 10, idle_timeout: 30 }
  const first = postgres(urls.first, connections)
  const target = twoDatabases ? postgres(urls.target, connections) : first
  const [topic, errorTopic, group] = [name, `${name}.error`, name]
  for (const [made, partitions] of [[topic, PARTITIONS], [errorTopic, 2]] as const) await ensureTopic(kafka, made, partitions, openLog('torture', 'silent'))
  await withAdmin(kafka, (admin) => admin.alterConfigs({
    validateOnly: false, resources: [{ type: kafkajs.ConfigResourceTypes.TOPIC, name: topic, configEntries: [{ name: 'max.message.bytes', value: String(RECORD_LIMIT) }] }],
  }))
  const { roles, edges, closeEdges } = await makeRoles(options, { urls, brokers, topic, errorTopic, group })

  return {
    first, target, urls, kafka, topic, errorTopic, group, roles, edges,
    admin: (task) => withAdmin(kafka, task).then(() => undefined),
    async start() {
      await Promise.all(roles.map((role) => role.start()))
      signal.throwIfAborted()
    },
    async close() {
      await Promise.all(roles.map((role) => role.stop()))
      await closeEdges()
      await Promise.all([first, target].map((sql) => sql.end({ timeout: 5 })))
      const away = postgres(servers.postgres.url('postgres'), { max: 1, onnotice: () => {} })
      for (const database of new Set([urls.first, urls.target].map((url) => new URL(url).pathname.slice(1)))) {
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

async function makeDatabases(server: EmbeddedPostgres, name: string, two: boolean): Promise<Place['urls']> {
  const quiet = (): void => undefined
  const names = two ? [name, `${name}_target`] : [name]
  for (const one of names) {
    await createDatabase(server.url('postgres'), one)
    await migrate(server.url(one), { log: quiet })
  }
  const urls = { first: server.url(name), target: server.url(names.at(-1) ?? name) }
  if (two) await pairDatabases(urls.first, urls.target, quiet)
  return urls
}

type Names = { urls: Place['urls']; brokers: readonly string[]; topic: string; errorTopic: string; group: string }

/** Two databases need a relay in the second, which is the last of them. */
async function makeRoles(options: RigOptions, names: Names): Promise<{ roles: KeptRole[]; edges: Edge[]; closeEdges: () => Promise<void> }> {
  const { counts, servers, twoDatabases, settings, plants, incident } = options
  const directory = join(servers.directory, options.name)
  mkdirSync(directory, { recursive: true })
  const edges: Edge[] = []
  const roles: KeptRole[] = []
  const all = (['listener', 'relay', 'consumer'] as const).flatMap((role) => Array.from({ length: counts[role] + (twoDatabases && role === 'relay' ? 1 : 0) }, (_, at) => ({ role, at })))
  const ports = await freePorts(counts.listener)
  for (const { role, at } of all) {
    const name = `${role} ${at}`
    const behind: Record<string, number> = {}
    for (const [to, port] of [['postgres', servers.postgres.port], ...servers.ports.map((one) => ['kafka', one] as const)] as const) {
      if (to === 'kafka' && role === 'listener') continue
      const proxy = await startProxy({ host: '127.0.0.1', port })
      edges.push({ from: name, to, proxy })
      behind[port] = proxy.port
    }
    const second = twoDatabases && role === 'relay' && at === counts.relay
    roles.push(keepRole({
      role, name, directory, incident,
      orders: { edges: behind, plants },
      onLine: (line) => appendFileSync(join(directory, 'roles.log'), `${name} | ${line}\n`),
      environment: {
        PATH: processEnvironment()['PATH'] ?? '',
        DATABASE_URL: second ? names.urls.target : names.urls.first, ...(twoDatabases && role !== 'relay' ? { TARGET_DATABASE_URL: names.urls.target } : {}),
        KAFKA_BROKERS: names.brokers.join(), TOPIC: names.topic, TOPIC_PARTITIONS: String(PARTITIONS), ERROR_TOPIC: names.errorTopic, CONSUMER_GROUP: names.group,
        PORT: String(role === 'listener' ? ports[at] : 0), LOG_LEVEL: 'info', ...settings,
      },
    }))
  }
  return { roles, edges, closeEdges: async () => { await Promise.all(edges.map(({ proxy }) => proxy.close())) } }
}
