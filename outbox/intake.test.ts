import { randomUUID } from 'node:crypto'
import test from 'ava'
import { openSlot, type Slot } from '../services/runtime/slot.ts'
import { connect, freshDatabase } from '../test/support/database.ts'
import { until } from '../test/support/until.ts'
import { BIG_CHANGE, insertGroup, lookUpRepeats, type Accepted, type Inserted } from './intake.ts'

const database = await freshDatabase()
const sql = connect(database.url)
const slots = [1, 2].map((n) => openSlot({ url: database.url, name: `intake test ${n}` }))
const [slot, other] = slots as [Slot, Slot]

test.after.always(async () => {
  await Promise.all([sql.end({ timeout: 5 }), ...slots.map((one) => one.close())])
  await database.drop()
})

function accepted(fields: Partial<Accepted> = {}): Accepted {
  return {
    eventKey: randomUUID(), contentHash: null, topic: 'db.informix.delta', source: 'INFORMIX', schema: 'testdb', table: 'test', operation: 'INSERT', dialect: 'v1',
    payload: '{"a": 1}', clean: null, rowKey: null, time: '2019-09-16 10:00:00.511189+00', traceparent: null, ...fields,
  }
}

const insert = async (on: Slot, changes: Accepted[]): Promise<Inserted[]> => [...await on.run((client) => insertGroup(client, changes))]
const inOrder = (rows: Inserted[]): Inserted[] => [...rows].sort((a, b) => a.ordinal - b.ordinal)

test.serial('I1 a group is in the log, in the outbox and among the keys, or in none', async (t) => {
  const group = [accepted({ rowKey: '["1"]', clean: '{"é":1}', traceparent: 'x' }), accepted({ payload: ' {"b" :  2}\n' }), accepted()]
  const rows = inOrder(await insert(slot, group))
  t.deepEqual(rows.map(({ ordinal }) => ordinal), [0, 1, 2])
  const ids = rows.map(({ seqId }) => seqId)
  t.deepEqual(ids, [...ids].sort((a, b) => Number(a) - Number(b)), 'numbers follow the order of the group')
  const logged = await sql`
    select p.seq_id, p.origin, p.producer_payload::text as payload, p.clean_payload, p.row_key, p.epoch, p.traceparent, p.source_time::text,
           e.position, e.attempt, e.bytes, e.lane = outbox.lane_of(64::smallint, 'testdb', 'test', p.row_key) as "itsLane", s.event_key
    from auditlog.producer_log p join outbox.event e using (seq_id) join outbox.seen s using (seq_id) where p.seq_id = any(${ids}::bigint[]) order by 1`
  t.deepEqual(logged.map((row) => row['event_key'] as string), group.map(({ eventKey }) => eventKey))
  t.like(logged[0], { origin: 1, payload: '{"a": 1}', clean_payload: '{"é":1}', row_key: '["1"]', epoch: 1, traceparent: 'x', position: ids[0], attempt: 0, bytes: 8, itsLane: true, source_time: '2019-09-16 10:00:00.511189+00' })
  t.like(logged[1], { payload: ' {"b" :  2}\n', clean_payload: null, bytes: 12, itsLane: true })

  const before = await sql`select count(*) from outbox.seen`
  await t.throwsAsync(insert(slot, [accepted(), accepted({ payload: '{broken' })]), { message: /json/ })
  t.deepEqual(await sql`select count(*) from outbox.seen`, before)
})

test.serial('I2 the same change twice in one group is one', async (t) => {
  const change = accepted()
  const rows = await insert(slot, [accepted(), change, change, change])
  t.deepEqual(inOrder(rows).map(({ ordinal }) => ordinal), [0, 1])
  t.deepEqual(await insert(slot, [change]), [])
  const [repeat] = await slot.run((client) => lookUpRepeats(client, [change.eventKey, randomUUID()]))
  t.is(repeat?.seqId, inOrder(rows)[1]?.seqId)
  t.like(await sql`select (select count(*)::int from auditlog.producer_log where seq_id = ${repeat?.seqId ?? ''}) as logged, (select count(*)::int from outbox.event where seq_id = ${repeat?.seqId ?? ''}) as waiting`, [{ logged: 1, waiting: 1 }])
})

test.serial('I2 two groups with the same keys in opposite order: no deadlock, one seq_id each', async (t) => {
  // Every insert into seen takes its time, so that the two are surely at work together.
  await sql.unsafe(`create function public.dawdle() returns trigger language plpgsql as $$ begin perform pg_sleep(0.03); return new; end $$;
    create trigger dawdle before insert on outbox.seen for each row execute function public.dawdle()`).simple()
  const group = Array.from({ length: 6 }, () => accepted())
  const [there, back] = await Promise.all([insert(slot, group), insert(other, [...group].reverse())])
  await sql`drop trigger dawdle on outbox.seen`
  t.is(there.length + back.length, 6)
  const repeats = await slot.run((client) => lookUpRepeats(client, group.map(({ eventKey }) => eventKey)))
  t.is(new Set(repeats.map(({ seqId }) => seqId)).size, 6)
  const [counted] = await sql`select count(*)::int as n from auditlog.producer_log where seq_id = any(${repeats.map(({ seqId }) => seqId)}::bigint[])`
  t.is(counted?.['n'], 6)
})

test.serial('I2 a repeat that comes before the first is committed waits and finds its seq_id', async (t) => {
  const change = accepted()
  const holder = await sql.reserve()
  await holder`begin`
  await holder`insert into outbox.seen (event_key, seq_id) values (${change.eventKey}, 4711)`
  const waiting = insert(slot, [change])
  await until(async () => (await sql`select from pg_stat_activity where application_name = 'deltapost intake test 1' and wait_event_type = 'Lock'`).length === 1)
  await holder`commit`
  holder.release()
  t.deepEqual(await waiting, [])
  t.is((await slot.run((client) => lookUpRepeats(client, [change.eventKey])))[0]?.seqId, '4711')
})

test.serial('I4 no number is handed out to a transaction that has no id yet', async (t) => {
  const change = accepted()
  const holder = await sql.reserve()
  await holder`begin`
  await holder`insert into outbox.seen (event_key, seq_id) values (${change.eventKey}, 1)`
  // One call in 32 writes to the log of Postgres and takes an id by that; these are spent first.
  const [{ start } = { start: '0' }] = await sql<{ start: string }[]>`select max(nextval('outbox.position')) as start from generate_series(1, 3)`
  const waiting = insert(slot, [change])
  const [seen] = await until(async () => {
    const rows = await sql<{ xid: string | null }[]>`select backend_xid::text as xid from pg_stat_activity where application_name = 'deltapost intake test 1' and wait_event_type = 'Lock'`
    return rows.length === 1 ? rows : undefined
  })
  const [{ last } = { last: '0' }] = await sql<{ last: string }[]>`select last_value as last from outbox.position`
  await holder`rollback`
  holder.release()
  await waiting
  t.true(BigInt(last) > BigInt(start), 'the number is out')
  t.not(seen?.xid, null)
})

test.serial('the epoch is that of the relation at the moment of intake', async (t) => {
  await sql`insert into outbox.relation (source, source_schema, source_table, target_schema, target_table, known_from, epoch) values ('INFORMIX', 'testdb', 'aged', 'testdb', 'aged', 'payload', 7)`
  const [row] = await insert(slot, [accepted({ table: 'aged' })])
  t.deepEqual([...await sql`select epoch from auditlog.producer_log where seq_id = ${row?.seqId ?? ''}`], [{ epoch: 7 }])
})

test.serial('a change too big for a group arrives as it is', async (t) => {
  const payload = `{"a": "${'"\\é'.replace(/["\\]/g, '\\$&').repeat(BIG_CHANGE / 4)}"}`
  const [row] = await insert(slot, [accepted({ payload, clean: payload.slice(0, -1) + '   }' })])
  const [there] = await sql<{ same: boolean; clean: number; bytes: number }[]>`
    select producer_payload::text = ${payload} as same, length(clean_payload) as clean, e.bytes
    from auditlog.producer_log join outbox.event e using (seq_id) where seq_id = ${row?.seqId ?? ''}`
  t.deepEqual({ ...there }, { same: true, clean: payload.length + 3, bytes: Buffer.byteLength(payload) + 3 })
})

test.serial('an insert does not fail for want of a partition, and add_partitions takes over what lies in the default one', async (t) => {
  await sql`select setval('outbox.position', 60000000)`
  const [row] = await insert(slot, [accepted()])
  const where = async (): Promise<unknown> => (await sql`select tableoid::regclass::text as place from auditlog.producer_log where seq_id = ${row?.seqId ?? ''}`)[0]?.['place']
  t.is(await where(), 'auditlog.producer_log_default')
  await slot.run((client) => client`select auditlog.add_partitions()`)
  t.is(await where(), 'auditlog.producer_log_000012')
})

test.serial('I10 a clock of the database that stepped back by a day makes no TIME look ahead; one that did not is believed', async (t) => {
  const received = async (time: Date): Promise<number> => {
    const [row] = await insert(slot, [accepted({ time: time.toISOString() })])
    const [logged] = await sql<{ ms: number }[]>`select extract(epoch from received_at)::float8 * 1000 as ms from auditlog.producer_log where seq_id = ${row!.seqId}`
    return logged!.ms
  }
  const clock = async (shift: string): Promise<void> => {
    await sql.unsafe(`create or replace function shifted.clock_timestamp() returns timestamptz language sql as $$ select pg_catalog.clock_timestamp() + interval '${shift}' $$`)
  }
  const near = (ms: number, when: number): boolean => Math.abs(ms - when) < 120_000
  const now = Date.now()
  const [hour, day] = [3_600_000, 86_400_000]
  await sql`create schema shifted`
  await clock('0')
  await slot.run((client) => client`set search_path = shifted, pg_catalog, public`)
  try {
    t.true(near(await received(new Date(now - hour)), now), 'an older TIME says nothing of the receipt')
    t.true(near(await received(new Date(now + day)), now), 'ahead of the database, which is as it was')
    await clock('-1 hour')
    t.true(near(await received(new Date(now)), now), 'behind what it was: TIME and our clock agree')
    await clock('-1 day')
    t.true(near(await received(new Date(now - 2 * day)), now), 'an old TIME does not make the clock right')
    t.true(near(await received(new Date(now)), now))
    t.true(near(await received(new Date(now + day)), now), 'ahead of our clock too')
    await clock('1 day')
    t.true(near(await received(new Date(now)), now + day), 'a step forward is not seen')
    await clock('0')
    t.true(near(await received(new Date(now)), now), 'and is over when the clock is right again')
    t.true(near(await received(new Date(now + day)), now))
  } finally {
    await slot.run((client) => client`reset search_path`)
  }
})
