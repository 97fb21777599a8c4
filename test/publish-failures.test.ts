/*
 * Publish failures, a test per line, each with one database and with two: outcome, attempts, audit, and what the neighbours
 * did meanwhile. Here the whole way runs; the files named have the relay's part alone, under more load.
 *
 * | failure                                  | here                        | besides                                        |
 * |------------------------------------------|-----------------------------|------------------------------------------------|
 * | record too large, in chunks too          | "too large"                 | services/relay/relay.test.ts, outbox/refused.test.ts |
 * | topic unknown, auto creation off         | "does not exist"            | relay.test.ts: a topic deleted under load      |
 * | no right to write (StandardAuthorizer)   | "may not be written"        |                                                |
 * | error topic unwritable                   | "error topic"               | relay.test.ts: 240 records, three topics       |
 * | error record refused                     |                             | relay.test.ts, outbox/refused.test.ts          |
 * | broker away                              | "broker is away"            | services/relay/broker.test.ts, test/kill.test.ts |
 * | retry of a parked change refused         |                             | outbox/refused.test.ts (both)                  |
 */
import { appendFileSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import type { ExecutionContext } from 'ava'
import kafkajs from 'kafkajs'
import { publishAgain } from '../outbox/refused.ts'
import { embeddedKafka } from '../scripts/stack/embedded-kafka.ts'
import type { EmbeddedKafka } from '../scripts/stack/embedded-kafka.ts'
import { outboxConnection, readTopic } from './support/events.ts'
import { brokers, createTopic, setTopicLimit, STOCK_LIMIT } from './support/kafka.ts'
import { testOwnKafkaInTurn } from './support/own-servers.ts'
import { until } from './support/until.ts'
import { asAdmin, openWay } from './support/way.ts'
import type { Audit, Way } from './support/way.ts'

/** Below a limit like this no record is cut into chunks, so the broker refuses what is larger. */
const TINY = 1_100
const RETRIES = 2
const OTHERS = 20

type World = Omit<Way, 'post' | 'target'> & {
  /** Posts a change of person `id`, for this topic, and returns its seq_id. */
  post: (id: number, name: string, topic?: string) => Promise<string>
  rows: () => Promise<Record<string, string>>
  /** Statuses and attempts in publish_log, as they followed each other. */
  tries: (seqId: string) => Promise<string[]>
}

/** The whole way with a table of persons. */
async function place(t: ExecutionContext, two: boolean, servers: readonly string[] = brokers()): Promise<World> {
  t.timeout(120_000)
  const { target, ...way } = await openWay({ two, servers, settings: { MAX_RETRIES: String(RETRIES) } })
  t.teardown(way.close)
  await target.unsafe('create table app.person (id integer primary key, name varchar(10))')
  return {
    ...way,
    post: async (id, name, topic) => (await way.post([{ table: 'person', data: { id: String(id), name } }], topic))[0]!,
    rows: async () => Object.fromEntries((await target<{ id: number; name: string }[]>`select id, name from app.person`).map(({ id, name }) => [id, name])),
    tries: async (seqId) => (await way.first<{ line: string }[]>`
      select producer_publish_status || ' ' || attempt as line from auditlog.publish_log where seq_id = ${seqId} and kind is null order by position`).map(({ line }) => line),
  }
}

/** Others post while a change waits or fails: one of the same row, and so of the same lane, and some of other rows. */
async function neighbours({ post, rows }: World): Promise<void> {
  await post(1, 'same lane')
  for (let id = 2; id < 2 + OTHERS; id++) await post(id, 'another')
  await until(async () => {
    const there = await rows()
    return there['1'] === 'same lane' && Object.keys(there).length === OTHERS + 1
  }, { within: 30_000, what: 'the neighbours are applied' })
}

const FAILED: Audit = { publish: 'FAILED', publishFailure: null, deploy: null, deployFailure: null, attempt: null, pending: false, settled: true }
const WAITS: Audit = { publish: 'PENDING', publishFailure: null, deploy: 'PENDING', deployFailure: null, attempt: null, pending: true, settled: false }

async function failedFor(t: ExecutionContext, world: World, seqId: string): Promise<void> {
  const audit = await until(async () => {
    const now = await world.audit(seqId)
    return now.publish === 'FAILED' && now.settled ? now : undefined
  }, { within: 40_000, what: 'it FAILED, and the watermark passed it' })
  t.regex(audit.publishFailure ?? '', /^MESSAGE_TOO_LARGE: /)
  t.deepEqual({ ...audit, publishFailure: null }, FAILED)
  t.deepEqual(await world.tries(seqId), ['RETRYING 0', 'RETRYING 1', 'FAILED 2'])
  t.is((await world.first`select from auditlog.pending`).length, 0)
}

/** A change whose topic cannot be written waits without an attempt; mended, it goes out, and the newer one of its row stays. */
async function waitsFor(t: ExecutionContext, world: World, away: string, mend: () => Promise<unknown>): Promise<void> {
  const bad = await world.post(1, 'waits', away)
  await neighbours(world)
  t.deepEqual(await world.audit(bad), WAITS)
  t.deepEqual(await world.tries(bad), [])
  t.deepEqual([...await world.first`select attempt from outbox.event where seq_id = ${bad}`], [{ attempt: 0 }])
  await mend()
  await until(async () => (await world.audit(bad)).publish === 'PUBLISHED', { within: 30_000, what: 'it is published' })
  t.deepEqual(await world.tries(bad), ['PUBLISHED 0'])
  world.consume(away)
  await until(async () => (await world.audit(bad)).deploy === 'SUPERSEDED', { within: 30_000, what: 'it is superseded' })
  t.is((await world.rows())['1'], 'same lane')
}

/** The broker makes no topic whose name differs from another's in dots and underscores only. */
async function block(topic: string): Promise<() => Promise<void>> {
  const twin = topic.replaceAll('.', '_')
  await asAdmin(brokers(), (admin) => createTopic(admin, twin, 1))
  return () => asAdmin(brokers(), (admin) => admin.deleteTopics({ topics: [twin] }))
}

for (const two of [false, true]) {
  const databases = two ? 'two databases' : 'one database'

  test.serial(`I8 I9 I12 a record that is too large is FAILED after its attempts, told, and put back goes out; its neighbours are applied, with ${databases}`, async (t) => {
    const world = await place(t, two)
    await setTopicLimit(world.topic, TINY)
    const bad = await world.post(1, 'x'.repeat(3_000))
    await neighbours(world)
    await failedFor(t, world, bad)
    const [record] = await readTopic(world.named('error'), (records) => records.length === 1)
    const { SEQ_ID, recipients, error, DATA } = JSON.parse(record?.value ?? '{}') as Record<string, unknown>
    t.like({ SEQ_ID, recipients, error, DATA }, {
      SEQ_ID: bad, recipients: ['admin@abc.com'], error: { code: 'MESSAGE_TOO_LARGE', side: 'publish', attempts: RETRIES }, DATA: { name: 'x'.repeat(3_000) },
    })
    await setTopicLimit(world.topic, STOCK_LIMIT)
    const operator = outboxConnection(world.url)
    t.deepEqual(await publishAgain(operator, [bad]), [bad])
    await operator.end({ timeout: 5 })
    await until(async () => (await world.audit(bad)).deploy === 'SUPERSEDED', { within: 40_000, what: 'the older image is superseded' })
    t.is((await world.audit(bad)).publish, 'PUBLISHED')
    t.is((await world.rows())['1'], 'same lane')
  })

  test.serial(`I8 I10 I12 a change whose topic does not exist and cannot be made waits without an attempt; its neighbours are applied, with ${databases}`, async (t) => {
    const world = await place(t, two)
    const away = world.named('away')
    await waitsFor(t, world, away, await block(away))
  })

  test.serial(`I3 I9 I12 with an error topic that cannot be written the change is FAILED all the same and its record waits; nobody is delayed, with ${databases}`, async (t) => {
    const world = await place(t, two)
    const mend = await block(world.named('error'))
    await setTopicLimit(world.topic, TINY)
    const bad = await world.post(1, 'x'.repeat(3_000))
    await neighbours(world)
    await failedFor(t, world, bad)
    t.deepEqual([...await world.first`select seq_id, kind, attempt from outbox.event`], [{ seq_id: bad, kind: 'error', attempt: RETRIES }])
    await mend()
    await until(async () => (await world.first`select from outbox.event`).length === 0, { within: 30_000, what: 'the record of the failure left' })
    t.is((await readTopic(world.named('error'), (records) => records.length === 1)).length, 1)
    t.deepEqual({ ...await world.audit(bad), publishFailure: null }, FAILED)
  })
}

const directory = mkdtempSync(join(tmpdir(), 'publish-failures-'))
let own: Promise<EmbeddedKafka> | undefined

/** A broker of this file that asks for rights: everybody may do everything to what has no rule. */
async function ownBroker(): Promise<EmbeddedKafka> {
  const broker = await embeddedKafka({ directory, log: () => undefined })
  await broker.stop()
  appendFileSync(join(directory, 'server.properties'),
    'authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\nallow.everyone.if.no.acl.found=true\n')
  await broker.start()
  return broker
}

test.after.always('the broker of this file ends', async () => {
  await (await own)?.stop()
  rmSync(directory, { recursive: true, force: true })
})

for (const two of [false, true]) {
  const databases = two ? 'two databases' : 'one database'

  testOwnKafkaInTurn(`I8 I10 I12 a change whose topic may not be written waits without an attempt; its neighbours are applied, with ${databases}`, async (t) => {
    const servers = [(await (own ??= ownBroker())).brokers]
    const world = await place(t, two, servers)
    const away = world.named('denied')
    const rule = {
      principal: 'User:ANONYMOUS', host: '*', resourceType: kafkajs.AclResourceTypes.TOPIC, resourceName: away,
      resourcePatternType: kafkajs.ResourcePatternTypes.LITERAL,
    }
    const rules = (operations: readonly number[], permissionType: number) => operations.map((operation) => ({ ...rule, operation, permissionType }))
    const deny = rules([kafkajs.AclOperationTypes.WRITE], kafkajs.AclPermissionTypes.DENY)
    await asAdmin(servers, async (admin) => {
      await createTopic(admin, away, 1)
      await admin.createAcls({ acl: [...deny, ...rules([kafkajs.AclOperationTypes.ALL], kafkajs.AclPermissionTypes.ALLOW)] })
    })
    await waitsFor(t, world, away, () => asAdmin(servers, (admin) => admin.deleteAcls({ filters: deny })))
  })

  testOwnKafkaInTurn(`I1 I3 I10 while the broker is away posts are taken, nothing uses an attempt, and all is applied when it is back, with ${databases}`, async (t) => {
    const broker = await (own ??= ownBroker())
    const world = await place(t, two, [broker.brokers])
    await world.post(1, 'before')
    await until(async () => (await world.rows())['1'] === 'before', { within: 30_000, what: 'the first is applied' })
    await broker.kill()
    const seqIds: string[] = []
    for (let id = 1; id <= OTHERS; id++) seqIds.push(await world.post(id, 'away'))
    t.deepEqual(await world.audit(seqIds[0]!), WAITS)
    await broker.start()
    await until(async () => (await world.first`select from auditlog.pending`).length === 0 && Object.keys(await world.rows()).length === OTHERS, { within: 60_000, what: 'all is applied' })
    t.true(Object.values(await world.rows()).every((name) => name === 'away'))
    for (const seqId of seqIds) t.deepEqual(await world.tries(seqId), ['PUBLISHED 0'])
    t.deepEqual([...await world.first`select distinct producer_publish_status as publish, consumer_deploy_status as deploy from auditlog.audit_log`], [{ publish: 'PUBLISHED', deploy: 'APPLIED' }])
  })
}
