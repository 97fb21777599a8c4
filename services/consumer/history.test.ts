import test from 'ava'
import fc from 'fast-check'
import type { ExecutionContext } from 'ava'
import { arrival, consumerRig } from '../../test/support/arrivals.ts'
import type { Rig } from '../../test/support/arrivals.ts'
import { freshDatabase } from '../../test/support/database.ts'
import type { Arrival } from './element.ts'

type Row = { id: string; name: string; photo: string | null }
type Move = { kind: 'insert' | 'update' | 'partial' | 'delete' | 'rekey'; id: number; other: number; photo: boolean; refused: boolean }

/** Too much for a name of 40 characters. */
const REFUSED = ', with a name that is longer than the column'

/** Runs moves against a model of the source and gives the changes it would post, in the source's order. */
function history(moves: readonly Move[]): { changes: Arrival[]; rows: Row[] } {
  const model = new Map<number, Row>()
  const changes: Arrival[] = []
  for (const [at, move] of moves.entries()) {
    const time = (at + 1) * 10
    const row = model.get(move.id)
    const name = `move ${at}${move.refused ? REFUSED : ''}` // each image differs from every other: where two rows are alike Informix's posts cannot tell which moved
    const photo = move.photo ? `photo ${at}` : null
    if (row === undefined) {
      model.set(move.id, { id: String(move.id), name, photo })
      changes.push(arrival('account', 'INSERT', time, photo === null ? { id: String(move.id), name } : { id: String(move.id), name, photo }))
    } else if (move.kind === 'delete') {
      model.delete(move.id)
      changes.push(arrival('account', 'DELETE', time, { ...row }))
    } else if (move.kind === 'partial') {
      model.set(move.id, { ...row, name })
      changes.push(arrival('account', 'UPDATE', time, { id: [row.id, row.id], name: [row.name, name] }))
    } else {
      const id = move.kind === 'rekey' && !model.has(move.other) ? move.other : move.id
      model.delete(move.id)
      model.set(id, { id: String(id), name, photo })
      changes.push(arrival('account', 'UPDATE', time,
        { id: [row.id, String(id)], name: [row.name, name], photo: [row.photo ?? 'NULL', photo ?? 'NULL'] }))
    }
  }
  return { changes, rows: [...model.values()].sort((a, b) => Number(a.id) - Number(b.id)) }
}

const moves = (refused: fc.Arbitrary<boolean>) => fc.array(fc.record({
  kind: fc.constantFrom('insert', 'update', 'partial', 'delete', 'rekey'),
  id: fc.integer({ min: 1, max: 4 }),
  other: fc.integer({ min: 1, max: 4 }),
  photo: fc.boolean(),
  refused,
}), { minLength: 1, maxLength: 14 })

/** Delivers changes twice or once, in any order and any batches, over three partitions at once. */
async function deliver(rig: Rig, changes: readonly Arrival[], chance: (below: number) => number): Promise<void> {
  const deliveries = [...changes, ...changes.filter(() => chance(3) === 0)]
    .map((change) => ({ change, place: chance(1_000_000) })).sort((a, b) => a.place - b.place).map(({ change }) => change)
  const queues: Arrival[][][] = [[], [], []]
  while (deliveries.length > 0) queues[chance(3)]!.push(deliveries.splice(0, 1 + chance(5)))
  await Promise.all(queues.map(async (queue, partition) => {
    for (const batch of queue) if (await rig.apply(partition, ...batch) !== 'OK') throw new Error('not applied')
  }))
}

async function place(t: ExecutionContext, joined: boolean): Promise<Rig> {
  const database = await freshDatabase()
  const rig = await consumerRig(database.url, { joined })
  t.teardown(async () => {
    await rig.close()
    await database.drop()
  })
  await rig.rows('create schema app')
  await rig.rows('create table app.account (id integer primary key, name varchar(40), photo text)')
  return rig
}

const begin = 'truncate app.account, inbox.row_version, inbox.shift, inbox.parked, inbox.applied'
const stored = 'select id::text, name, photo from app.account order by account.id'

for (const [how, joined] of [['each in calls of its own', false], ['joined in one call', true]] as const) {
  test(`I6 I7 any history, delivered in any order, in any batches, twice, over three partitions at once, ${how}, ends as the source did`, async (t) => {
    const rig = await place(t, joined)
    await fc.assert(fc.asyncProperty(moves(fc.constant(false)), fc.infiniteStream(fc.nat()), async (list, chances) => {
      await rig.rows(begin)
      const { changes, rows: expected } = history(list)
      await deliver(rig, changes, (below) => Number(chances.next().value) % below)
      t.deepEqual(await rig.rows(stored), expected, JSON.stringify(list))
    }), { numRuns: 300, verbose: 1 })
  })

  test(`I8 any history with refused values, delivered in any order, ${how}, ends as the source did once the target takes them`, async (t) => {
    const rig = await place(t, joined)
    await fc.assert(fc.asyncProperty(moves(fc.nat(3).map((n) => n === 0)), fc.infiniteStream(fc.nat()), async (list, chances) => {
      await rig.rows(begin)
      await rig.rows('alter table app.account alter column name type varchar(40)')
      const { changes, rows: expected } = history(list)
      await deliver(rig, changes, (below) => Number(chances.next().value) % below)
      await rig.tend()
      t.deepEqual(await rig.rows('select state, stop_reason from outbox.relation where stop_reason is not null'), [])
      const outcomes = await rig.rows('select seq_id from inbox.applied')
      t.is(outcomes.length, changes.length, 'every change has an outcome')
      await rig.rows('alter table app.account alter column name type text')
      await rig.retryAll()
      await rig.tend()
      t.deepEqual(await rig.rows(stored), expected, JSON.stringify(list))
      t.deepEqual(await rig.rows(`select reason from inbox.parked where reason <> 'KEY_SHIFT'`), [])
      t.deepEqual(await rig.rows('select key from inbox.row_version where parked'), [])
    }), { numRuns: 150, verbose: 1 })
  })
}
