import test from 'ava'
import fc from 'fast-check'
import type { Published } from '../../outbox/ack.ts'
import type { PendingEvent } from '../../outbox/pending.ts'
import type { Refused } from '../../outbox/refused.ts'
import { until } from '../../test/support/until.ts'
import { openLog } from '../runtime/log.ts'
import { openLocalWake } from '../runtime/wake.ts'
import { hold } from './lanes.ts'
import type { HeldLane } from './lanes.ts'
import { relayLoop } from './loop.ts'
import { openBell } from './repeat.ts'

const LANES = 4
const FAR = Number.POSITIVE_INFINITY

type World = {
  lanes: Map<number, HeldLane>
  pending: Map<string, PendingEvent>
  /** What the broker wrote, a topic and partition at a time. */
  written: Map<string, PendingEvent[]>
  /** Topics whose sends fail, and positions whose record is refused. */
  unwritable: Set<string>
  refusing: Set<string>
  refused: Refused[]
  add: (lane: number, position: number, more?: Partial<PendingEvent>) => void
  run: (failures: Failures, gates?: Gates) => { stop: () => Promise<void>; ring: () => void }
}

/** Each call takes the next number: how long it lasts in turns of the event loop, and whether it fails before or after it worked. */
type Failures = { turns: number[]; send: ('ok' | 'before' | 'after')[]; ack: ('ok' | 'before' | 'after')[]; read: ('ok' | 'before' | 'after')[] }

const FINE: Failures = { turns: [0], send: [], ack: [], read: [] }

/** Lets a test hold a call before its answer: the number of the call, from 1, comes with it. */
type Gates = {
  send?: (call: number) => Promise<void>
  read?: (call: number) => Promise<void>
  partitions?: (topic: string) => Promise<number>
  proven?: () => string
}

/** As kafkajs names what a broker says. */
class BrokerError extends Error {
  readonly type: string
  constructor(type: string) {
    super(type)
    this.type = type
  }
}

/** So many events a read takes, and so many of each lane a look over what waits. */
const READ = 10

/** Loops of tests that failed go on, and would keep the file from ending. */
const running = new Set<AbortController>()
test.after.always('the loops end', () => { for (const stop of running) stop.abort() })

function openWorld(): World {
  const lanes = new Map(Array.from({ length: LANES }, (_, lane) => [lane, hold({ lane, term: '1', floor: '0' }, FAR)]))
  const pending = new Map<string, PendingEvent>()
  const written = new Map<string, PendingEvent[]>()
  const unwritable = new Set<string>()
  const refusing = new Set<string>()
  const refused: Refused[] = []
  const of = (lane: number, from: string): PendingEvent[] => [...pending.values()]
    .filter((event) => event.lane === lane && BigInt(event.position) > BigInt(from)).sort((a, b) => Number(a.position) - Number(b.position))
  const leave = (held: readonly HeldLane[], positions: readonly { position: string }[]) => {
    for (const { position } of positions) pending.delete(position)
    return { held: held.map(({ lane }) => lane), count: positions.length }
  }
  return {
    lanes, pending, written, unwritable, refusing, refused,
    add(lane, position, more = {}) {
      const text = String(position)
      pending.set(text, { lane, position: text, bytes: 10, topicname: 'topic', id: text, version: '', key: '', value: '', traceparent: null, ...more })
    },
    run(failures, gates = {}) {
      let calls = 0
      const count = { send: 0, read: 0, ack: 0 }
      const turns = async (): Promise<void> => {
        for (let n = failures.turns[calls++ % failures.turns.length] ?? 0; n > 0; n--) await new Promise((resolve) => setImmediate(resolve))
      }
      const working = async <T>(kind: 'send' | 'ack' | 'read', work: () => T): Promise<T> => {
        const how = failures[kind].shift() ?? 'ok'
        const call = ++count[kind]
        await turns()
        if (kind === 'send') await gates.send?.(call)
        if (how === 'before') throw new Error(`${kind} fails`)
        const result = work()
        if (kind === 'read') await gates.read?.(call)
        await turns()
        if (how === 'after') throw new Error(`${kind} fails after it worked`)
        return result
      }
      const stop = new AbortController()
      running.add(stop)
      const wake = openLocalWake()
      const ended = relayLoop({
        lanes, wake, bell: openBell(), signal: stop.signal, hurry: new AbortController().signal, log: openLog('test', 'silent'),
        partitions: gates.partitions ?? (async () => 2),
        proven: gates.proven ?? (() => '0'),
        read: (asked, rows = READ) => {
          const wanted = asked.map(({ lane, floor, inflight }) => ({ lane, floor, inflight: new Set(inflight) }))
          return working('read', () => wanted.flatMap(({ lane, floor, inflight }) => of(lane, floor).filter(({ position }) => !inflight.has(position)))
            .sort((a, b) => a.lane - b.lane || Number(a.position) - Number(b.position)).slice(0, rows))
        },
        passOver: async (asked) => asked.flatMap(({ lane, from, inflight, topics }) => {
          const seen = of(lane, from).slice(0, READ + inflight.size)
          const end = seen.findIndex(({ position, topicname }) => !inflight.has(position) && !topics.includes(topicname ?? ''))
          const passed = seen.slice(0, end === -1 ? seen.length : end)
          const last = passed.at(-1)
          const lowest = topics.flatMap((topic) => passed.filter(({ topicname }) => topicname === topic).slice(0, 1).map(({ position }) => ({ topic, position })))
          return last === undefined ? [] : [{ lane, upTo: last.position, more: end === -1 && seen.length === READ + inflight.size, lowest }]
        }),
        send: (topic, partition, events) => working('send', () => {
          if (unwritable.has(topic)) throw new BrokerError('NOT_ENOUGH_REPLICAS')
          if (events.some(({ position }) => refusing.has(position))) throw new BrokerError('INVALID_RECORD')
          const log = written.get(`${topic}/${partition}`) ?? []
          written.set(`${topic}/${partition}`, log)
          return BigInt(log.push(...events) - events.length)
        }),
        ack: (held, published: readonly Published[]) => working('ack', () => leave(held, published)),
        refuse: (held, some) => working('ack', () => { refused.push(...some); return leave(held, some) }),
        discard: (held, events) => working('ack', () => leave(held, events)),
      })
      return { ring: wake.ring, stop: async () => { stop.abort(); await ended } }
    },
  }
}

function sent(world: World): PendingEvent[] {
  return [...world.written.values()].flat()
}

function outOfOrder(world: World): string[] {
  const wrong: string[] = []
  for (const partition of world.written.values()) {
    const last = new Map<number, number>()
    const seen = new Set<string>()
    for (const { lane, position } of partition) {
      if (seen.has(position)) continue
      seen.add(position)
      if (Number(position) < (last.get(lane) ?? 0)) wrong.push(`${position} after ${last.get(lane)}`)
      last.set(lane, Number(position))
    }
  }
  return wrong
}

const how = fc.constantFrom('ok' as const, 'ok' as const, 'before' as const, 'after' as const)
const failures = fc.record({
  turns: fc.array(fc.integer({ min: 0, max: 12 }), { minLength: 5, maxLength: 30 }),
  send: fc.array(how, { maxLength: 6 }), ack: fc.array(how, { maxLength: 3 }), read: fc.array(how, { maxLength: 3 }),
})

test('I4 whatever fails, before or after it worked, each lane goes out in order and nothing is missing', async (t) => {
  await fc.assert(fc.asyncProperty(failures, async (given) => {
    const world = openWorld()
    for (let position = 1; position <= 60; position++) world.add(position % LANES, position)
    const loop = world.run(structuredClone(given))
    for (let position = 61; position <= 120; position++) {
      world.add(position % LANES, position)
      if (position % 5 === 0) {
        loop.ring()
        await new Promise((resolve) => setImmediate(resolve))
      }
    }
    await until(() => world.pending.size === 0, { within: 20_000 })
    await loop.stop()
    t.deepEqual(outOfOrder(world), [])
    t.is(new Set(sent(world).map(({ position }) => position)).size, 120)
    t.true([...world.lanes.values()].every(({ inflight }) => inflight.size === 0))
  }), { numRuns: 25, interruptAfterTimeLimit: 30_000 })
})

test('I5 nothing is sent for a lane whose lease passed, until it is renewed; then from its first event on', async (t) => {
  const world = openWorld()
  const lane = world.lanes.get(1)!
  lane.deadline = 0
  for (let position = 1; position <= 40; position++) world.add(position % LANES, position)
  const loop = world.run({ turns: [1], send: [], ack: [], read: [] })
  await until(() => world.pending.size === 10)
  t.false(sent(world).some((event) => event.lane === 1))
  lane.deadline = FAR
  await until(() => world.pending.size === 0)
  await loop.stop()
  t.deepEqual(outOfOrder(world), [])
})

test('a stop finishes what was sent, acks included, and leaves the rest', async (t) => {
  const world = openWorld()
  for (let position = 1; position <= 500; position++) world.add(position % LANES, position)
  const loop = world.run({ turns: [3], send: [], ack: [], read: [] })
  await until(() => sent(world).length > 0)
  await loop.stop()
  const written = new Set(sent(world).map(({ position }) => position))
  t.true(written.size < 500)
  t.is(world.pending.size, 500 - written.size)
})

test('I4 what a read brought that began before a failure does not go before what failed', async (t) => {
  const world = openWorld()
  const lane = world.lanes.get(1)!
  for (let position = 1; position <= 30; position++) world.add(1, position)
  const secondRead = Promise.withResolvers<void>()
  const loop = world.run({ ...FINE, send: ['before'] }, {
    // The first send fails while the second read is under way, which ends when the lane has rested.
    send: async (call) => { if (call === 1) await secondRead.promise },
    read: async (call) => {
      if (call !== 2) return
      secondRead.resolve()
      const waits = (): number => lane.strands.get('topic')?.tryAt ?? FAR
      await until(() => lane.strands.get('topic')?.waitsFrom !== undefined && performance.now() > waits() + 50)
    },
  })
  await until(() => world.pending.size === 0)
  await loop.stop()
  t.deepEqual(outOfOrder(world), [])
})

test('memory stays bounded: reading waits while much is in flight', async (t) => {
  const world = openWorld()
  for (let position = 1; position <= 100; position++) world.add(position % LANES, position, { bytes: 1 << 20 })
  const open = Promise.withResolvers<void>()
  const loop = world.run({ turns: [0], send: [], ack: [], read: [] }, { send: () => open.promise })
  const megabytes = (): number => [...world.lanes.values()].reduce((sum, { inflight }) => sum + inflight.size, 0)
  await until(() => megabytes() >= 16)
  for (let look = 0; look < 20; look++) {
    loop.ring()
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
  t.true(megabytes() <= 26, `${megabytes()} MB were in flight`)
  open.resolve()
  await until(() => world.pending.size === 0)
  await loop.stop()
})

test('I4 I8 whatever fails, a record the broker refuses goes alone, and each topic of a lane goes out in order', async (t) => {
  const given = fc.record({
    failures, refused: fc.array(fc.integer({ min: 1, max: 120 }), { maxLength: 8 }), dead: fc.constantFrom('odd', 'even'), turnsDead: fc.integer({ min: 0, max: 60 }),
  })
  await fc.assert(fc.asyncProperty(given, async ({ failures: some, refused, dead, turnsDead }) => {
    const world = openWorld()
    for (const position of refused) world.refusing.add(String(position))
    world.unwritable.add(dead)
    const add = (position: number): void => world.add(position % LANES, position, { topicname: Math.floor(position / LANES) % 3 === 0 ? 'odd' : 'even' })
    for (let position = 1; position <= 60; position++) add(position)
    const loop = world.run(structuredClone(some))
    for (let position = 61; position <= 120; position++) {
      add(position)
      if (position === 60 + turnsDead) world.unwritable.clear()
      if (position % 5 === 0) {
        loop.ring()
        await new Promise((resolve) => setImmediate(resolve))
      }
    }
    world.unwritable.clear()
    await until(() => world.pending.size === 0, { within: 20_000 })
    await loop.stop()
    t.deepEqual(outOfOrder(world), [])
    const settled = [...sent(world), ...world.refused].map(({ position }) => position)
    t.is(new Set(settled).size, 120)
    t.deepEqual([...new Set(world.refused.map(({ position }) => position))].sort(), [...world.refusing].sort())
    t.true(world.refused.every(({ code }) => code === 'INVALID_RECORD'))
  }), { numRuns: 25, interruptAfterTimeLimit: 40_000 })
})

test('I4 I8 a topic that cannot be written holds up no other one, though a thousand of its events stand before them; later it goes out in order', async (t) => {
  const world = openWorld()
  for (let position = 1; position <= 1_000; position++) world.add(1, position, { topicname: 'dead' })
  for (let position = 1_001; position <= 1_040; position++) world.add(position % 2, position, { topicname: position % 4 === 1 ? 'dead' : 'topic' })
  world.unwritable.add('dead')
  const loop = world.run({ ...FINE, turns: [1] })
  await until(() => sent(world).length === 30)
  t.true(sent(world).every(({ topicname }) => topicname === 'topic'))
  world.add(1, 1_100)
  loop.ring()
  await until(() => sent(world).length === 31)
  t.is(world.pending.size, 1_010)
  world.unwritable.clear()
  await until(() => world.pending.size === 0, { within: 20_000 })
  await loop.stop()
  t.deepEqual(outOfOrder(world), [])
  t.is(new Set(sent(world)).size, 1_041)
})

test('I3 what commits late among events that wait is published, proven or not, also where its own topic waited', async (t) => {
  for (const before of ['0', '100']) {
    let proven = before
    const world = openWorld()
    for (let position = 10; position <= 150; position += 2) world.add(1, position, { topicname: 'dumb' })
    for (let position = 160; position <= 200; position += 2) world.add(1, position, { topicname: 'dead' })
    world.add(1, 300)
    world.unwritable.add('dumb').add('dead')
    const loop = world.run(FINE, { proven: () => proven })
    const count = (topic: string): number => sent(world).filter(({ topicname }) => topicname === topic).length
    await until(() => count('topic') === 1)
    world.add(1, 149, { topicname: 'dead' })
    world.add(1, 151)
    await until(() => count('topic') === 2, { what: 'the late one' })
    if (before !== '0') {
      proven = '1000'
      // Up to the last one that waits, and no further: what was above it has left.
      await until(() => world.lanes.get(1)?.past?.sure === 200n, { what: 'a sweep that is proven' })
    }
    world.unwritable.delete('dead')
    await until(() => count('dead') === 22, { what: 'those that waited, the late one too' })
    world.unwritable.clear()
    await until(() => world.pending.size === 0)
    await loop.stop()
    t.is(sent(world).length, 95)
  }
})

test('a broker that does not answer for one topic delays no event of another', async (t) => {
  const world = openWorld()
  const answer = Promise.withResolvers<number>()
  for (let position = 1; position <= 100; position++) world.add(position % LANES, position, { topicname: Math.floor(position / LANES) % 2 === 0 ? 'mute' : 'topic' })
  const loop = world.run(FINE, { partitions: (topic) => topic === 'mute' ? answer.promise : Promise.resolve(2) })
  await until(() => sent(world).length === 49)
  answer.resolve(3)
  await until(() => world.pending.size === 0)
  await loop.stop()
  t.deepEqual(outOfOrder(world), [])
})

test('with another count of partitions a topic goes on when nothing of its own is in flight, whatever else is', async (t) => {
  const world = openWorld()
  let count = 2
  const open = Promise.withResolvers<void>()
  for (let position = 1; position <= 20; position++) world.add(position % LANES, position, { topicname: Math.floor(position / LANES) % 2 === 0 ? 'grows' : 'topic' })
  const loop = world.run(FINE, {
    partitions: async (topic) => topic === 'grows' ? count : 1,
    send: async () => { if (world.unwritable.has('held')) await open.promise },
  })
  await until(() => world.pending.size === 0)
  count = 3
  world.unwritable.add('held') // one send is under way from here on
  world.add(1, 101)
  await until(() => world.lanes.get(1)!.inflight.size === 1)
  world.unwritable.clear()
  for (let position = 102; position <= 120; position++) world.add(position % LANES, position, { topicname: 'grows' })
  await until(() => (world.written.get('grows/2') ?? []).length > 0)
  open.resolve()
  await until(() => world.pending.size === 0)
  await loop.stop()
  t.deepEqual(outOfOrder(world), [])
})

test('what is obsolete is removed, and holds up nobody', async (t) => {
  const world = openWorld()
  world.add(1, 1, { topicname: null, obsolete: true })
  world.add(1, 2)
  const loop = world.run(FINE)
  await until(() => world.pending.size === 0)
  await loop.stop()
  t.deepEqual(sent(world).map(({ position }) => position), ['2'])
})
