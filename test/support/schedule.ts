import type { PendingEvent } from '../../outbox/pending.ts'
import type { Sql } from '../../outbox/sql.ts'
import { usable } from '../../services/relay/lanes.ts'
import { SlotLost } from '../../services/runtime/slot.ts'
import { inOwnTime } from './own-time.ts'
import type { Chance } from './own-time.ts'
import { startRelay } from './simulated-relay.ts'
import type { Acking, Request, SimulatedRelay } from './simulated-relay.ts'
import type { Source } from './simulated-source.ts'

/** Longer than a lease, in milliseconds. */
const LONG = 2_100
/** Relays that live at a time, and those that are started in one schedule at most. */
const LIVING = 2
const MOST_STARTED = 5
/** Steps with faults, and those in which everything must then be published. */
const FAULTY = { least: 30, more: 50 }
const CALM = 3_000

/** Something that can happen next; what has more weight sooner does. */
export type Action = { weight: number; what: string; act: () => unknown }

/** Is told what happens, at that moment. */
export type Watch = {
  /** `waiting`: the lanes in which something waits for its topic, so that the relay reads from a cursor on. */
  read: (relay: string, events: readonly PendingEvent[], waiting: ReadonlySet<number>) => void
  passedOver: (relay: string, passed: readonly { lane: number; upTo: string }[]) => void
  /** Writes, and returns the offset of the first. */
  written: (relay: string, topic: string, partition: number, events: readonly PendingEvent[]) => bigint
  acknowledged: (topic: string, partition: number, first: bigint, events: readonly PendingEvent[]) => void
  /** `lanes` are as they were before the statement, `held` what it says of them. */
  acked: (relay: string, acking: Acking, lanes: readonly Holder[], held: readonly number[]) => void
  /** For which lanes a relay begins to send though it cannot believe that it has them. */
  sending: (relay: string, lanes: readonly number[]) => void
  /** Which relays believe that they have a lane. */
  believed: (lane: number, relays: readonly string[]) => void
  /** Everything that was committed has left the outbox. */
  drained: () => boolean
}
export type Holder = { lane: number; holder: string | null; term: string }

/** Where a schedule is played: `sql` is of a database whose now() is the schedule's. */
export type Stage = { sql: Sql; source: Source; watch: Watch; chance: Chance; trace: (line: string) => void }

/** What was asked of a server; by nobody, where its relay died or gave it up before it was done. */
type Waiting = { relay: SimulatedRelay | undefined; request: Request }

type World = Stage & {
  relays: SimulatedRelay[]
  waiting: Set<Waiting>
  unwritable: Set<string>
  /** Leases end before their time, as when the clock of the database is set. */
  early: boolean
  now: number
  /** What the database was told of that. */
  told: number
}

/**
 * Plays one schedule: at each step one thing that can happen does, by chance; first with faults, then without, until all is
 * published. With `killAt` there is one fault: the first relay is killed before that step. Returns the number of steps
 * that had faults.
 */
export async function play(stage: Stage, killAt?: number): Promise<number> {
  const { chance, source, watch, trace } = stage
  const world: World = { ...stage, relays: [], waiting: new Set(), unwritable: new Set(), early: killAt === undefined && chance.in(4), now: 0, told: -1 }
  const faulty = FAULTY.least + chance.below(FAULTY.more)
  const step = async (faults: boolean): Promise<void> => {
    const actions = [...[...world.waiting].flatMap((one) => requestActions(world, one, faults)),
      ...living(world).flatMap((relay) => relayActions(world, relay, faults)), ...otherActions(world, faults), ...source.actions(faults)]
    const action = choose(actions, chance)
    trace(action.what)
    await action.act()
    await settled()
    if (!world.early) lookAtBeliefs(world)
  }
  for (let at = 0; at < faulty; at++) {
    if (at === killAt && world.relays[0] !== undefined) kill(world, world.relays[0])
    await step(killAt === undefined)
  }
  trace('no more faults')
  world.unwritable.clear()
  for (const relay of world.relays) relay.frozen = false
  for (let at = 0; !(source.ended() && watch.drained()); at++) {
    if (at === CALM) throw new Error(`not all is published ${CALM} steps after the last fault`)
    await step(false)
  }
  for (const relay of world.relays) relay.dead = true
  return faulty
}

function choose(actions: readonly Action[], chance: Chance): Action {
  let at = chance.fraction() * actions.reduce((sum, { weight }) => sum + weight, 0)
  return actions.find(({ weight }) => (at -= weight) < 0) ?? actions.at(-1)!
}

/** All that follows from a step has happened, up to the next requests: the relays themselves wait for nothing else. */
function settled(): Promise<void> {
  return new Promise((resolve) => { setImmediate(resolve) })
}

function living({ relays }: World): SimulatedRelay[] {
  return relays.filter(({ dead, ended }) => !dead && !ended)
}

function lookAtBeliefs(world: World): void {
  const beliefs = living(world).filter(({ frozen }) => !frozen).flatMap((relay) => lanesOf(relay).map((lane) => ({ lane, name: relay.name })))
  for (const [lane, some] of Map.groupBy(beliefs, (one) => one.lane)) world.watch.believed(lane, some.map(({ name }) => name))
}

/** The lanes that a relay believes to have, by its own time. */
function lanesOf(relay: SimulatedRelay): number[] {
  return inOwnTime(relay.time, () => [...relay.held.values()].filter(usable).map(({ lane }) => lane))
}

function start(world: World): void {
  const { relays, waiting, unwritable, watch, sql, chance } = world
  relays.push(startRelay({
    name: `relay ${relays.length + 1}`, sql, now: () => world.now, random: chance.fraction,
    ask: (relay, request) => waiting.add({ relay, request }),
    sending: (relay, events) => watch.sending(relay.name, events.map(({ lane }) => lane).filter((lane) => !lanesOf(relay).includes(lane))),
    write: (relay, topic, partition, events) => {
      if (unwritable.has(topic)) throw Object.assign(new Error('NOT_ENOUGH_REPLICAS'), { type: 'NOT_ENOUGH_REPLICAS' })
      return watch.written(relay, topic, partition, events)
    },
    acknowledged: watch.acknowledged,
  }))
}

function tellTime(world: World): void {
  if (world.told === world.now) return
  world.told = world.now
  world.sql`select set_config('sim.now', ${new Date(1_800_000_000_000 + world.now).toISOString()}, false)`.execute().catch(() => undefined)
}

/** The server does what it was asked. */
async function serve(world: World, one: Waiting): Promise<void> {
  const { request } = one
  tellTime(world)
  const holders = request.acking === undefined ? undefined : world.sql<Holder[]>`select l.lane, l.holder, l.term from outbox.lane l`.execute()
  const [outcome] = await Promise.allSettled([request.run()])
  request.outcome = outcome
  if (one.relay === undefined) world.waiting.delete(one)
  if (outcome.status === 'rejected') return
  if (request.what === 'read') {
    const held = world.relays.find(({ name }) => name === request.by)?.held.values() ?? []
    world.watch.read(request.by, outcome.value as PendingEvent[], new Set([...held].filter(({ past }) => past !== undefined).map(({ lane }) => lane)))
  }
  if (request.what === 'pass over') world.watch.passedOver(request.by, outcome.value as { lane: number; upTo: string }[])
  if (request.acking !== undefined) world.watch.acked(request.by, request.acking, await holders ?? [], (outcome.value as [{ held: number[] }])[0].held)
}

function answer({ waiting }: World, one: Waiting): void {
  waiting.delete(one)
  const { answer: { resolve, reject }, outcome } = one.request
  if (outcome?.status === 'fulfilled') resolve(outcome.value)
  else reject(outcome?.reason)
}

/** Nobody hears the answer; what was not done yet is done later, or never. */
function lose({ waiting, chance }: World, one: Waiting): void {
  if (one.request.outcome !== undefined || chance.in(2)) waiting.delete(one)
  else one.relay = undefined
}

function kill(world: World, relay: SimulatedRelay): void {
  world.trace(`${relay.name} is no more`)
  relay.dead = true
  for (const one of [...world.waiting]) if (one.relay === relay) lose(world, one)
}

/** The leases of a relay run out; half the time a third relay had them since, and is gone again. */
async function endLeases(world: World, relay: SimulatedRelay): Promise<void> {
  tellTime(world)
  const taken = world.chance.below(2)
  await world.sql`
    update outbox.lane l
    set held_until = now() - interval '1 ms', term = l.term + ${taken}::integer, holder = case ${taken}::integer when 1 then 'a third' else l.holder end
    where l.holder = ${relay.name}`
}

function requestActions(world: World, one: Waiting, faults: boolean): Action[] {
  const { relay, request } = one
  const what = `${request.by}: ${request.what}`
  const actions: Action[] = []
  if (request.outcome === undefined) actions.push({ weight: relay === undefined ? 0.5 : 5, what, act: () => serve(world, one) })
  else if (relay?.frozen === false) actions.push({ weight: 8, what: `${what}, the answer (${request.outcome.status})`, act: () => answer(world, one) })
  if (faults && relay?.frozen === false) {
    actions.push({ weight: 0.25, what: `${what}: the connection is lost`, act: () => {
      lose(world, one)
      request.answer.reject(new SlotLost('the connection closed'))
    } })
  }
  return actions
}

function relayActions(world: World, relay: SimulatedRelay, faults: boolean): Action[] {
  const { name, time } = relay
  const actions: Action[] = []
  if (relay.frozen) {
    actions.push({ weight: 0.5, what: `${name} wakes up`, act: () => { relay.frozen = false } })
    if (!relay.overslept) {
      actions.push({ weight: 1, what: `the leases of ${name} end while it is frozen`, act: async () => {
        relay.overslept = true
        relay.slept += LONG
        await endLeases(world, relay)
      } })
    }
  } else {
    const due = [...time.timers].filter((timer) => timer.due <= time.now())
    actions.push(...due.map((timer) => ({ weight: 6, what: `${name}: a timer`, act: timer.fire })))
    actions.push({ weight: 0.05, what: `${name} is rung`, act: () => inOwnTime(time, relay.wake.ring) })
  }
  if (!faults) return actions
  if (!relay.frozen) {
    actions.push({ weight: 0.3, what: `${name} freezes`, act: () => { Object.assign(relay, { frozen: true, overslept: false }) } })
    actions.push({ weight: 0.03, what: `${name} is asked to stop`, act: () => inOwnTime(time, () => relay.signal.abort()) })
    if (relay.signal.signal.aborted) actions.push({ weight: 0.3, what: `${name} is to hurry`, act: () => inOwnTime(time, () => relay.hurry.abort()) })
  }
  if (world.early) actions.push({ weight: 0.2, what: `the leases of ${name} end early`, act: () => endLeases(world, relay) })
  if (world.relays.length < MOST_STARTED) actions.push({ weight: 0.06, what: `${name} is killed`, act: () => kill(world, relay) })
  return actions
}

function otherActions(world: World, faults: boolean): Action[] {
  const { relays, unwritable, chance } = world
  const actions: Action[] = []
  const timers = living(world).filter(({ frozen }) => !frozen).flatMap(({ time, slept }) => [...time.timers].map(({ due }) => due - slept))
  // Weighs little, so that time passes where nothing else can happen.
  if (timers.length > 0) actions.push({ weight: 0.2, what: 'time goes on', act: () => { world.now = Math.max(world.now, Math.min(...timers)) } })
  if (living(world).length < LIVING) actions.push({ weight: 2, what: 'a relay starts', act: () => start(world) })
  for (const relay of relays.filter(({ dead, overslept }) => dead && !overslept)) {
    actions.push({ weight: 1, what: `the leases of ${relay.name} end`, act: async () => {
      relay.overslept = true
      await endLeases(world, relay)
    } })
  }
  if (!faults) return actions
  const topic = chance.one(['topic', 'other'])
  actions.push(unwritable.has(topic) ? { weight: 0.5, what: `${topic} can be written`, act: () => unwritable.delete(topic) }
    : { weight: 0.1, what: `${topic} cannot be written`, act: () => unwritable.add(topic) })
  return actions
}
