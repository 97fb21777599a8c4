import { randomBytes } from 'node:crypto'
import kafkajs from 'kafkajs'
import type { Admin } from 'kafkajs'
import { pino } from 'pino'
import type { Sql } from 'postgres'
import { runConsumer } from '../../services/consumer/main.ts'
import { pairDatabases } from '../../services/jobs/migrate.ts'
import { runRelay } from '../../services/relay/main.ts'
import { readConfig } from '../../services/runtime/config.ts'
import { openLocalWake } from '../../services/runtime/wake.ts'
import { connect, freshDatabase } from './database.ts'
import { brokers, createTopic } from './kafka.ts'
import { startListener } from './listener.ts'
import type { Answered } from './listener.ts'

export type Way = {
  /** Where changes are taken in, and where they are applied: the same server, and one database or two. */
  first: Sql
  target: Sql
  url: string
  topic: string
  /** The account of the consumer: no superuser, so that rights and limits hold for it. */
  account: string
  /** A topic of this way that nobody has created. */
  named: (name: string) => string
  /** Posts changes in one body, for this topic unless another is named, and returns their seq_ids. */
  post: (changes: readonly Posted[], topic?: string) => Promise<string[]>
  /** The same with the listener's answer as it came. */
  send: (changes: readonly Posted[], topic?: string) => Promise<Answered>
  /** A further consumer, of another topic. */
  consume: (topic: string) => void
  /** What the audit of the first database shows of a change. */
  audit: (seqId: string) => Promise<Audit>
  /** What the roles logged as a warning or an error. */
  said: () => readonly Said[]
  close: () => Promise<void>
}

/** A change of a table of the schema app. Its TIME is some minutes ago, and each is a second later than the one before; `ahead` is milliseconds from now. */
export type Posted = { table: string; operation?: 'INSERT' | 'UPDATE' | 'DELETE'; data: Record<string, unknown>; ahead?: number }

/** Statuses of a change in the first database, with the failure log of either side, and its attempts at the target. */
export type Audit = {
  publish: string
  publishFailure: string | null
  deploy: string | null
  deployFailure: string | null
  attempt: number | null
  pending: boolean
  settled: boolean
}

export type Said = Record<string, unknown>

export type WayOptions = {
  two: boolean
  /** Further variables of the roles' environment; `$` in them stands for the topic's name. */
  settings?: Record<string, string>
  servers?: readonly string[]
}

/** Something done as the administrator of given brokers. */
export async function asAdmin(servers: readonly string[], task: (admin: Admin) => Promise<unknown>): Promise<void> {
  const admin = new kafkajs.Kafka({ brokers: [...servers], clientId: 'test-admin', logLevel: kafkajs.logLevel.NOTHING, retry: { retries: 8 } }).admin()
  await admin.connect()
  try {
    await task(admin)
  } finally {
    await admin.disconnect()
  }
}

/** The whole way in this process, over one database or two: a listener, a relay for each database, and a consumer. */
export async function openWay({ two, settings = {}, servers = brokers() }: WayOptions): Promise<Way> {
  const databases = await Promise.all(Array.from({ length: two ? 2 : 1 }, () => freshDatabase()))
  const [a, b = a] = databases
  if (a === undefined || b === undefined) throw new Error('no database')
  if (two) await pairDatabases(a.url, b.url, () => undefined)
  const topic = `way.${process.pid}.${randomBytes(4).toString('hex')}`
  await asAdmin(servers, (admin) => createTopic(admin, topic, 3))
  const [first, target] = [connect(a.url), connect(b.url)]
  const account = await makeAccount(target, topic)
  const asAccount = new URL(b.url)
  Object.assign(asAccount, { username: account, password: account })
  const lines: Said[] = []
  const log = pino({ level: 'warn' }, { write: (line: string) => { lines.push(JSON.parse(line) as Said) } })
  const stop = new AbortController()
  const environment = {
    KAFKA_BROKERS: servers.join(), MAX_RETRIES: '2', RETRY_BACKOFF_MS: '20',
    ...Object.fromEntries(Object.entries({ ERROR_TOPIC: '$.error', ...settings }).map(([name, value]) => [name, value.replace('$', topic)])),
  }
  const parts = (more: Record<string, string>) => ({ config: readConfig({ ...environment, TOPIC: topic, CONSUMER_GROUP: topic, ...more }), log, signal: stop.signal })
  const roles = databases.map(({ url }) => runRelay({ ...parts({ DATABASE_URL: url }), wake: openLocalWake() }))
  const addresses: Record<string, string> = two ? { DATABASE_URL: a.url, TARGET_DATABASE_URL: asAccount.href } : { DATABASE_URL: asAccount.href }
  const consume = (from: string): void => { roles.push(runConsumer(parts({ ...addresses, TOPIC: from, CONSUMER_GROUP: from }))) }
  consume(topic)
  const poster = await openPoster(a.url, topic)
  return {
    first, target, topic, account, consume, url: a.url, named: (name) => `${topic}.${name}`, post: poster.post, send: poster.send,
    audit: (seqId) => auditOf(first, seqId),
    said: () => lines,
    async close() {
      stop.abort()
      await Promise.all([...roles, poster.stop()])
      await target.end({ timeout: 5 })
      if (two) await b.drop()
      await first.unsafe(`${two ? '' : `drop owned by ${account}; `}drop role ${account}`)
      await first.end({ timeout: 5 })
      await a.drop()
      await asAdmin(servers, async (admin) => {
        const topics = (await admin.listTopics()).filter((name) => name.replaceAll('_', '.').startsWith(topic))
        await admin.deleteTopics({ topics })
      })
    },
  }
}

/** An account with all rights on our tables, and on those that come to be in app. */
async function makeAccount(target: Sql, topic: string): Promise<string> {
  const account = topic.replaceAll('.', '_')
  const schemas = 'outbox, inbox, auditlog, app'
  await target.unsafe(`
    create schema app;
    create role ${account} login password '${account}';
    grant usage on schema ${schemas} to ${account};
    grant all on all tables in schema ${schemas} to ${account};
    grant all on all sequences in schema ${schemas} to ${account};
    alter default privileges in schema app grant all on tables to ${account}`)
  return account
}

/** Posts changes, by a listener for each topic. */
async function openPoster(url: string, topic: string): Promise<Pick<Way, 'post' | 'send'> & { stop: () => Promise<unknown> }> {
  const listeners = new Map([[topic, await startListener(url, { topic })]])
  let second = 0
  async function send(changes: readonly Posted[], to = topic): Promise<Answered> {
    const listener = listeners.get(to) ?? await startListener(url, { topic: to })
    listeners.set(to, listener)
    return listener.post(JSON.stringify(changes.map(({ table, operation = 'INSERT', data, ahead }) => {
      second += 1
      const time = new Date(Date.now() + (ahead ?? second * 1_000 - 1_200_000)).toISOString().replace(/\.\d+Z/, '.1Z')
      return { TIME: time, SCHEMANAME: 'app', TABLENAME: table, OPERATION: operation, DATA: data }
    })))
  }
  return {
    send,
    stop: () => Promise.all([...listeners.values()].map((one) => one.stop())),
    async post(changes, to) {
      const answer = await send(changes, to)
      return (answer.json as { seq_id?: string }[]).map(({ seq_id: seqId }) => {
        if (seqId === undefined) throw new Error(`the listener answered ${answer.status}: ${answer.text}`)
        return seqId
      })
    },
  }
}

async function auditOf(first: Sql, seqId: string): Promise<Audit> {
  const [row] = await first<Audit[]>`
    select a.producer_publish_status as publish, a.producer_failure_log as "publishFailure",
           a.consumer_deploy_status as deploy, a.consumer_failure_log as "deployFailure",
           (select c.attempt from auditlog.consumer_log c where c.origin = a.origin and c.seq_id = a.seq_id) as attempt,
           exists (select from auditlog.pending p where p.seq_id = a.seq_id) as pending,
           a.seq_id <= (select up_to from auditlog.settled) as settled
    from auditlog.audit_log a where a.seq_id = ${seqId}`
  if (row === undefined) throw new Error(`the audit has no row for ${seqId}`)
  return { ...row }
}
