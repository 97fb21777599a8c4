import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import test from 'ava'
import type { ExecutionContext } from 'ava'
import type { Sql } from 'postgres'
import { startRole } from '../scripts/commands/role-process.ts'
import type { RoleProcess } from '../scripts/commands/role-process.ts'
import type { Role } from '../scripts/commands/serve.ts'
import { ACCOUNT_TABLE } from '../scripts/demo/account.ts'
import { play } from '../scripts/demo/play.ts'
import { openSender } from '../scripts/demo/sender.ts'
import type { Post } from '../scripts/demo/sender.ts'
import { unlikeModel } from '../scripts/demo/verdict.ts'
import { makeWorkload, modelOf } from '../scripts/demo/workload.ts'
import { freePorts } from '../scripts/stack/free-port.ts'
import { migrate, pairDatabases } from '../services/jobs/migrate.ts'
import { openSlot } from '../services/runtime/slot.ts'
import { connect, emptyDatabase, freshDatabase } from './support/database.ts'
import { readTopic } from './support/events.ts'
import { administrate, brokers, createTopic, freshTopic } from './support/kafka.ts'
import { untilAnswered } from './support/posts.ts'
import { openProxy } from '../scripts/torture/proxy.ts'
import { until } from './support/until.ts'

const PROGRAM = join(import.meta.dirname, '..', 'scripts', 'deltapost.ts')

type Two = {
  first: Sql
  target: Sql
  urls: { first: string; target: string }
  errorTopic: string
  /** Starts a role; the relay of the second database is 'relay 2'. Only the consumer goes through the proxies. */
  start(name: Role | 'relay 2'): RoleProcess
  running: Map<string, RoleProcess>
  post: Post
  away: Record<'first' | 'target', { cut: () => void; mend: () => void }>
  said: string[]
  /** What waits anywhere; '' when nothing does. */
  left(): Promise<string>
}

/** Two migrated databases, a topic, and roles as processes of their own. */
async function place(t: ExecutionContext, settings: Record<string, string> = {}): Promise<Two> {
  t.timeout(240_000)
  const [a, b] = [await freshDatabase(), await freshDatabase()]
  const { topic, drop } = await freshTopic('two', 6)
  const errorTopic = `${topic}.error`
  await administrate((admin) => createTopic(admin, errorTopic, 1))
  await pairDatabases(a.url, b.url, () => undefined)
  const proxies = { first: await openProxy(a.url), target: await openProxy(b.url) }
  const port = (await freePorts(1))[0]
  const environment = {
    PATH: process.env['PATH'], DATABASE_URL: a.url, TARGET_DATABASE_URL: b.url, KAFKA_BROKERS: brokers().join(), TOPIC: topic, CONSUMER_GROUP: topic,
    ERROR_TOPIC: errorTopic, PORT: String(port), LOG_LEVEL: 'warn', ...settings,
  }
  const [first, target] = [connect(a.url), connect(b.url)]
  const running = new Map<string, RoleProcess>()
  const said: string[] = []
  t.teardown(async () => {
    await Promise.all([...running.values()].map((role) => role.stop()))
    await Promise.all([first.end({ timeout: 5 }), target.end({ timeout: 5 }), proxies.first.close(), proxies.target.close()])
    await Promise.all([a.drop(), b.drop(), drop(), administrate((admin) => admin.deleteTopics({ topics: [errorTopic] }))])
  })
  return {
    first, target, running, said, errorTopic, away: proxies, urls: { first: a.url, target: b.url },
    start(name) {
      const own = name === 'relay 2' ? { DATABASE_URL: b.url } : name === 'consumer' ? { DATABASE_URL: proxies.first.url, TARGET_DATABASE_URL: proxies.target.url } : {}
      const role = startRole(name === 'relay 2' ? 'relay' : name, { ...environment, ...own }, (line) => said.push(`${name}: ${line}`))
      running.set(name, role)
      return role
    },
    post: untilAnswered(openSender(`http://127.0.0.1:${port}`, AbortSignal.timeout(200_000))),
    async left() {
      const [here] = await first<{ n: number }[]>`select ((select count(*) from auditlog.pending) + (select count(*) from outbox.event))::int as n`
      const [there] = await target<{ n: number }[]>`
        select ((select count(*) from inbox.receipt) + (select count(*) from outbox.event) + (select count(*) from inbox.applied where status = 'RETRYING'))::int as n`
      return here?.n === 0 && there?.n === 0 ? '' : `${here?.n} in the first, ${there?.n} in the second; the roles said:\n${said.slice(-15).join('\n')}`
    },
  }
}

async function nothingLeft({ left }: Two): Promise<void> {
  let last = ''
  await until(async () => (last = await left()) === '', { within: 60_000, what: 'nothing waits' }).catch((error: unknown) => {
    throw new Error(`something waits: ${last}`, { cause: error })
  })
}

const insert = (id: number, name: string): string => JSON.stringify({
  TIME: new Date(Date.now() - 1_000).toISOString().replace('Z', `${String(id % 1_000).padStart(3, '0')}Z`), SCHEMANAME: 'app', TABLENAME: 'person',
  OPERATION: 'INSERT', DATA: { id: String(id), name },
})

const outcomes = (sql: Sql): PromiseLike<{ line: string }[]> =>
  sql`select concat_ws(' ', origin, seq_id, status, attempt, failure, applied_at) as line from inbox.applied order by origin, seq_id`

test('I1 I3 I6 I9 I12 two databases, the consumer and both relays killed under load: the target is the model, and the audit of the first is complete', async (t) => {
  const changes = 1_500
  const two = await place(t)
  const { first, target, start, running, post } = two
  await target.unsafe(ACCOUNT_TABLE)
  await Promise.all((['listener', 'relay', 'relay 2', 'consumer'] as const).map((name) => start(name).ready))
  const workload = makeWorkload({ seed: 20_261_122, changes, perSecond: 250, begin: Date.now() * 1_000 })
  let answered = 0
  const playing = play(workload, post, AbortSignal.timeout(200_000), (played) => { answered = played.sent.length })
  const victims = ['consumer', 'relay', 'consumer', 'relay 2', 'consumer', 'consumer'] as const
  for (const [at, name] of victims.entries()) {
    await until(() => answered >= (changes * (at + 1)) / (victims.length + 2), { within: 120_000, what: `progress before killing the ${name}` })
    const victim = running.get(name)!
    process.kill(victim.pid, 'SIGKILL')
    await victim.exited
    await start(name).ready
  }
  const played = await playing
  await nothingLeft(two)
  t.deepEqual(played.failed, [])
  const accepted = new Set(played.sent.map(({ answer }) => answer.seqId)).size
  t.is(accepted, changes)
  const [audit] = await first`select count(*)::int as rows, count(*) filter (where consumer_deploy_status in ('APPLIED', 'SUPERSEDED'))::int as applied,
    count(*) filter (where producer_publish_status = 'PUBLISHED')::int as published, (select count(*)::int from auditlog.consumer_log) as told from auditlog.audit_log`
  t.deepEqual({ ...audit }, { rows: changes, applied: changes, published: changes, told: changes })
  t.deepEqual([...await outcomes(first)], [...await outcomes(target)])
  t.is((await first`select to_regclass('shop.account') as there`)[0]?.['there'], null, 'nothing is applied in the first')
  const slot = openSlot({ url: two.urls.target, name: 'judge', deadline: 60_000 })
  t.teardown(() => slot.close())
  t.deepEqual(await slot.run((judging) => unlikeModel(judging, modelOf(played.sent.map(({ change }) => change)))), [])
  t.deepEqual((await first`select key_columns from outbox.relation where source_table = 'account'`)[0]?.['key_columns'], ['id'], 'the first knows the key')
})

test('a change that the second database refuses is published again from there, given up on the error topic, and the audit of the first shows it', async (t) => {
  const two = await place(t, { MAX_RETRIES: '2', RETRY_BACKOFF_MS: '50' })
  const { first, target, start, post, errorTopic } = two
  await target.unsafe('create schema app; create table app.person (id integer primary key, name varchar(10))')
  await Promise.all((['listener', 'relay', 'relay 2', 'consumer'] as const).map((name) => start(name).ready))
  const { seqId } = await post('/events', insert(1, 'a name that is longer than ten'))
  await post('/events', insert(2, 'fits'))
  await until(async () => (await target`select 1 from app.person where id = 2`).length === 1, { within: 30_000 })
  const failed = () => first`select consumer_deploy_status as status, consumer_failure_log as failure, attempt from auditlog.consumer_log where seq_id = ${seqId}`
  await until(async () => (await failed())[0]?.['status'] === 'FAILED', { within: 60_000, what: 'the change is FAILED in the first database' })
  t.like((await failed())[0], { attempt: 2 })
  t.regex(String((await failed())[0]?.['failure']), /too long/)
  t.like((await first`select * from auditlog.audit_log where seq_id = ${seqId}`)[0], { producer_publish_status: 'PUBLISHED', consumer_deploy_status: 'FAILED' })
  const [record] = await readTopic(errorTopic, (records) => records.length > 0)
  const { SEQ_ID, recipients, error } = JSON.parse(record?.value ?? '{}') as Record<string, unknown>
  t.deepEqual({ SEQ_ID, recipients }, { SEQ_ID: String(seqId), recipients: ['admin@abc.com'] })
  t.truthy(error)
  await nothingLeft(two)
})

test('I10 either database may be away from the consumer, from its start on too, and nothing is lost', async (t) => {
  const two = await place(t)
  const { first, target, start, post, away, said } = two
  await target.unsafe('create schema app; create table app.person (id integer primary key, name varchar(10))')
  away.first.cut()
  await Promise.all((['listener', 'relay', 'relay 2', 'consumer'] as const).map((name) => start(name).ready))
  for (let id = 1; id <= 50; id += 1) await post('/events', insert(id, 'a'))
  await until(async () => (await target`select from app.person`).length === 50, { within: 30_000, what: 'applied while the first is away' })
  t.is((await first`select from inbox.applied`).length, 0)
  t.is((await first`select from auditlog.pending`).length, 50, 'the audit lags')
  const waiting = cli(['status', '--json'], two)
  t.is((JSON.parse(waiting.stdout) as { target: { receipts: { count: number } } }).target.receipts.count, 50)
  away.first.mend()
  await nothingLeft(two)

  away.target.cut()
  for (let id = 51; id <= 100; id += 1) await post('/events', insert(id, 'b'))
  await until(async () => (await first`select from outbox.event`).length === 0, { within: 30_000, what: 'published while the second is away' })
  away.target.mend()
  await until(async () => (await target`select from app.person`).length === 100, { within: 60_000 })
  await nothingLeft(two)
  t.deepEqual([...await outcomes(first)], [...await outcomes(target)])
  t.true(said.filter((line) => line.includes('cannot be told')).length <= 3, said.join('\n'))
  const checked = cli(['doctor'], two)
  t.is(checked.status, 0, checked.stdout)
  t.regex(checked.stdout, /ok {4}two databases: origin 1 takes in, origin 2 applies\nok {4}receipts: 0 wait/)
})

test('migrate prepares both databases, and with one origin neither consumer nor relay starts', async (t) => {
  const [a, b] = [await emptyDatabase(), await emptyDatabase()]
  const urls = { first: a.url, target: b.url }
  const target = connect(b.url)
  t.teardown(async () => {
    await target.end({ timeout: 5 })
    await Promise.all([a.drop(), b.drop()])
  })
  const migrated = cli(['migrate'], { urls })
  t.is(migrated.status, 0, migrated.stderr)
  t.regex(migrated.stdout, /origin 1 takes changes in, origin 2 applies them/)
  await target`update outbox.database set origin = 1`
  for (const role of ['consumer', 'relay']) {
    const { status, stderr } = cli(['serve', role], { urls })
    t.is(status, 1)
    t.regex(stderr, /has origin 1, as that of DATABASE_URL.*\nTry: in the database of TARGET_DATABASE_URL: update outbox.database set origin = 2/)
  }
  await target`update outbox.database set origin = 3`
  t.deepEqual(await migrate(b.url, { log: () => undefined }), [])
  t.regex(cli(['doctor'], { urls }).stdout, /two databases: origin 1 takes in, origin 3 applies/)
})

function cli(args: string[], { urls }: { urls: Two['urls'] }): { status: number | null; stdout: string; stderr: string } {
  const environment = { PATH: process.env['PATH'], DATABASE_URL: urls.first, TARGET_DATABASE_URL: urls.target, KAFKA_BROKERS: brokers().join(), LOG_LEVEL: 'silent' }
  return spawnSync(process.execPath, [PROGRAM, ...args], { encoding: 'utf8', env: environment, timeout: 60_000 })
}
