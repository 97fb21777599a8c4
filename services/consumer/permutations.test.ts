import test from 'ava'
import { arrival, consumerRig } from '../../test/support/arrivals.ts'
import type { Rig, Values } from '../../test/support/arrivals.ts'
import { freshDatabase } from '../../test/support/database.ts'
import type { Arrival } from './element.ts'

/** The keys of a history are 1 to 9; those of each order stand this far apart, so that all orders go through one table at once. */
const APART = 10

type Row = { name: string; photo: string | null }
/** A full image of a row by its key, one without the photo, or one without the name; a move to another key; the end of a row. */
type Move = { insert: number; photo?: true } | { update: number } | { name: number } | { photo: number } | { move: number; to: number } | { delete: number }

/** Each of six changes, as the source made them. All of them have a re-use of something: a key, a column, a row that was gone. */
const HISTORIES: Record<string, Move[]> = {
  'deleted, and comes again': [{ insert: 1, photo: true }, { update: 1 }, { name: 1 }, { delete: 1 }, { insert: 1 }, { photo: 1 }],
  'to another key and back': [{ insert: 1, photo: true }, { update: 1 }, { move: 1, to: 2 }, { name: 2 }, { move: 2, to: 1 }, { photo: 1 }],
  'moved and deleted there, and its key used again': [{ insert: 1 }, { move: 1, to: 2 }, { insert: 1, photo: true }, { delete: 2 }, { name: 1 }, { move: 1, to: 3 }],
  'onto a key that another row had': [{ insert: 2 }, { delete: 2 }, { insert: 1, photo: true }, { name: 1 }, { move: 1, to: 2 }, { photo: 2 }],
}

/** The changes that a source posts for its moves, and its rows after each. No two images are alike: from alike ones nobody could tell which moved. */
function history(moves: readonly Move[], base: number): { changes: Arrival[]; ends: string[] } {
  const rows = new Map<number, Row>()
  const ends: string[] = []
  const changes: Arrival[] = []
  for (const [at, move] of moves.entries()) {
    changes.push(post(rows, move, at, base))
    ends.push(textOf([...rows].sort(([a], [b]) => a - b).map(([id, { name, photo }]) => [id, name, photo])))
  }
  return { changes, ends }
}

function post(rows: Map<number, Row>, move: Move, at: number, base: number): Arrival {
  const image = { name: `name ${at}`, photo: `photo ${at}` }
  const change = (operation: 'INSERT' | 'UPDATE' | 'DELETE', values: Values): Arrival => arrival('account', operation, (at + 1) * 10, values)
  if ('insert' in move) {
    rows.set(move.insert, { ...image, photo: move.photo === undefined ? null : image.photo })
    return change('INSERT', { id: String(base + move.insert), name: image.name, ...move.photo === undefined ? {} : { photo: image.photo } })
  }
  const [kind, id] = Object.entries(move)[0] as ['update' | 'name' | 'photo' | 'move' | 'delete', number]
  const was = rows.get(id)
  if (was === undefined) throw new Error('no such row')
  rows.delete(id)
  if (kind === 'delete') return change('DELETE', { id: String(base + id), ...was })
  const to = 'to' in move ? move.to : id
  rows.set(to, { ...kind === 'name' || kind === 'photo' ? was : image, ...kind === 'photo' ? { photo: image.photo } : {}, ...kind === 'name' ? { name: image.name } : {} })
  return change('UPDATE', {
    id: [String(base + id), String(base + to)],
    ...kind === 'photo' ? {} : { name: [was.name, image.name] },
    ...kind === 'name' ? {} : { photo: [was.photo ?? 'NULL', image.photo] },
  })
}

/** `deliveries` are the calls that bring its changes, each a place of the source's own order; `ends` the rows after each of that. */
type Order = { base: number; order: string; changes: Arrival[]; deliveries: number[][]; ends: string[] }
type Cut = (order: readonly number[], random: Random) => number[][]

/** All 720 orders, or one in `of`. */
function everyOrder(moves: readonly Move[], { cut, of }: Way): Order[] {
  const random = randomOf(1)
  return permutations(moves.map((_, at) => at)).filter(() => of === 1 || random(of) === 0).map((order, at) => {
    const base = at * APART
    return { base, order: order.map((one) => one + 1).join(), ...history(moves, base), deliveries: cut(order, random) }
  })
}

type Way = { cut: Cut; of: number }

/** A third of the orders in batches: where a batch is cut is by chance anyway, and key changes cost the target 0.5 ms each. */
const WAYS: Record<string, Way> = {
  'one by one': { of: 1, cut: (order) => order.map((one) => [one]) },
  'in batches, some twice': { of: 3, cut: (order, random) => {
    const twice = [...order]
    for (const one of order) if (random(3) === 0) twice.splice(twice.indexOf(one) + 1 + random(twice.length - twice.indexOf(one)), 0, one)
    const calls: number[][] = []
    while (twice.length > 0) calls.push(twice.splice(0, 1 + random(4)))
    return calls
  } },
}

/**
 * Call k has the k-th delivery of every order, half of them on each of two partitions: the orders know nothing of each
 * other, and 720 of them cost a dozen statements. Where an order has brought the first changes of the source and no other,
 * its rows must be those of then; so all orders of fewer changes are looked at on the way. Returns what was wrong.
 */
async function deliver(rig: Rig, orders: readonly Order[]): Promise<string[]> {
  const wrong: string[] = []
  const calls = Math.max(...orders.map(({ deliveries }) => deliveries.length))
  for (let call = 0; call < calls; call++) {
    const halves = [0, 1].map((half) => orders.filter((_, at) => at % 2 === half)
      .flatMap(({ changes, deliveries }) => (deliveries[call] ?? []).map((one) => changes[one]!)))
    for (const outcome of await Promise.all(halves.map((arrivals, half) => rig.apply(half, ...arrivals)))) if (outcome !== 'OK') throw new Error('not applied')
    const stored = Map.groupBy(await rig.rows('select id, name, photo from app.account order by account.id'), ({ id }) => Math.floor(Number(id) / APART))
    for (const { base, order, deliveries, ends } of orders) {
      const came = new Set(deliveries.slice(0, call + 1).flat())
      const ought = Math.max(...came) === came.size - 1 ? ends[came.size - 1] : undefined
      const is = textOf((stored.get(base / APART) ?? []).map(({ id, name, photo }) => [Number(id) - base, name, photo]))
      if (ought !== undefined && is !== ought) wrong.push(`${order} (${came.size} of them): ${is}, and the source ${ought}`)
    }
  }
  return wrong
}

const textOf = (rows: unknown[][]): string => JSON.stringify(rows)

for (const [what, moves] of Object.entries(HISTORIES)) {
  test.serial(`I6 I7 all orders of up to six changes of a row end as the source did, one by one and in batches with repeats: ${what}`, async (t) => {
    const database = await freshDatabase()
    const rig = await consumerRig(database.url)
    t.teardown(async () => {
      await rig.close()
      await database.drop()
    })
    await rig.rows('create schema app')
    await rig.rows('create table app.account (id integer primary key, name varchar(40), photo text)')
    for (const [name, way] of Object.entries(WAYS)) {
      await rig.rows('truncate app.account, inbox.row_version, inbox.shift, inbox.parked, inbox.applied')
      const orders = everyOrder(moves, way)
      const wrong = await deliver(rig, orders)
      t.is(wrong.length, 0, `${name}, ${wrong.length} wrong: ${wrong.slice(0, 3).join('; ')}`)
      t.deepEqual(await rig.rows('select count(*)::int as n from inbox.applied'), [{ n: orders.length * moves.length }], 'every change has an outcome')
    }
  })
}

type Random = (below: number) => number

/** A linear congruential generator (Numerical Recipes): the same numbers for a seed everywhere. */
function randomOf(seed: number): Random {
  let state = seed >>> 0
  return (below) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    return Math.floor(state / 2 ** 32 * below)
  }
}

function permutations(items: readonly number[]): number[][] {
  if (items.length <= 1) return [[...items]]
  return items.flatMap((item) => permutations(items.filter((other) => other !== item)).map((rest) => [item, ...rest]))
}
