/*
 * Apply failures, a test per line, each with one database and with two: outcome, attempts, audit, and what the neighbours
 * did meanwhile: 20 changes of another table, and one of another row of the same table where that is not what failed. The
 * whole way runs, all lines of a way at once; the files named have the consumer's part alone.
 *
 * | failure                                        | here              | besides                                          |
 * |------------------------------------------------|-------------------|--------------------------------------------------|
 * | value that does not fit; CHECK; trigger        | "a refused change" | services/consumer/refused.test.ts, hard-cases.test.ts |
 * | NUL: refused before, by the listener           | "at the door"     | listener.test.ts; refused.test.ts where one comes all the same |
 * | table, column or right missing; table locked   | "stops its relation" | services/consumer/stop.test.ts                |
 * | foreign key, unique value                      | "waits for"       | refused.test.ts                                  |
 * | TIME in the future; no key                     | "as it is"        | services/consumer/apply.test.ts                  |
 * | target database away                           | "is away"         | test/two-databases.test.ts, test/kill.test.ts    |
 */
import test from 'ava'
import type { ExecutionContext } from 'ava'
import kafkajs from 'kafkajs'
import { administrate, brokers, createTopic } from './support/kafka.ts'
import { until } from './support/until.ts'
import { openWay } from './support/way.ts'
import type { Audit, Posted, Way } from './support/way.ts'

const RETRIES = 2
const OTHERS = 20
const WITHIN = 60_000

type World = Way & {
  otherIds: Iterator<number>
  /** What came to the error topic. */
  told: readonly Record<string, unknown>[]
}

const ways = new Map<boolean, Promise<World>>()

/** One way for all lines with so many databases. */
function place(t: ExecutionContext, two: boolean): Promise<World> {
  t.timeout(110_000)
  const way = ways.get(two) ?? openWorld(two)
  ways.set(two, way)
  return way
}

async function openWorld(two: boolean): Promise<World> {
  const way = await openWay({ two, settings: { MAX_RETRIES: String(RETRIES) } })
  await way.target.unsafe('create table app.other (id integer primary key, name text)')
  const { told, stop } = await readErrors(way.named('error'))
  return { ...way, otherIds: numbers(), told, close: () => stop().then(way.close) }
}

async function readErrors(topic: string): Promise<Pick<World, 'told'> & { stop: () => Promise<void> }> {
  await administrate((admin) => createTopic(admin, topic, 1))
  const consumer = new kafkajs.Kafka({ brokers: brokers(), logLevel: kafkajs.logLevel.NOTHING }).consumer({ groupId: topic, maxWaitTimeInMs: 100 })
  const told: Record<string, unknown>[] = []
  await consumer.connect()
  await consumer.subscribe({ topic, fromBeginning: true })
  await consumer.run({ autoCommit: false, eachMessage: async ({ message }) => { told.push(JSON.parse(String(message.value)) as Record<string, unknown>) } })
  return { told, stop: () => consumer.disconnect() }
}

function* numbers(): Generator<number, never> {
  for (let id = 1; ; id += 1) yield id
}

test.after.always('the ways end', async () => {
  for (const way of ways.values()) await (await way).close()
})

const one = async ({ post }: World, change: Posted): Promise<string> => (await post([change]))[0]!

/** Until each of these changes has this deploy status in the audit of the first database; asked of consumer_log, for audit_log is dearer and many ask at once. */
async function untilAll({ first }: World, seqIds: readonly string[], status: string): Promise<void> {
  const count = async (view: string): Promise<number> => (await first<{ count: number }[]>`
    select count(*)::int from ${first(view)} where origin = 1 and seq_id = any(${first.array([...seqIds], 20)}) and consumer_deploy_status = ${status}`)[0]?.count ?? 0
  await until(async () => await count('auditlog.consumer_log') === seqIds.length, { within: WITHIN, what: `${seqIds.length} changes are ${status}` })
  await until(async () => await count('auditlog.audit_log') === seqIds.length, { what: 'audit_log says so too' })
}

/** Others post while a change fails, waits or queues: 20 of another table, and `same` of the same one; all are applied. */
async function neighbours(world: World, ...same: Posted[]): Promise<void> {
  await untilAll(world, await world.post([...same, ...others(world)]), 'APPLIED')
}

function others({ otherIds }: World): Posted[] {
  return Array.from({ length: OTHERS }, () => ({ table: 'other', data: { id: String(otherIds.next().value), name: 'another' } }))
}

/** What was published on account of a change besides itself: retries, and records for the error topic. */
async function besides({ target }: World, seqId: string): Promise<string[]> {
  const rows = await target<{ line: string }[]>`
    select concat_ws(' ', kind, attempt, producer_publish_status) as line from auditlog.publish_log where seq_id = ${seqId} and kind is not null
    union all select concat_ws(' ', kind, attempt, 'PENDING') from outbox.event where seq_id = ${seqId} and kind <> 'change' order by 1 desc`
  return rows.map(({ line }) => line)
}

const parkedOf = async ({ target }: World, seqId: string): Promise<Record<string, unknown> | undefined> =>
  (await target`select reason, sqlstate, attempts, payload::json -> 'DATA' as data from inbox.parked where seq_id = ${seqId}`)[0]

/** The audit of a change that is deployed, its failure left to a pattern. */
function seen(t: ExecutionContext, audit: Audit, expected: Pick<Audit, 'deploy' | 'attempt'> & { failure: RegExp | null }): void {
  const { settled: _settled, deployFailure, ...rest } = audit
  t.deepEqual(rest, { publish: 'PUBLISHED', publishFailure: null, pending: false, deploy: expected.deploy, attempt: expected.attempt })
  if (expected.failure === null) t.is(deployFailure, null)
  else t.regex(deployFailure ?? '', expected.failure)
}

/** PARKED with its bytes and without an attempt, and nothing else was published for it. */
async function parkedWithoutAttempt(t: ExecutionContext, world: World, seqId: string, reason: string, sqlstate: string | null, data: unknown): Promise<void> {
  await untilAll(world, [seqId], 'PARKED')
  seen(t, await world.audit(seqId), { deploy: 'PARKED', attempt: 0, failure: new RegExp(`^${reason}${sqlstate === null ? '' : ` ${sqlstate}`}: `) })
  t.deepEqual({ ...await parkedOf(world, seqId) }, { reason, sqlstate, attempts: 0, data })
  t.deepEqual(await besides(world, seqId), [])
}

type Refused = { what: string; table: string; columns: string; good: string; bad: string; sqlstate: string; extra?: string }

const REFUSED: readonly Refused[] = [
  { what: 'a value that does not fit its type', table: 'typed', columns: 'value integer', good: '7', bad: 'seven', sqlstate: '22P02' },
  { what: 'a CHECK', table: 'checked', columns: 'value integer check (value > 0)', good: '7', bad: '-7', sqlstate: '23514' },
  {
    what: 'a trigger that raises', table: 'guarded', columns: 'value text', good: 'yes', bad: 'no', sqlstate: 'P0001',
    extra: `create function app.guard() returns trigger language plpgsql as $$ begin if new.value = 'no' then raise 'not this one'; end if; return new; end $$;
      create trigger guard before insert or update on app.guarded for each row execute function app.guard()`,
  },
]

type Broken = { what: string; table: string; reason: RegExp; break: (world: World) => Promise<() => Promise<unknown>> }

const altered = (broken: string, mended: string): Broken['break'] => async ({ target, account }) => {
  await target.unsafe(broken.replace('$', account))
  return () => target.unsafe(mended.replace('$', account))
}

const BROKEN: readonly Broken[] = [
  { what: 'a missing table', table: 'absent', reason: /^TARGET_MISSING: .*app\.absent/, break: altered('alter table app.absent rename to elsewhere', 'alter table app.elsewhere rename to absent') },
  {
    what: 'a missing column', table: 'narrow', reason: /^TARGET_COLUMN_MISSING: .*note/,
    break: altered('alter table app.narrow drop column note', 'alter table app.narrow add column note text'),
  },
  {
    what: 'a missing right', table: 'closed', reason: /^SQLSTATE 42501, .*permission denied for table closed/,
    break: altered('revoke insert, update, delete on app.closed from $', 'grant insert, update, delete on app.closed to $'),
  },
  {
    what: 'a lock', table: 'locked', reason: /^SQLSTATE 55P03/,
    async break({ target }) {
      const holder = await target.reserve()
      await holder.unsafe('begin')
      await holder.unsafe('lock table app.locked in access exclusive mode')
      return async () => {
        await holder.unsafe('commit')
        holder.release()
      }
    },
  },
]

/** What queues while a relation is stopped: its order is seen in the rows. The first change of each row carries all columns. */
const QUEUE: readonly Omit<Posted, 'table'>[] = [
  { operation: 'UPDATE', data: { id: { old: '1', new: '1' }, name: { old: 'a', new: 'b' }, note: { old: 'x', new: 'y' } } },
  { operation: 'INSERT', data: { id: '2', name: 'a', note: 'x' } },
  { operation: 'INSERT', data: { id: '3', name: 'a', note: 'x' } },
  { operation: 'UPDATE', data: { id: { old: '1', new: '1' }, name: { old: 'b', new: 'c' } } },
  { operation: 'UPDATE', data: { id: { old: '2', new: '2' }, note: { old: 'x', new: 'z' } } },
  { operation: 'DELETE', data: { id: '3', name: 'a', note: 'x' } },
]

/** Takes the target database away from the consumer: it is refused at the door, as are all but superusers; with a second one, everybody is. */
async function takeAway({ first, target, account }: World, two: boolean): Promise<() => Promise<unknown>> {
  const [row] = await target<{ name: string }[]>`select current_database() as name`
  const name = row!.name
  await first.unsafe(`alter database ${name} ${two ? 'allow_connections false' : 'connection limit 0'}`)
  await first`
    select pg_terminate_backend(pid) from pg_stat_activity
    where datname = ${name} and (usename = ${account} or (${two} and application_name like 'deltapost %'))`
  return () => first.unsafe(`alter database ${name} ${two ? 'allow_connections true' : 'connection limit -1'}`)
}

for (const two of [false, true]) {
  const databases = two ? 'two databases' : 'one database'

  // Serial, so before all others, which it would disturb.
  test.serial(`I8 I10 I12 while the target database is away nothing uses an attempt, and all is applied when it is back, with ${databases}`, async (t) => {
    const world = await place(t, two)
    const { target, first, said, audit } = world
    await target.unsafe('create table app.away (id integer primary key, name text)')
    const before = await one(world, { table: 'away', data: { id: '1', name: 'before' } })
    await untilAll(world, [before], 'APPLIED')
    const inside = await target.reserve()
    const positions = async (): Promise<unknown[]> => [...await inside`select partition, next_offset from inbox.position order by partition`]
    const mend = await takeAway(world, two)
    const where = await positions()
    const lines = said().length
    const bad = await one(world, { table: 'away', operation: 'UPDATE', data: { id: { old: '1', new: '1' }, name: { old: 'before', new: 'after' } } })
    const seqIds = [bad, ...await world.post(others(world))]
    const published = () => first`select from auditlog.audit_log where seq_id = any(${first.array(seqIds, 20)}) and producer_publish_status = 'PUBLISHED' and consumer_deploy_status = 'PENDING'`
    await until(async () => (await published()).length === seqIds.length, { within: WITHIN, what: 'all are published' })
    await until(() => said().slice(lines).some((line) => line['partition'] !== undefined), { within: WITHIN, what: 'the consumer says that it waits' })
    t.like(await audit(bad), { publish: 'PUBLISHED', deploy: 'PENDING', deployFailure: null, attempt: null, pending: true })
    t.deepEqual(await positions(), where)
    t.deepEqual([...await inside`select from inbox.parked`], [])
    inside.release()
    await mend()
    await untilAll(world, seqIds, 'APPLIED')
    seen(t, await audit(bad), { deploy: 'APPLIED', attempt: 0, failure: null })
    t.deepEqual([...await first`select distinct attempt from auditlog.consumer_log where seq_id = any(${first.array(seqIds, 20)})`], [{ attempt: 0 }])
    t.deepEqual([...await target`select seq_id from inbox.parked union all select id from outbox.relation where state = 'STOPPED'`], [])
    t.deepEqual([...await target`select id, name from app.away`], [{ id: 1, name: 'after' }])
    t.deepEqual(new Set(said().slice(lines).filter((line) => line['partition'] !== undefined).map((line) => line['msg'])), new Set(['the partition waits']))
  })

  for (const { what, table, columns, good, bad: value, sqlstate, extra = '' } of REFUSED) {
    test(`I8 I9 I12 a refused change is tried MAX_RETRIES times more, FAILED at the target and told once, and its neighbours are applied: ${what}, with ${databases}`, async (t) => {
      const world = await place(t, two)
      const { target, audit, told } = world
      await target.unsafe(`create table app.${table} (id integer primary key, ${columns}); ${extra}`)
      const bad = await one(world, { table, data: { id: '1', value } })
      await neighbours(world, { table, data: { id: '2', value: good } })
      await untilAll(world, [bad], 'FAILED')
      seen(t, await audit(bad), { deploy: 'FAILED', attempt: RETRIES, failure: new RegExp(`^REFUSED ${sqlstate}: `) })
      t.deepEqual({ ...await parkedOf(world, bad) }, { reason: 'REFUSED', sqlstate, attempts: RETRIES, data: { id: '1', value } })
      await until(async () => (await besides(world, bad)).every((line) => line.endsWith('PUBLISHED')), { within: WITHIN, what: 'its records are acked' })
      t.deepEqual(await besides(world, bad), ['retry 2 PUBLISHED', 'retry 1 PUBLISHED', 'error 2 PUBLISHED'])
      const ofIt = (): Record<string, unknown>[] => told.filter(({ SEQ_ID }) => SEQ_ID === bad)
      await until(() => ofIt().length > 0, { within: WITHIN, what: 'the record of its failure' })
      const records = ofIt()
      t.is(records.length, 1)
      t.like(records[0], {
        recipients: ['admin@abc.com'], error: { code: 'REFUSED', sqlstate, side: 'deploy', attempts: RETRIES }, TABLENAME: table, DATA: { id: '1', value },
      })
      t.deepEqual([...await target.unsafe(`select id from app.${table} order by id`)], [{ id: 2 }])
      if (table !== 'checked') return
      await untilAll(world, [await one(world, { table, data: { id: '1', value: good } })], 'APPLIED')
      await untilAll(world, [bad], 'SUPERSEDED')
      seen(t, await audit(bad), { deploy: 'SUPERSEDED', attempt: RETRIES, failure: /settled by a newer image of its row$/ })
      t.deepEqual([...await target`select id, value from app.checked order by id`], [{ id: 1, value: 7 }, { id: 2, value: 7 }])
      t.is(await parkedOf(world, bad), undefined)
      t.deepEqual((await besides(world, bad)).length, RETRIES + 1)
    })
  }

  test(`I8 I11 I12 a value with a NUL character, which no target could take, ends at the door with its bytes; its neighbours in the body are applied, with ${databases}`, async (t) => {
    const world = await place(t, two)
    const { target, first, send } = world
    await target.unsafe('create table app.plain (id integer primary key, name text)')
    const [bad, good] = [{ id: '1', name: 'a\0b' }, { id: '2', name: 'ab' }]
    const answer = await send([{ table: 'plain', data: bad }, { table: 'plain', data: good }, ...others(world)])
    t.is(answer.status, 200)
    const [rejected, ...taken] = answer.json as { seq_id: string; rejected?: string; reason?: string }[]
    t.is(rejected?.reason, 'nul_character')
    await untilAll(world, taken.map(({ seq_id: seqId }) => seqId), 'APPLIED')
    const [kept] = await first<{ reason: string; state: string; body: Buffer }[]>`select reason, state, body from auditlog.rejected_request where id = ${rejected!.rejected!}`
    t.like(kept, { reason: 'nul_character', state: 'WAITING' })
    t.deepEqual((JSON.parse(String(kept?.body)) as { DATA: unknown }).DATA, bad)
    t.is((await first`select from auditlog.audit_log where table_name = 'plain'`).length, 1)
    t.deepEqual([...await target`select id, name from app.plain`], [{ id: 2, name: 'ab' }])
  })

  for (const { what, table, reason, break: breakIt } of BROKEN) {
    test(`I8 I10 I12 what is wrong with a table stops its relation, whose changes queue without an attempt and follow in order when it is mended, and others go on: ${what}, with ${databases}`, async (t) => {
      const world = await place(t, two)
      const { target, audit } = world
      await target.unsafe(`create table app.${table} (id integer primary key check (id > 0), name text, note text)`)
      await untilAll(world, [await one(world, { table, data: { id: '1', name: 'a', note: 'x' } })], 'APPLIED')
      const mend = await breakIt(world)
      const queue = await world.post(QUEUE.map((change) => ({ table, ...change })))
      await neighbours(world)
      await untilAll(world, queue, 'PARKED')
      const relation = async (): Promise<Record<string, unknown> | undefined> => (await target`select state, stopped_by, stop_reason from outbox.relation where source_table = ${table}`)[0]
      const stopped = await relation()
      t.like(stopped, { state: 'STOPPED', stopped_by: 'failure' })
      t.regex(String(stopped?.['stop_reason']), reason)
      for (const [at, seqId] of queue.entries()) await parkedWithoutAttempt(t, world, seqId, 'RELATION_STOPPED', null, QUEUE[at]!.data)
      await mend()
      await untilAll(world, queue, 'APPLIED')
      for (const seqId of queue) seen(t, await audit(seqId), { deploy: 'APPLIED', attempt: 0, failure: null })
      await until(async () => (await relation())?.['state'] === 'ACTIVE', { what: 'the relation is active' })
      t.deepEqual([...await target.unsafe(`select id, name, note from app.${table} order by id`)], [{ id: 1, name: 'c', note: 'y' }, { id: 2, name: 'a', note: 'z' }])
      await untilAll(world, [await one(world, { table, data: { id: '4', name: 'later', note: 'x' } })], 'APPLIED')
    })
  }

  /** Tried several times in vain, without an attempt; once the other row is there or gone it is applied. */
  async function waits(t: ExecutionContext, world: World, bad: string, data: unknown, sqlstate: string, release: Posted): Promise<void> {
    await until(async () => Number((await world.target`select waits from inbox.parked where seq_id = ${bad}`)[0]?.['waits']) >= 3, { within: WITHIN, what: 'it was tried three times' })
    await parkedWithoutAttempt(t, world, bad, 'WAITING', sqlstate, data)
    await untilAll(world, [await one(world, release), bad], 'APPLIED')
    seen(t, await world.audit(bad), { deploy: 'APPLIED', attempt: 0, failure: null })
    t.is(await parkedOf(world, bad), undefined)
    t.deepEqual(await besides(world, bad), [])
  }

  test(`I8 I9 I12 a change that waits for a foreign key's row uses no attempt and follows it; its neighbours are applied, with ${databases}`, async (t) => {
    const world = await place(t, two)
    await world.target.unsafe('create table app.parent (id integer primary key); create table app.child (id integer primary key, parent integer references app.parent)')
    const data = { id: '1', parent: '1' }
    const bad = await one(world, { table: 'child', data })
    await neighbours(world, { table: 'child', data: { id: '2' } })
    await waits(t, world, bad, data, '23503', { table: 'parent', data: { id: '1' } })
    t.deepEqual([...await world.target`select id, parent from app.child order by id`], [{ id: 1, parent: 1 }, { id: 2, parent: null }])
  })

  test(`I8 I9 I12 a change that waits for a unique value uses no attempt and takes it when it is free; its neighbours are applied, with ${databases}`, async (t) => {
    const world = await place(t, two)
    await world.target.unsafe('create table app.named (id integer primary key, name text unique)')
    await untilAll(world, [await one(world, { table: 'named', data: { id: '1', name: 'taken' } })], 'APPLIED')
    const data = { id: '2', name: 'taken' }
    const bad = await one(world, { table: 'named', data })
    await neighbours(world, { table: 'named', data: { id: '3', name: 'free' } })
    await waits(t, world, bad, data, '23505', { table: 'named', operation: 'DELETE', data: { id: '1', name: 'taken' } })
    t.deepEqual([...await world.target`select id, name from app.named order by id`], [{ id: 2, name: 'taken' }, { id: 3, name: 'free' }])
  })

  test(`I7 I9 I12 a change whose TIME lies in the future is parked as it is, without an attempt; its row and its neighbours go on, with ${databases}`, async (t) => {
    const world = await place(t, two)
    await world.target.unsafe('create table app.early (id integer primary key, name text)')
    const data = { id: '1', name: 'from tomorrow' }
    const bad = await one(world, { table: 'early', data, ahead: 86_400_000 })
    await neighbours(world, { table: 'early', data: { id: '1', name: 'from today' } }, { table: 'early', data: { id: '2', name: 'from today' } })
    await parkedWithoutAttempt(t, world, bad, 'CLOCK_AHEAD', null, data)
    t.deepEqual([...await world.target`select id, name from app.early order by id`], [{ id: 1, name: 'from today' }, { id: 2, name: 'from today' }])
  })

  test(`I9 I11 I12 a change that does not carry its key is parked as it is, without an attempt; its neighbours are applied, with ${databases}`, async (t) => {
    const world = await place(t, two)
    await world.target.unsafe('create table app.keyed (id integer primary key, name text)')
    const data = { name: 'nobody' }
    const bad = await one(world, { table: 'keyed', data })
    await neighbours(world, { table: 'keyed', data: { id: '1', name: 'somebody' } })
    await parkedWithoutAttempt(t, world, bad, 'NO_KEY', null, data)
    t.deepEqual([...await world.target`select id, name from app.keyed`], [{ id: 1, name: 'somebody' }])
  })
}
