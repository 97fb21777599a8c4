import test from 'ava'
import fc from 'fast-check'
import type { Published } from '../../outbox/ack.ts'
import type { PendingEvent } from '../../outbox/pending.ts'
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
  /** What the broker wrote, a partition at a time. */
  written: PendingEvent[][]
  add: (lane: number, position: number, bytes?: number) => void
  run: (failures: Failures, gates?: Gates) => { stop: () => Promise<void>; ring: () => void }
}

/** Each call takes the next number: how long it lasts in turns of the event loop, and whether it fails before or after it worked. */
type Failures = { turns: number[]; send: ('ok' | 'before' | 'after')[]; ack: ('ok' | 'before' | 'after')[]; read: ('ok' | 'before' | 'after')[] }

/** Lets a test hold a call before its answer: the number of the call, from 1, comes with it. */
type Gates = { send?: (call: number) => Promise<void>; read?: (call: number) => Promise<void> }

function openWorld(): World {
  const lanes = new Map(Array.from({ length: LANES }, (_, lane) => [lane, hold({ lane, term: '1', floor: '0' }, FAR)]))
  const pending = new Map<string, PendingEvent>()
  const written: PendingEvent[][] = [[], []]
  return {
    lanes, pending, written,
    add(lane, position, bytes = 10) {
      const text = String(position)
      pending.set(text, { lane, position: text, bytes, topicname: 'topic', id: text, version: '', key: '', value: '', traceparent: null })
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
      const wake = openLocalWake()
      const ended = relayLoop({
        lanes, wake, bell: openBell(), signal: stop.signal, hurry: new AbortController().signal, log: openLog('test', 'silent'),
        partitions: async () => 2,
        read: (of) => {
          const asked = of.map((lane) => ({ lane: lane.lane, inflight: new Set(lane.inflight) }))
          return working('read', () => [...pending.values()]
            .filter((event) => asked.some(({ lane, inflight }) => lane === event.lane && !inflight.has(event.position)))
            .sort((a, b) => a.lane - b.lane || Number(a.position) - Number(b.position)).slice(0, 10))
        },
        send: (_topic, partition, events) => working('send', () => BigInt((written[partition] ??= []).push(...events) - events.length)),
        ack: (held, published: readonly Published[]) => working('ack', () => {
          for (const { position } of published) pending.delete(position)
          return { held: held.map(({ lane }) => lane), count: published.length }
        }),
      })
      return { ring: wake.ring, stop: async () => { stop.abort(); await ended } }
    },
  }
}

function outOfOrder(world: World): string[] {
  const wrong: string[] = []
  for (const partition of world.written) {
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
    t.is(new Set(world.written.flat().map(({ position }) => position)).size, 120)
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
  t.false(world.written.flat().some((event) => event.lane === 1))
  lane.deadline = FAR
  await until(() => world.pending.size === 0)
  await loop.stop()
  t.deepEqual(outOfOrder(world), [])
})

test('a stop finishes what was sent, acks included, and leaves the rest', async (t) => {
  const world = openWorld()
  for (let position = 1; position <= 500; position++) world.add(position % LANES, position)
  const loop = world.run({ turns: [3], send: [], ack: [], read: [] })
  await until(() => world.written.flat().length > 0)
  await loop.stop()
  const written = new Set(world.written.flat().map(({ position }) => position))
  t.true(written.size < 500)
  t.is(world.pending.size, 500 - written.size)
})

test('I4 what a read brought that began before a failure does not go before what failed', async (t) => {
  const world = openWorld()
  const lane = world.lanes.get(1)!
  for (let position = 1; position <= 30; position++) world.add(1, position)
  const secondRead = Promise.withResolvers<void>()
  const loop = world.run({ turns: [0], send: ['before'], ack: [], read: [] }, {
    // The first send fails while the second read is under way, which ends when the lane has rested.
    send: async (call) => { if (call === 1) await secondRead.promise },
    read: async (call) => {
      if (call !== 2) return
      secondRead.resolve()
      await until(() => lane.blockedUntil > 0 && performance.now() > lane.blockedUntil + 50)
    },
  })
  await until(() => world.pending.size === 0)
  await loop.stop()
  t.deepEqual(outOfOrder(world), [])
})

test('memory stays bounded: reading waits while much is in flight', async (t) => {
  const world = openWorld()
  for (let position = 1; position <= 100; position++) world.add(position % LANES, position, 1 << 20)
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
