import test from 'ava'
import fc from 'fast-check'
import { freshDatabase } from '../test/support/database.ts'
import { outboxConnection, writeEvents } from '../test/support/events.ts'
import type { GivenEvent } from '../test/support/events.ts'
import { ack } from './ack.ts'
import { claimLanes } from './claim.ts'
import { nextEvents } from './pending.ts'
import { receivedAtOf } from './record.ts'
import type { PendingEvent, ReadableLane } from './pending.ts'
import type { Sql } from './sql.ts'

const LIMITS = { rows: 2_000, bytes: 8 << 20 }

async function given(t: { teardown: (end: () => Promise<void>) => void }): Promise<{ sql: Sql; other: Sql }> {
  const { url, drop } = await freshDatabase()
  const [sql, other] = [outboxConnection(url), outboxConnection(url)]
  t.teardown(async () => {
    await Promise.all([sql, other].map((one) => one.end({ timeout: 1 })))
    await drop()
  })
  return { sql, other }
}

function lanes(floor = '0', inflight: Iterable<string> = []): (ReadableLane & { inflight: Set<string> })[] {
  // Positions of other lanes do no harm in a lane's set but make its limit larger, as a busy relay would.
  return Array.from({ length: 64 }, (_, lane) => ({ lane, floor, inflight: new Set(inflight) }))
}

async function only(sql: Sql, event: GivenEvent): Promise<PendingEvent> {
  const [seqId] = await writeEvents(sql, [event])
  const events = await nextEvents(sql, lanes(String(BigInt(seqId!) - 1n)), LIMITS)
  return events[0]!
}

test('events come lane by lane in the order of their positions, without those in flight', async (t) => {
  const { sql } = await given(t)
  const seqIds = await writeEvents(sql, Array.from({ length: 300 }, (_, n) => ({ key: String(n % 40) })))
  const flying = new Set(seqIds.filter((_, n) => n % 3 === 0))
  const events = await nextEvents(sql, lanes('0', flying), LIMITS)
  t.deepEqual(events.map(({ position }) => position).toSorted(), seqIds.filter((id) => !flying.has(id)).toSorted())
  const sorted = events.toSorted((a, b) => a.lane - b.lane || Number(BigInt(a.position) - BigInt(b.position)))
  t.deepEqual([...events], sorted)
})

test('I3 what commits late with a lower position than everything read before is read all the same', async (t) => {
  const { sql, other } = await given(t)
  await other`begin`
  const [late] = await writeEvents(other, [{ key: '1' }])
  const seqIds = await writeEvents(sql, [{ key: '1' }, { key: '1' }])
  const before = await nextEvents(sql, lanes(), LIMITS)
  t.deepEqual(before.map(({ position }) => position), seqIds)
  await other`commit`
  const after = await nextEvents(sql, lanes('0', seqIds), LIMITS)
  t.deepEqual(after.map(({ position }) => position), [late])
})

test('a full lane does not keep the others waiting', async (t) => {
  const { sql } = await given(t)
  await writeEvents(sql, [...Array.from({ length: 500 }, () => ({ key: 'hot' })), ...Array.from({ length: 30 }, (_, n) => ({ key: String(n) }))])
  const events = await nextEvents(sql, lanes(), { ...LIMITS, rows: 100 })
  t.is(events.length, 100 - Math.max(0, 100 - events.length))
  t.true(new Set(events.map(({ lane }) => lane)).size > 10)
})

test('a read ends at its limit of bytes, after a whole beginning of each lane, and one event always passes', async (t) => {
  const { sql } = await given(t)
  await writeEvents(sql, Array.from({ length: 10 }, (_, n) => ({ key: String(n), payload: JSON.stringify({ DATA: 'x'.repeat(1_000) }) })))
  t.is((await nextEvents(sql, lanes(), { rows: 100, bytes: 3_500 })).length, 4)
  t.is((await nextEvents(sql, lanes(), { rows: 100, bytes: 10 })).length, 1)
})

test('an event that is due later is not pending', async (t) => {
  const { sql } = await given(t)
  const [, now] = await writeEvents(sql, [{ key: '1', dueIn: '1 hour' }, { key: '1' }, { key: '1', dueIn: '-1 second' }])
  const events = await nextEvents(sql, lanes(), LIMITS)
  t.is(events.length, 2)
  t.is(events[0]!.position, now!)
})

test('an event whose change is gone is shown, not skipped', async (t) => {
  const { sql } = await given(t)
  const [seqId] = await writeEvents(sql, [{ key: '1' }])
  await sql`delete from auditlog.producer_log`
  const [event] = await nextEvents(sql, lanes(), LIMITS)
  t.is(event?.position, seqId)
  t.is(event?.topicname, null)
})

test('identity, version to the microsecond, key, time and trace travel as text', async (t) => {
  const { sql } = await given(t)
  const event = await only(sql, { key: '16', table: 'Té"st', topic: 'db.x', sourceTime: '2026-11-01 05:30:00.000007+00', traceparent: '00-ab-cd-01' })
  t.is(event.id, `1:${event.position}:0`)
  t.is(event.version, `1:${Date.UTC(2026, 10, 1, 5, 30) * 1_000 + 7}:${event.position}`)
  t.deepEqual(JSON.parse(event.key!), ['app', 'Té"st', '16'])
  t.is(event.topicname, 'db.x')
  t.is(event.traceparent, '00-ab-cd-01')
  t.true(Math.abs(receivedAtOf(event.value!)! - Date.now()) < 60_000)
})

test('a change without a key has the table as its record key', async (t) => {
  const { sql } = await given(t)
  const [seqId = ''] = await writeEvents(sql, [{ key: '1' }, { key: '2' }])
  await sql`update auditlog.producer_log set row_key = case when seq_id = ${seqId} then null else '[]' end`
  const events = await nextEvents(sql, lanes(), LIMITS)
  t.deepEqual(events.map(({ key }) => key), ['["app","test"]', '["app","test"]'])
})

const bodies: Record<string, { payload: string; clean?: string; expected: object }> = {
  plain: { payload: '{"DATA":{"id":"1"}}', expected: { DATA: { id: '1' } } },
  'led by blanks': { payload: ' \t\r\n {"DATA":1}', expected: { DATA: 1 } },
  empty: { payload: '{}', expected: {} },
  'empty with blanks': { payload: `  {${' \n\t'.repeat(500)}}  `, expected: {} },
  'an empty name': { payload: '{"":null}', expected: { '': null } },
  'a SEQ_ID of its own, taken out at intake': { payload: '{"SEQ_ID":999,"DATA":1}', clean: '{"DATA":1}', expected: { DATA: 1 } },
  'nothing but a SEQ_ID of its own': { payload: '{"SEQ_ID":999}', clean: '{ }', expected: {} },
  'letters of all kinds': { payload: '{"DATA":"Žluťoučký кот 猫 🐈 \\u0000 \\ud800 {\\"}"}', expected: { DATA: 'Žluťoučký кот 猫 🐈 \u0000 \ud800 {"}' } },
}
for (const [name, { payload, clean, expected }] of Object.entries(bodies)) {
  test(`the posted members follow ours in a body that is ${name}`, async (t) => {
    const { sql } = await given(t)
    const event = await only(sql, { key: '1', payload, ...(clean === undefined ? {} : { clean }) })
    const { RECEIVED_AT: received, ...members } = JSON.parse(event.value!) as Record<string, unknown>
    t.regex(String(received), /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$/)
    t.deepEqual(members, { SEQ_ID: event.position, TOPICNAME: 'topic', SOURCE: 'INFORMIX', ...expected })
    t.true(event.value!.startsWith(`{"SEQ_ID":"${event.position}","TOPICNAME":"topic","SOURCE":"INFORMIX"`))
  })
}

test('a body of 20 MB comes back byte for byte behind our members, though it is above the limit', async (t) => {
  const { sql } = await given(t)
  const payload = ` {"DATA":"${'0123456789abcdef é'.repeat(1_100_000)}"}`
  t.true(Buffer.byteLength(payload) > 20e6)
  const event = await only(sql, { key: '1', payload })
  const ours = /^\{"SEQ_ID":"\d+","TOPICNAME":"topic","SOURCE":"INFORMIX","RECEIVED_AT":"[^"]+",/.exec(event.value!)?.[0] ?? ''
  t.true(event.value === ours + payload.slice(2))
})

test('whatever object is posted, in whatever spelling, the record has its members and ours', async (t) => {
  const { sql } = await given(t)
  const blanks = fc.string({ unit: fc.constantFrom(' ', '\t', '\n', '\r'), maxLength: 4 })
  const member = fc.dictionary(fc.string().filter((name) => !['SEQ_ID', 'TOPICNAME', 'SOURCE', 'RECEIVED_AT', '__proto__'].includes(name)), fc.jsonValue(), { maxKeys: 4 })
  await fc.assert(
    fc.asyncProperty(member, blanks, blanks, fc.constantFrom(undefined, 1, '\t'), fc.string({ minLength: 1 }).filter((text) => !text.includes('\0') && text.isWellFormed()),
      async (posted, before, inside, indent, source) => {
        const text = JSON.stringify(posted, null, indent)
        const event = await only(sql, { key: '1', payload: `${before}{${inside}${text.slice(1)}${before}`, source })
        const { RECEIVED_AT: received, ...members } = JSON.parse(event.value!) as Record<string, unknown>
        t.is(receivedAtOf(event.value!), Date.parse(String(received)))
        t.deepEqual(members, { SEQ_ID: event.position, TOPICNAME: 'topic', SOURCE: source, ...JSON.parse(text) as object })
      }),
    { numRuns: 150 },
  )
})

type Side = { kind: string; seqId: string; attempt?: number; origin?: number | null; head?: string; topic?: string | null }

async function sideEvent(sql: Sql, { kind, seqId, attempt = 1, origin = null, head = '"recipients":["a"],"error":{"code":"X"}', topic = 'errors' }: Side): Promise<PendingEvent> {
  await sql`delete from outbox.event`
  await sql`
    insert into outbox.event (lane, position, seq_id, attempt, kind, bytes, origin, topic, head)
    values (outbox.side_lane(${kind}, ${seqId}), nextval('outbox.position'), ${seqId}, ${attempt}, ${kind}, 10, ${origin}, ${topic}, ${head})`
  const all = [10_000, 10_001, 10_002, 10_003, 20_000, 20_001, 20_002, 20_003].map((lane) => ({ lane, floor: '0', inflight: new Set<string>() }))
  return (await nextEvents(sql, all, LIMITS))[0]!
}

async function parkAs(sql: Sql, origin: number, seqId: string, payload: string): Promise<void> {
  await sql`
    insert into inbox.parked (origin, seq_id, relation, epoch, time, reason, message, topic, record_key, payload, traceparent)
    values (${origin}, ${seqId}, 1, 3, 1700000000000001, 'REFUSED', 'no', 'changes', '["app","test","1"]', ${payload}, '00-ab-cd-01')`
}

test('a retry is the parked record as it was consumed, under its attempt, own or of another origin', async (t) => {
  const { sql } = await given(t)
  const [seqId = ''] = await writeEvents(sql, [{ key: '1' }])
  for (const origin of [1, 7]) {
    await parkAs(sql, origin, seqId, `{"SEQ_ID":"${seqId}","ORIGIN":${origin}}`)
    const event = await sideEvent(sql, { kind: 'retry', seqId, attempt: 2, origin: origin === 1 ? null : origin })
    t.like(event, {
      topicname: 'changes', id: `${origin}:${seqId}:2`, version: `3:1700000000000001:${seqId}`, key: '["app","test","1"]',
      value: `{"SEQ_ID":"${seqId}","ORIGIN":${origin}}`, traceparent: '00-ab-cd-01',
    })
  }
})

test('the record of a failure has its members in front of the parked record, or of the change that was never published', async (t) => {
  const { sql } = await given(t)
  const [seqId = ''] = await writeEvents(sql, [{ key: '1', payload: '{"DATA":1}', topic: 'changes' }])
  const never = await sideEvent(sql, { kind: 'error', seqId, attempt: 3 })
  t.like(never, { topicname: 'errors', id: `1:${seqId}:3`, key: '["app","test","1"]' })
  t.regex(never.value!, /^\{"recipients":\["a"\],"error":\{"code":"X"\},"SEQ_ID":/)
  t.like(JSON.parse(never.value!), { DATA: 1, TOPICNAME: 'changes' })
  await parkAs(sql, 1, seqId, '{"DATA":2}')
  t.is((await sideEvent(sql, { kind: 'error', seqId })).value, '{"recipients":["a"],"error":{"code":"X"},"DATA":2}')
  await sql`update inbox.parked set payload = ' { } '`
  t.deepEqual(JSON.parse((await sideEvent(sql, { kind: 'error', seqId })).value!), { recipients: ['a'], error: { code: 'X' } })
})

test('a retry or the record of a failure whose change healed is obsolete; that of another origin is not taken for ours', async (t) => {
  const { sql } = await given(t)
  const [seqId = ''] = await writeEvents(sql, [{ key: '1' }])
  t.like(await sideEvent(sql, { kind: 'retry', seqId }), { obsolete: true, topicname: null })
  t.like(await sideEvent(sql, { kind: 'error', seqId, origin: 7 }), { obsolete: true, topicname: null })
  t.is((await sideEvent(sql, { kind: 'error', seqId })).obsolete, undefined)
})

/** The same statement with its plan instead of its rows. */
function explaining(sql: Sql, lines: string[]): Sql {
  const explain = async (strings: TemplateStringsArray, ...values: string[]): Promise<never[]> => {
    const text = [`explain (analyze, buffers) ${strings[0]}`, ...strings.slice(1)]
    const rows = await sql<{ 'QUERY PLAN': string }[]>(Object.assign(text, { raw: text }), ...values)
    lines.push(...rows.map((row) => row['QUERY PLAN']))
    return []
  }
  return explain as unknown as Sql // only the call is used
}

async function planOf(sql: Sql, of: readonly ReadableLane[]): Promise<string> {
  const lines: string[] = []
  await nextEvents(explaining(sql, lines), of, LIMITS)
  return lines.join('\n')
}

async function writeMany(sql: Sql): Promise<string[]> {
  const seqIds: string[] = []
  for (let n = 0; n < 4; n++) seqIds.push(...await writeEvents(sql, Array.from({ length: 5_000 }, (_, k) => ({ key: String(k) }))))
  return seqIds
}

const walksTheIndex = /Index (Only )?Scan using event_pkey on event/
const anythingElse = /Seq Scan on event|Bitmap Heap Scan on event|Seq Scan on producer_log/

test('the read walks the primary key of a full table, with thousands in flight too', async (t) => {
  const { sql } = await given(t)
  const seqIds = await writeMany(sql)
  for (const analyzed of [false, true]) {
    if (analyzed) await sql`analyze outbox.event`
    for (const flying of [[], seqIds.slice(0, 4_000)]) {
      const full = await planOf(sql, lanes('0', flying))
      t.regex(full, walksTheIndex)
      t.notRegex(full, anythingElse)
    }
  }
})

test('a read that was planned on an empty table does not read the whole of a full one', async (t) => {
  const { sql } = await given(t)
  await sql`analyze outbox.event`
  // From the sixth execution on Postgres would keep a plan, if the connection did not forbid it.
  for (let n = 0; n < 8; n++) await nextEvents(sql, lanes(), LIMITS)
  await writeMany(sql)
  await sql`begin`
  t.is((await nextEvents(sql, lanes(), LIMITS)).length, 2_000)
  const [read] = await sql<{ rows: string }[]>`select s.seq_tup_read as rows from pg_stat_xact_user_tables s where s.schemaname = 'outbox' and s.relname = 'event'`
  t.is(read?.rows, '0')
  await sql`commit`
})

test('a floor spares the entries that an old snapshot keeps alive', async (t) => {
  const { sql, other } = await given(t)
  await other`begin isolation level repeatable read`
  await other`select count(*) from outbox.event` // an old snapshot
  const seqIds = await writeMany(sql)
  const claims = await claimLanes(sql, 'a', 72, 60_000)
  const gone = await sql<{ lane: number; position: string }[]>`select e.lane, e.position from outbox.event e`
  await ack(sql, 'a', claims, gone.map((event) => ({ ...event, partition: 0, offset: '0' })))
  const [, without] = /^.*Buffers: shared hit=(\d+)/m.exec(await planOf(sql, lanes('0'))) ?? []
  const [, withFloor] = /^.*Buffers: shared hit=(\d+)/m.exec(await planOf(sql, lanes(seqIds.at(-1)))) ?? []
  t.true(Number(without) > 5_000, `without a floor ${without} buffers`)
  t.true(Number(withFloor) < 1_000, `with a floor ${withFloor} buffers`)
  await other`rollback`
})
