import test from 'ava'
import postgres from 'postgres'
import type { Sql } from '../../outbox/sql.ts'
import { freshDatabase } from '../../test/support/database.ts'
import { chanceOf } from '../../test/support/own-time.ts'
import { play } from '../../test/support/schedule.ts'
import type { Watch } from '../../test/support/schedule.ts'
import { openSource } from '../../test/support/simulated-source.ts'
import type { Committed } from '../../test/support/simulated-source.ts'
import { connectionOptions } from '../runtime/slot.ts'

const LANES = 3
/** Databases that play at the same time. */
const STAGES = 4
/** SCHEDULES=n plays so many; SCHEDULE=seed, or seed/step of the kill, plays that one and tells each step. */
const SEEDS = Number(process.env['SCHEDULES'] ?? 500)
const ONE = process.env['SCHEDULE']
/** Schedules of which each step is one before which a relay is killed, once. */
const KILLED = [1, 2]

type Record = { position: string; acknowledged: boolean }

/** What is known of one schedule, and what of it was wrong. */
type Ledger = Watch & { wrong: string[]; committed: (events: readonly Committed[]) => void; all: Map<string, Committed>; logs: Map<string, Record[]> }

function openLedger(): Ledger {
  const wrong: string[] = []
  const all = new Map<string, Committed>()
  const logs = new Map<string, Record[]>()
  const left = new Set<string>()
  const committedAt = new Map<string, number>()
  /** When each relay first read an event, and whether something of its lane waited for a topic then. */
  const readAt = new Map<string, { moment: number; waiting: boolean }>()
  /** What each relay has seen of a lane, read or passed over. */
  const seen = new Map<string, { moment: number; position: bigint }[]>()
  let moment = 0
  const see = (relay: string, lane: number, position: string): void => {
    seen.set(`${relay} ${lane}`, [...seen.get(`${relay} ${lane}`) ?? [], { moment, position: BigInt(position) }])
  }
  /** Committed when the relay had seen a later one of the lane. */
  const isLate = (relay: string, { lane, position }: Committed): boolean =>
    (seen.get(`${relay} ${lane}`) ?? []).some((one) => one.position > BigInt(position) && one.moment < committedAt.get(position)!)
  const logOf = (topic: string, partition: number): Record[] => {
    const name = `${topic}/${partition}`
    const log = logs.get(name) ?? []
    logs.set(name, log)
    return log
  }
  return {
    wrong, all, logs,
    committed(events) {
      moment += 1
      for (const event of events) {
        all.set(event.position, event)
        committedAt.set(event.position, moment)
      }
    },
    read(relay, events, waiting) {
      moment += 1
      for (const { lane, position } of events) {
        see(relay, lane, position)
        if (!readAt.has(`${relay} ${position}`)) readAt.set(`${relay} ${position}`, { moment, waiting: waiting.has(lane) })
      }
    },
    passedOver(relay, passed) {
      moment += 1
      for (const { lane, upTo } of passed) see(relay, lane, upTo)
    },
    written(relay, topic, partition, events) {
      const log = logOf(topic, partition)
      for (const { position, lane } of events) {
        const again = log.some((one) => one.position === position)
        log.push({ position, acknowledged: false })
        if (again) continue
        const before = [...all.values()].filter((one) => one.lane === lane && one.topic === topic && BigInt(one.position) < BigInt(position)
          && !log.some((written) => written.position === one.position))
        const read = readAt.get(`${relay} ${position}`)!
        // Visible when this relay first read the later one, and not published before it. While something waits for its topic,
        // what commits late is found by the next sweep only.
        const overtaken = before.filter((one) => committedAt.get(one.position)! < read.moment && !(read.waiting && isLate(relay, one)))
        for (const one of overtaken) wrong.push(`I4: ${relay} publishes ${position} before ${one.position} of the same lane`)
      }
      return BigInt(log.length - events.length)
    },
    acknowledged(topic, partition, first, events) {
      const log = logOf(topic, partition)
      for (const at of events.keys()) log[Number(first) + at]!.acknowledged = true
    },
    acked(relay, { claims, published }, lanes, held) {
      const ours = claims.filter(({ lane, term }) => lanes.some((one) => one.lane === lane && one.term === term && one.holder === relay)).map(({ lane }) => lane)
      if (String(ours.toSorted()) !== String(held.toSorted())) wrong.push(`I5: ${relay} acks in the lanes ${held.join()}, and holds ${ours.join()}`)
      for (const { lane, position, partition, offset } of published) {
        const record = logOf(all.get(position)?.topic ?? '', partition)[Number(offset)]
        if (record?.position !== position || !record.acknowledged) wrong.push(`I3: ${relay} acks ${position}, which the broker did not acknowledge at ${partition}/${offset}`)
        if (held.includes(lane)) left.add(position)
      }
    },
    sending(relay, lanes) {
      if (lanes.length > 0) wrong.push(`I5: ${relay} sends for the lanes ${lanes.join()}, of which the lease passed`)
    },
    believed(lane, relays) {
      if (relays.length > 1) wrong.push(`I5: ${relays.join(' and ')} believe that they have lane ${lane}`)
    },
    drained: () => wrong.length > 0 || left.size === all.size,
  }
}

type Place = { sql: Sql; connections: Sql[]; keys: Map<number, string>; close: () => Promise<void> }

/** A database with few lanes, where now() in the statements of the program is what the schedule says: sim comes before pg_catalog. */
async function openPlace(): Promise<Place> {
  const database = await freshDatabase()
  const options = connectionOptions({ url: database.url, name: 'schedule' })
  const open = (): Sql => postgres(database.url, { ...options, connection: {
    ...options.connection, search_path: 'sim, pg_catalog', synchronous_commit: 'off', plan_cache_mode: 'force_generic_plan',
  } })
  const sql = open()
  await sql.unsafe(`
    create schema sim;
    create function sim.now() returns timestamptz language sql stable as $$ select current_setting('sim.now')::timestamptz $$;
    update outbox.database set lanes = ${LANES};
    delete from outbox.lane where lane >= ${LANES}`)
  const rows = await sql<{ lane: number; key: string }[]>`
    select distinct on (lane) outbox.lane_of(${LANES}, 'app', 'test', '["' || n || '"]') as lane, '["' || n || '"]' as key
    from generate_series(1, 30) as n order by lane`
  const connections = [open(), open()]
  return {
    sql, connections, keys: new Map(rows.map(({ lane, key }) => [lane, key])),
    async close() {
      await Promise.all([sql, ...connections].map((one) => one.end({ timeout: 5 })))
      await database.drop()
    },
  }
}

type Plan = { seed: number; killAt?: number }

/** What the tables say at the end: the outbox is empty, and publish_log tells of every event where it lies. */
async function wrongInTables(sql: Sql, { all, logs }: Ledger): Promise<string[]> {
  const waiting = await sql<{ position: string }[]>`select e.position from outbox.event e`
  const told = await sql<{ position: string; topic: string; partition: number; offset: string; status: string }[]>`
    select l.position, p.topicname as topic, l.partition, l."offset", l.producer_publish_status as status
    from auditlog.publish_log l join auditlog.producer_log p on p.seq_id = l.seq_id
    where l.position = any(${`{${[...all.keys()].join()}}`}::bigint[]) and l.latest`
  return [
    ...waiting.map(({ position }) => `I3: ${position} is still in the outbox`),
    ...told.length === all.size ? [] : [`I3: publish_log has ${told.length} of ${all.size}`],
    ...told.filter(({ position, topic, partition, offset, status }) => status !== 'PUBLISHED' || logs.get(`${topic}/${partition}`)?.[Number(offset)]?.position !== position)
      .map(({ position }) => `I3: publish_log tells of ${position} what is not so`),
  ]
}

/** Plays a plan, and looks at the tables at its end. Throws with what is needed to play it again. */
async function playOnce({ sql, connections, keys }: Place, { seed, killAt }: Plan): Promise<number> {
  const chance = chanceOf(seed)
  const ledger = openLedger()
  const lines: string[] = []
  const name = killAt === undefined ? String(seed) : `${seed}/${killAt}`
  const trace = (line: string): void => {
    lines.push(line)
    if (ONE !== undefined) console.log(line)
  }
  await sql.unsafe(`update outbox.lane set holder = null, held_until = '-infinity'; delete from outbox.relay`)
  const source = openSource({ connections, keys, name: `${name} ${performance.now()}`, committed: ledger.committed }, chance)
  try {
    const steps = await play({ sql, source, watch: ledger, chance, trace }, killAt)
    if (ledger.wrong.length === 0) ledger.wrong.push(...await wrongInTables(sql, ledger))
    if (ledger.wrong.length > 0) throw new Error(ledger.wrong.slice(0, 3).join('; '))
    return steps
  } catch (error) {
    throw new Error(`again with SCHEDULE=${name} npm test -- services/relay/schedules.test.ts: ${String(error)}\n${lines.slice(-60).join('\n')}`, { cause: error })
  }
}

/** Plays all plans, some at a time. */
async function playAll(plans: Iterable<Plan>, onPlayed: (plan: Plan, steps: number) => void = () => undefined): Promise<number> {
  const places = await Promise.all(Array.from({ length: STAGES }, openPlace))
  const next = plans[Symbol.iterator]()
  let count = 0
  try {
    await Promise.all(places.map(async (place) => {
      for (let one = next.next(); one.done !== true; one = next.next()) {
        onPlayed(one.value, await playOnce(place, one.value))
        count += 1
      }
    }))
  } finally {
    await Promise.all(places.map((place) => place.close()))
  }
  return count
}

const planOf = (text: string): Plan => {
  const [seed, killAt] = text.split('/').map(Number)
  return { seed: seed!, ...killAt === undefined ? {} : { killAt } }
}

test.serial('I3 I4 I5 two relays, of which one is killed before each step of a schedule once: every event is published in order, and leaves when the broker has it', async (t) => {
  const plans: Plan[] = []
  await playAll((ONE === undefined ? KILLED : []).map((seed) => ({ seed, killAt: Number.POSITIVE_INFINITY })), ({ seed }, steps) => {
    plans.push(...Array.from({ length: steps }, (_, killAt) => ({ seed, killAt })))
  })
  t.is(await playAll(plans), plans.length)
})

// In parts, so that on a slow machine a test ends now and then.
for (const [at, part] of (ONE === undefined ? partsOf(SEEDS, 125) : [[planOf(ONE)]]).entries()) {
  test.serial(`I3 I4 I5 two relays by any schedule of kills, freezes, ended leases, late commits, and answers and writes that come late or never: every event is published in order, and leaves when the broker has it (part ${at + 1})`, async (t) => {
    t.is(await playAll(part), part.length)
  })
}

function partsOf(count: number, size: number): Plan[][] {
  return Array.from({ length: Math.ceil(count / size) }, (_, at) => Array.from({ length: Math.min(size, count - at * size) }, (_, n) => ({ seed: at * size + n + 1 })))
}
