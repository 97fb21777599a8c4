import test from 'ava'
import { freshDatabase } from '../test/support/database.ts'
import { outboxConnection } from '../test/support/events.ts'
import { until } from '../test/support/until.ts'
import { announce, claimLanes, releaseLanes, renewLanes, withdraw } from './claim.ts'
import { endLeases, endWaits } from './step-back.ts'
import type { Sql } from './sql.ts'

async function given(t: { teardown: (end: () => Promise<void>) => void }, connections: number): Promise<Sql[]> {
  const { url, drop } = await freshDatabase()
  const list = Array.from({ length: connections }, () => outboxConnection(url))
  t.teardown(async () => {
    await Promise.all(list.map((sql) => sql.end({ timeout: 1 })))
    await drop()
  })
  return list
}

test('two relays that claim at the same moment get disjoint lanes, and all of them', async (t) => {
  const [one, two] = await given(t, 2) as [Sql, Sql]
  const [a, b] = await Promise.all([claimLanes(one, 'a', 36, 2_000), claimLanes(two, 'b', 36, 2_000)])
  const rest = await claimLanes(one, 'a', 72, 2_000) // what the second skipped while the first had its locks
  const lanes = [...a, ...b, ...rest].map(({ lane }) => lane).sort((x, y) => x - y)
  t.deepEqual(lanes, [...Array.from({ length: 64 }, (_, lane) => lane), 10000, 10001, 10002, 10003, 20000, 20001, 20002, 20003])
})

test('a claim takes no more than it asks for, and each one has a greater term', async (t) => {
  const [sql] = await given(t, 1) as [Sql]
  const first = await claimLanes(sql, 'a', 3, 2_000)
  t.is(first.length, 3)
  t.true(first.every(({ term, floor }) => term === '1' && floor === '0'))
  t.is((await releaseLanes(sql, 'a', first)).length, 3)
  const again = await claimLanes(sql, 'b', 72, 2_000)
  t.deepEqual(again.filter(({ term }) => term === '2').map(({ lane }) => lane).sort(), first.map(({ lane }) => lane).sort())
})

test('I5 a lane that was claimed by another is not renewed, and not released, by the one who slept', async (t) => {
  const [sql] = await given(t, 1) as [Sql]
  const slept = await claimLanes(sql, 'sleeper', 2, 0)
  const lanes = slept.map(({ lane }) => lane)
  await until(async () => (await sql`select from outbox.lane where lane in ${sql(lanes)} and held_until < now()`).length === 2)
  const taken = (await claimLanes(sql, 'successor', 72, 60_000)).filter(({ lane }) => lanes.includes(lane))
  t.is(taken.length, 2)
  t.deepEqual(await renewLanes(sql, 'sleeper', slept, 60_000), [])
  t.deepEqual(await releaseLanes(sql, 'sleeper', slept), [])
  t.deepEqual((await renewLanes(sql, 'successor', taken, 60_000)).sort(), [...lanes].sort())
})

test('I5 the same relay cannot use an earlier claim of its own', async (t) => {
  const [sql] = await given(t, 1) as [Sql]
  const [before] = await claimLanes(sql, 'a', 1, 0)
  await until(async () => (await sql`select from outbox.lane where held_until < now()`).length === 72)
  await claimLanes(sql, 'a', 72, 60_000)
  t.deepEqual(await renewLanes(sql, 'a', [before!], 60_000), [])
})

test('the living are counted; who withdrew or died is not', async (t) => {
  const [sql] = await given(t, 1) as [Sql]
  t.deepEqual(await announce(sql, 'a', 60_000), { lanes: 72, living: 1, back: false })
  t.deepEqual(await announce(sql, 'b', 60_000), { lanes: 72, living: 2, back: false })
  await sql`insert into outbox.relay (holder, alive_until) values ('dead', now())`
  t.deepEqual(await announce(sql, 'a', 60_000), { lanes: 72, living: 2, back: false })
  await withdraw(sql, 'b')
  t.deepEqual(await announce(sql, 'a', 60_000), { lanes: 72, living: 1, back: false })
})

test('I10 a relay notices that the clock of the database stepped back by an hour, once, and a lane that another left then is free within two leases', async (t) => {
  const [sql] = await given(t, 1) as [Sql]
  await announce(sql, 'a', 500)
  await announce(sql, 'died', 500)
  await claimLanes(sql, 'died', 72, 500)
  // What was written an hour ahead, with the clock that is now.
  await sql`update outbox.relay set alive_until = alive_until + interval '1 hour'`
  await sql`update outbox.lane set held_until = held_until + interval '1 hour'`
  t.true((await announce(sql, 'a', 500)).back)
  t.false((await announce(sql, 'b', 500)).back, 'it was found')
  t.false(await endLeases(sql, 500))
  await until(async () => (await claimLanes(sql, 'a', 72, 60_000)).length === 72, { within: 5_000 })
  await until(async () => (await announce(sql, 'a', 500)).living <= 2, { within: 5_000 })
})

test('I10 after a step back a lane that is locked at that moment is looked at again, until it is free', async (t) => {
  const [one, two] = await given(t, 2) as [Sql, Sql]
  await claimLanes(one, 'died', 72, 500)
  await one`update outbox.lane set held_until = held_until + interval '1 hour'`
  await two`begin`
  await two`select from outbox.lane where lane = 3 for share`
  t.true(await endLeases(one, 500))
  await two`commit`
  t.false(await endLeases(one, 500))
  let claimed = 0 // the lane that was locked is free a little later than the others
  await until(async () => (claimed += (await claimLanes(one, 'a', 72, 60_000)).length) === 72, { within: 5_000 })
  t.is((await one`select from outbox.lane where holder = 'a'`).length, 72)
})

test('I10 after a step back of the database what waited for a moment is due now, and leases of those who live stay theirs', async (t) => {
  const [sql] = await given(t, 1) as [Sql]
  const mine = await claimLanes(sql, 'a', 72, 60_000)
  await sql`insert into outbox.event (lane, position, seq_id, bytes, due_at) values (10000, 1, 1, 1, now() + interval '1 hour')`
  await sql`insert into inbox.shipper (origin, holder, held_until) values (1, 'x', now() + interval '1 hour')`
  await endWaits(sql)
  t.false(await endLeases(sql, 2_000))
  t.is((await sql`select from outbox.event where due_at <= clock_timestamp()`).length, 1)
  t.is((await sql`select from inbox.shipper where held_until <= clock_timestamp()`).length, 1)
  t.is((await sql`select from outbox.lane where held_until > now() + interval '3 s'`).length, 0)
  t.is((await renewLanes(sql, 'a', mine, 60_000)).length, 72)
})
