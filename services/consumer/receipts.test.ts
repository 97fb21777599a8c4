import { Writable } from 'node:stream'
import test from 'ava'
import type { ExecutionContext } from 'ava'
import { pino } from 'pino'
import { becomeSecond, readReceipts, readStatementTexts, tellOutcomes, tellStatements } from '../../outbox/receipt.ts'
import { freshDatabase } from '../../test/support/database.ts'
import { arrival, consumerRig } from '../../test/support/arrivals.ts'
import type { Rig } from '../../test/support/arrivals.ts'
import { openProxy } from '../../scripts/torture/proxy.ts'
import { until } from '../../test/support/until.ts'
import { openSlot } from '../runtime/slot.ts'
import type { Slot } from '../runtime/slot.ts'
import { shipOnce, shipReceipts } from './receipts.ts'

type Two = {
  /** Applies in the second database. */
  rig: Rig
  first: Slot
  target: Slot
  ship(holder?: string): { ended: Promise<void>; stop: () => Promise<void> }
  said: { level: number; msg: string }[]
  away: { first: () => void; target: () => void; mend: () => void }
  outcomes(slot: Slot): Promise<string[]>
  waiting(): Promise<number>
}

/** Two databases behind proxies, and the apply of the second without Kafka. */
async function two(t: ExecutionContext): Promise<Two> {
  const [a, b] = [await freshDatabase(), await freshDatabase()]
  const proxies = [await openProxy(a.url), await openProxy(b.url)] as const
  const [first, target] = [openSlot({ url: a.url, name: 'test' }), openSlot({ url: b.url, name: 'test' })]
  const rig = await consumerRig(b.url)
  const said: Two['said'] = []
  const log = pino({ level: 'info' }, new Writable({ write: (line: Buffer, _encoding, done) => { said.push(JSON.parse(String(line)) as Two['said'][number]); done() } }))
  const stops: (() => Promise<void>)[] = []
  t.timeout(60_000)
  t.teardown(async () => {
    await Promise.all(stops.map((stop) => stop()))
    await Promise.all([first.close(), target.close(), rig.close(), ...proxies.map((proxy) => proxy.close())])
    await Promise.all([a.drop(), b.drop()])
  })
  await target.run((sql) => becomeSecond(sql, 1))
  await rig.rows('create schema app')
  await rig.rows('create table app.account (id integer primary key, name varchar(10))')
  return {
    rig, first, target, said,
    ship(holder = 'one') {
      const stopping = new AbortController()
      const slots = [openSlot({ url: proxies[0].url, name: 'ship' }), openSlot({ url: proxies[1].url, name: 'ship' })] as const
      const ended = shipReceipts({ first: slots[0], target: slots[1], holder, signal: stopping.signal, log })
      ended.catch(() => undefined)
      const stop = async (): Promise<void> => {
        stopping.abort()
        await Promise.allSettled([ended])
        await Promise.all(slots.map((slot) => slot.close()))
      }
      stops.push(stop)
      return { ended, stop }
    },
    away: { first: () => proxies[0].cut(), target: () => proxies[1].cut(), mend: () => proxies.forEach((proxy) => proxy.mend()) },
    outcomes: (slot) => slot.run(async (sql) => (await sql<{ line: string }[]>`
      select concat_ws(' ', origin, seq_id, status, attempt, failure, applied_at) as line from inbox.applied order by origin, seq_id`).map(({ line }) => line)),
    waiting: () => target.run(async (sql) => (await sql`select from inbox.receipt`).length),
  }
}

const insert = (id: number, time = id): ReturnType<typeof arrival> => arrival('account', 'INSERT', time, { id: String(id), name: `row ${id}` })

test('I9 what is applied in the second database is told to the first, with what became of it later', async (t) => {
  const { rig, first, target, ship, outcomes, waiting } = await two(t)
  ship()
  await rig.apply(0, insert(1), insert(2), arrival('account', 'INSERT', 1, { id: '1', name: 'older' }))
  await until(async () => (await outcomes(first)).length === 3)
  await rig.rows(`update inbox.applied set status = 'SKIPPED', failure = 'by an administrator' where seq_id = (select max(seq_id) from inbox.applied)`)
  await until(async () => (await outcomes(first)).some((line) => line.includes('SKIPPED')))
  await until(async () => await waiting() === 0)
  t.deepEqual(await outcomes(first), await outcomes(target))
})

test('I10 the first database may be away: applying goes on, it is said once, and all is told when it is back', async (t) => {
  const { rig, first, target, ship, away, said, outcomes, waiting } = await two(t)
  away.first()
  ship() // started while it is away
  for (let at = 0; at < 5; at += 1) await rig.apply(0, ...Array.from({ length: 500 }, (_, n) => insert(at * 500 + n)))
  await until(() => said.length > 0)
  t.is(await waiting(), 2_500)
  t.is((await rig.rows('select from app.account')).length, 2_500)
  // Long enough for several tries: half a second, one, two.
  await until(async () => (await rig.rows(`select 1 where clock_timestamp() > (select min(noted_at) + interval '4 s' from inbox.receipt)`)).length > 0)
  t.deepEqual(said.map(({ level }) => level), [40], 'one warning, whatever the number of tries')
  away.mend()
  await until(async () => await waiting() === 0, { within: 20_000 })
  t.deepEqual(await outcomes(first), await outcomes(target))
  t.deepEqual(said.map(({ level }) => level), [40, 30])
})

test('I10 the second database may be away, in the midst of shipping too', async (t) => {
  const { rig, first, target, ship, away, outcomes, waiting } = await two(t)
  await rig.apply(0, ...Array.from({ length: 900 }, (_, n) => insert(n)))
  ship()
  await until(async () => (await outcomes(first)).length > 0)
  away.target()
  await rig.apply(0, ...Array.from({ length: 900 }, (_, n) => insert(900 + n)))
  away.mend()
  await until(async () => await waiting() === 0, { within: 20_000 })
  t.deepEqual(await outcomes(first), await outcomes(target))
})

test('I12 a consumer that ends between any two steps of a shipment repeats it without harm', async (t) => {
  const { rig, first, target, outcomes, waiting } = await two(t)
  await rig.apply(0, insert(1), insert(2))
  t.deepEqual(await outcomes(first), [], 'applied, nothing shipped')
  const nowhere = openSlot({ url: 'postgres://127.0.0.1:1/nowhere', name: 'test' })
  t.teardown(() => nowhere.close())
  await t.throwsAsync(shipOnce({ first: nowhere, target, holder: 'killed' }, [1]))
  t.is(await waiting(), 2, 'what was not told is not deleted')

  const receipts = await target.run((sql) => readReceipts(sql, [1], 'killed')) ?? []
  const texts = await target.run((sql) => readStatementTexts(sql, receipts))
  await first.run((sql) => tellStatements(sql, texts))
  t.deepEqual(await outcomes(first), [], 'the statements told, the outcomes not')
  t.is(await shipOnce({ first, target, holder: 'killed' }, [1]), 2)
  t.deepEqual(await outcomes(first), await outcomes(target))

  await rig.apply(0, insert(3))
  const again = await target.run((sql) => readReceipts(sql, [1], 'killed')) ?? []
  await first.run((sql) => tellOutcomes(sql, again, texts))
  t.is(await waiting(), 1, 'told, not deleted')
  await rig.rows(`update inbox.applied set status = 'SKIPPED' where seq_id = ${again[0]?.seqId ?? ''}`)
  await shipOnce({ first, target, holder: 'killed' }, [1])
  t.is(await waiting(), 0)
  t.deepEqual(await outcomes(first), await outcomes(target))
  t.is((await first.run((sql) => sql`select from inbox.statement`)).length, 1, 'one statement, however often it was told')
})

test('two consumers ship at the same time, and one that has the turn is followed by another when it ends', async (t) => {
  const { rig, first, target, ship, outcomes, waiting } = await two(t)
  const one = ship('one')
  ship('two')
  for (let at = 0; at < 20; at += 1) await rig.apply(0, ...Array.from({ length: 50 }, (_, n) => insert(at * 50 + n)))
  await until(async () => await waiting() === 0)
  await one.stop()
  await rig.apply(0, insert(5_000))
  await until(async () => await waiting() === 0, { within: 20_000 })
  t.deepEqual(await outcomes(first), await outcomes(target))
})

test('databases with one origin are refused, also when the first comes back with it', async (t) => {
  const { first, ship, away } = await two(t)
  await first.run((sql) => sql`update outbox.database set origin = 2`)
  await t.throwsAsync(ship().ended, { code: 'ORIGIN_TAKEN' })
  await first.run((sql) => sql`update outbox.database set origin = 1`)
  const { ended } = ship()
  away.first()
  await first.run((sql) => sql`update outbox.database set origin = 2`)
  away.mend()
  await t.throwsAsync(ended, { code: 'ORIGIN_TAKEN' })
})

test('one database under both addresses ships nothing, and a target that keeps no receipts is refused', async (t) => {
  const { first, target } = await two(t)
  const log = pino({ level: 'silent' })
  const { signal } = new AbortController()
  await t.notThrowsAsync(shipReceipts({ first, target: first, holder: 'x', signal, log }))
  await target.run((sql) => sql`select inbox.keep_receipts(false)`)
  await t.throwsAsync(shipReceipts({ first, target, holder: 'x', signal, log }), { code: 'TARGET_NOT_SECOND' })
})
