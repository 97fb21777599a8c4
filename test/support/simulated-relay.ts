import { ack, discard } from '../../outbox/ack.ts'
import type { Published } from '../../outbox/ack.ts'
import { nextEvents } from '../../outbox/pending.ts'
import type { PendingEvent } from '../../outbox/pending.ts'
import type { Sql } from '../../outbox/sql.ts'
import { passOver } from '../../outbox/waiting.ts'
import { openLanes, RENEW_EVERY } from '../../services/relay/lanes.ts'
import type { HeldLane } from '../../services/relay/lanes.ts'
import { relayLoop } from '../../services/relay/loop.ts'
import { openBell, repeat } from '../../services/relay/repeat.ts'
import type { Bell } from '../../services/relay/repeat.ts'
import { upkeep } from '../../services/relay/upkeep.ts'
import { openLog } from '../../services/runtime/log.ts'
import type { Slot } from '../../services/runtime/slot.ts'
import { openLocalWake } from '../../services/runtime/wake.ts'
import type { Wake } from '../../services/runtime/wake.ts'
import { inOwnTime } from './own-time.ts'
import type { OwnTime } from './own-time.ts'

/** Small, so that a handful of events takes several reads. */
const READ = { rows: 3, bytes: 1 << 20 }
const PASS = 3
export const PARTITIONS = 2

const log = openLog('test', 'silent')

/** What a relay asks of a server. `run` is called once at most, whenever that is; `answer` is for the relay, if it still lives. */
export type Request = {
  /** The name of the relay. */
  by: string
  what: string
  run: () => Promise<unknown>
  answer: PromiseWithResolvers<unknown>
  /** Of an ack: by which claims, and what. */
  acking?: Acking
  outcome?: PromiseSettledResult<unknown>
}

type Asked = Omit<Request, 'by'>

export type Acking = { claims: readonly { lane: number; term: string }[]; published: readonly Published[] }

export type RelayParts = {
  name: string
  sql: Sql
  now: () => number
  random: () => number
  ask: (relay: SimulatedRelay, request: Request) => void
  write: (relay: string, topic: string, partition: number, events: readonly PendingEvent[]) => bigint
  /** By the relay's own time. */
  sending: (relay: SimulatedRelay, events: readonly PendingEvent[]) => void
  /** The broker's answer arrived. */
  acknowledged: (topic: string, partition: number, first: bigint, events: readonly PendingEvent[]) => void
}

export type SimulatedRelay = {
  name: string
  time: OwnTime
  held: Map<number, HeldLane>
  bell: Bell
  wake: Wake
  /** Its two signals: to stop, and to wait for nothing any more. */
  signal: AbortController
  hurry: AbortController
  ended: boolean
  /** Killed: nothing of it moves any more. */
  dead: boolean
  frozen: boolean
  /** Milliseconds that it was frozen and nobody else's clock shows. */
  slept: number
  /** Its leases were made to end while it was frozen or dead. */
  overslept: boolean
}

/**
 * A relay as runRelay puts it together, over the loop, the lanes, the floors and the statements of the program. Only what
 * connects is another: each statement and each send becomes a request, its parameters taken when the relay asks.
 */
export function startRelay(parts: RelayParts): SimulatedRelay {
  const relay: SimulatedRelay = {
    name: parts.name, held: new Map(), bell: openBell(), wake: openLocalWake(), signal: new AbortController(), hurry: new AbortController(),
    time: { now: () => parts.now() + relay.slept, random: parts.random, timers: new Set() },
    ended: false, dead: false, frozen: false, slept: 0, overslept: false,
  }
  void inOwnTime(relay.time, () => live(parts, relay))
  return relay
}

async function live(parts: RelayParts, relay: SimulatedRelay): Promise<void> {
  const { name, bell } = relay
  const { signal } = relay.signal
  const ask = (request: Asked): void => parts.ask(relay, { ...request, by: name })
  const slot: Slot = { run: async (work) => work(gated(parts.sql, ask)), close: async () => undefined }
  const ended = new AbortController()
  const lanes = openLanes({ slot, holder: name, onClaim: bell.poke, onStepBack: () => undefined, signal, log })
  const keep = upkeep({ slots: { floors: slot, retries: slot }, holder: name, lanes: lanes.held, onDue: bell.poke })
  relay.held = lanes.held
  const tasks = [
    repeat({ task: lanes.tick, everyMs: RENEW_EVERY, what: 'keeping lanes', signal: ended.signal, log }),
    repeat({ task: keep.floors, everyMs: 1_000, what: 'raising floors', signal, log }),
  ]
  await relayLoop({
    lanes: lanes.held, wake: relay.wake, bell, signal, hurry: relay.hurry.signal, log, proven: keep.proven,
    partitions: async () => PARTITIONS,
    read: (held, rows = READ.rows) => slot.run((sql) => nextEvents(sql, held, { ...READ, rows })),
    passOver: (held) => slot.run((sql) => passOver(sql, held, PASS)),
    send: async (topic, partition, events) => {
      parts.sending(relay, events)
      const what = `send ${topic}/${partition}: ${events.map(({ position }) => position).join()}`
      const first = await requested<bigint>(ask, what, async () => parts.write(name, topic, partition, events))
      parts.acknowledged(topic, partition, first, events)
      return first
    },
    ack: (held, published) => {
      const acking = { claims: held.map(({ lane, term }) => ({ lane, term })), published }
      return ack(gated(parts.sql, (request) => ask({ ...request, acking })), name, held, published)
    },
    refuse: () => Promise.reject(new Error('nothing is refused here')),
    discard: (held, events) => slot.run((sql) => discard(sql, name, held, events)),
  })
  ended.abort()
  await Promise.all(tasks)
  await lanes.giveBack().catch(() => undefined)
  relay.ended = true
}

function requested<T>(ask: (request: Asked) => void, what: string, run: () => Promise<unknown>): Promise<T> {
  const answer = Promise.withResolvers<unknown>()
  ask({ what, run, answer })
  return answer.promise as Promise<T>
}

/** The connection, but a statement that is awaited becomes a request. It is made at once, with the parameters of then. */
function gated(sql: Sql, ask: (request: Asked) => void): Sql {
  return new Proxy(sql, {
    apply(target, self, args: unknown[]) {
      const query = Reflect.apply(target, self, args) as Promise<unknown>
      if (!Array.isArray(args[0]) || !('raw' in args[0])) return query
      const text = (args[0] as string[]).join('?')
      const run = query.then.bind(query) // sends it; a part of another statement never is
      query.then = (...on) => requested(ask, nameOf(text), () => new Promise((resolve, reject) => { void run(resolve, reject) })).then(...on)
      return query
    },
  })
}

/** For the trace. */
function nameOf(text: string): string {
  const names = {
    announce: 'insert into outbox.relay', claim: 'for update skip locked', withdraw: 'delete from outbox.relay', release: 'set holder = null',
    'give up floors': 'set floor = 0', 'raise floors': 'as passed', renew: 'set held_until', ack: "'PUBLISHED' as status", 'pass over': 'asked as materialized', read: 'so_far',
    'last position': 's.is_called', 'take an id': 'as xid', settle: 'auditlog.settled',
  }
  return Object.entries(names).find(([, part]) => text.includes(part))?.[0] ?? text.trim().slice(0, 40)
}
