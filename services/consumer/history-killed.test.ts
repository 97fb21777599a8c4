import test from 'ava'
import { pino } from 'pino'
import { arrival, consumerRig, COURSE } from '../../test/support/arrivals.ts'
import type { Rig } from '../../test/support/arrivals.ts'
import { freshDatabase } from '../../test/support/database.ts'
import { openSlot } from '../runtime/slot.ts'
import type { Arrival } from './element.ts'
import { openRelations } from './relations.ts'
import { unparkDue } from './unpark.ts'

type Row = { id: string; name: string; photo: string }
type Random = (below: number) => number

/** A seventh of the values is too long for its column. */
const TOO_LONG = 'more than ten characters'
const CHANGES = 400
/** No more: at the end one is left, and would be killed more often than it can begin anew. */
const MOST_KILLS = 20

/** A linear congruential generator (Numerical Recipes): the same numbers for a seed everywhere. */
function randomOf(seed: number): Random {
  let state = seed >>> 0
  return (below) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    return Math.floor(state / 2 ** 32 * below)
  }
}

/** What a source does to some dozen rows: `keys` says whether rows move to keys that others had. Each value of a row is random. */
function historyOf(random: Random, keys: 'fresh' | 'reused', seed: number): { changes: Arrival[]; rows: Row[] } {
  const rows = new Map<string, Row>()
  const changes: Arrival[] = []
  let fresh = 100
  const value = (): string => random(7) === 0 ? `${TOO_LONG} ${random(100)}` : `v${random(1_000)}`
  const newKey = (): string => keys === 'fresh' || random(10) < 3 ? String(fresh += 1) : String(random(10))
  for (let time = 1; time <= CHANGES; time += 1) {
    const seqId = seed * 1_000_000 + time
    const chance = random(100)
    const row = [...rows.values()][random(rows.size)]
    if (row === undefined || rows.size < 4 || chance < 10) {
      const id = random(2) === 0 ? String(random(10)) : newKey()
      if (rows.has(id)) continue
      const inserted = { id, name: value(), photo: value() }
      rows.set(id, inserted)
      changes.push(arrival('account', 'INSERT', time, inserted, seqId))
    } else if (chance < 20) {
      rows.delete(row.id)
      changes.push(arrival('account', 'DELETE', time, row, seqId))
    } else {
      const partial = chance >= 50 && chance < 75
      const id = chance < 50 ? newKey() : row.id
      if (id !== row.id && rows.has(id)) continue
      const now = { id, name: partial || random(2) === 0 ? value() : row.name, photo: chance >= 75 ? value() : row.photo }
      rows.delete(row.id)
      rows.set(id, now)
      changes.push(arrival('account', 'UPDATE', time, {
        id: [row.id, id], name: [row.name, now.name], ...partial ? {} : { photo: [row.photo, now.photo] as [string, string] },
      }, seqId))
    }
  }
  return { changes, rows: [...rows.values()].sort((a, b) => Number(a.id) - Number(b.id)) }
}

/** Three partitions, nearly in order, every twentieth change twice. */
function queuesOf(changes: readonly Arrival[], random: Random): Arrival[][] {
  const queues: Arrival[][] = [[], [], []]
  const shuffled = changes.map((change) => ({ change, place: Number(change.identity.time) + random(40) })).sort((a, b) => a.place - b.place)
  for (const { change } of shuffled) {
    queues[random(3)]!.push(change)
    if (random(20) === 0) queues[random(3)]!.push(change)
  }
  return queues
}

/** Applies a queue in batches, each again until it got through. */
async function run(rig: Rig, partition: number, queue: readonly Arrival[], random: Random): Promise<void> {
  for (let at = 0; at < queue.length;) {
    const count = 1 + random(12)
    const outcome = await rig.apply(partition, ...queue.slice(at, at + count)).catch(lost)
    if (outcome !== undefined) at += count
  }
}

/** A connection that was killed and a deadlock are the environment's; everything else is a fault. */
function lost(error: unknown): undefined {
  if (error instanceof Error && 'code' in error && ['DATABASE_LOST', '40P01', '57P01'].includes(String(error.code))) return undefined
  throw error
}

for (const [keys, seed] of [['fresh', 13], ['fresh', 17], ['fresh', 29], ['reused', 3], ['reused', 31]] as const) {
  test.serial(`I6 I7 I8 refusals, key changes and retries by three consumers whose backends are killed end as the source did (keys ${keys}, seed ${seed})`, async (t) => {
    const random = randomOf(seed)
    const database = await freshDatabase()
    const rigs = await Promise.all([1, 2, 3].map(() => consumerRig(database.url)))
    const [first, second] = rigs
    const slot = openSlot({ url: database.url, name: 'tend', lockTimeout: 0, deadline: 60_000 })
    t.teardown(async () => {
      await slot.close()
      await Promise.all(rigs.map((rig) => rig.close()))
      await database.drop()
    })
    await first!.rows('create schema app')
    await first!.rows('create table app.account (id integer primary key, name varchar(10), photo text)')
    const { changes, rows } = historyOf(random, keys, seed)
    const bySeqId = new Map(changes.map((change) => [change.identity.seqId, change]))
    const parts = { slot, clockTolerance: 300_000, course: COURSE, relations: openRelations({ source: 'INFORMIX', destination: 'POSTGRESQL', autoCreate: true, log: pino({ level: 'silent' }) }) }

    let busy = 3
    let kills = 0
    const work = queuesOf(changes, random).map((queue, at) => run(rigs[at]!, at, queue, randomOf(seed + at)).finally(() => { busy -= 1 }))
    while (busy > 0) {
      await unparkDue(parts).catch(lost)
      const refused = await first!.rows(`select seq_id, attempts from inbox.parked where reason = 'REFUSED' and attempts < 2 order by random() limit 3`)
      for (const { seq_id, attempts } of refused) {
        const change = bySeqId.get(String(seq_id))!
        await second!.apply(9, { ...change, identity: { ...change.identity, attempt: Number(attempts) + 1 } }).catch(lost)
      }
      if (random(5) === 0 && kills++ < MOST_KILLS) await first!.rows(`select pg_terminate_backend(pid) from (select pid from pg_stat_activity
        where datname = current_database() and application_name like 'deltapost rig _' order by random() limit 1) as one`)
    }
    await Promise.all(work)

    await first!.rows('alter table app.account alter column name type text')
    for (let turn = 0; turn < 8; turn += 1) {
      while (await unparkDue(parts).catch(lost) !== 0);
      await first!.retryAll().catch(lost)
    }
    t.deepEqual(await first!.rows('select id::text, name, photo from app.account order by account.id'), rows)
    t.deepEqual(await first!.rows('select seq_id, reason from inbox.parked'), [])
    t.deepEqual(await first!.rows('select key from inbox.row_version where parked'), [])
    t.deepEqual(await first!.rows(`select seq_id from outbox.event where kind = 'error' group by 1 having count(*) > 1`), [], 'a failure is told once')
    t.is(Number((await first!.rows('select count(*)::int as n from inbox.applied'))[0]?.['n']), changes.length, 'every change has an outcome')
  })
}
