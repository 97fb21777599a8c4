import test from 'ava'
import fc from 'fast-check'
import { cut } from '../../outbox/chunk.ts'
import type { Chunk } from '../../outbox/chunk.ts'
import type { Identity } from '../../outbox/record.ts'
import { IDLE, openChunks } from './chunks.ts'
import type { Chunks } from './chunks.ts'

type Part = { identity: Identity; chunk: Chunk; bytes: Buffer }

const identity = (seqId: number): Identity => ({ origin: 1, seqId: String(seqId), attempt: 0, epoch: 1, time: '0', seq: String(seqId) })
const valueOf = (seqId: number, size: number): Buffer => Buffer.from(Array.from({ length: size }, (_, at) => (at * 7 + seqId * 31) % 256))
const partsOf = (seqId: number, size: number, most: number): Part[] =>
  [...cut(valueOf(seqId, size), most)].map(({ chunk, bytes }) => ({ identity: identity(seqId), chunk, bytes }))

/** Takes parts at offsets from `from` on and says what each came to. */
function takeAll(chunks: Chunks, parts: readonly Part[], from = 0): (string | Buffer)[] {
  return parts.map(({ identity, chunk, bytes }, at) => chunks.take(BigInt(from + at), identity, chunk, bytes))
}

/** What relays did with one event: runs that ended early, each with a cut of its own, and a last one that was completed. */
const story = fc.record({
  size: fc.integer({ min: 1, max: 60 }),
  ended: fc.array(fc.record({ most: fc.integer({ min: 3, max: 20 }), sent: fc.nat({ max: 12 }) }), { maxLength: 3 }),
  most: fc.integer({ min: 3, max: 20 }),
  completed: fc.boolean(),
  /** Records that were written again, later by so many records of the event's. */
  again: fc.array(fc.record({ which: fc.nat(), later: fc.nat({ max: 8 }) }), { maxLength: 4 }),
})

function recordsOf(seqId: number, { size, ended, most, completed, again }: typeof story extends fc.Arbitrary<infer T> ? T : never): Part[] {
  const records = ended.flatMap((run) => partsOf(seqId, size, run.most).slice(0, run.sent))
  if (completed) records.push(...partsOf(seqId, size, most))
  for (const { which, later } of again) {
    if (records.length === 0) continue
    const at = which % records.length
    records.splice(at + 1 + later, 0, records[at]!)
  }
  return records
}

/** Merges by `order`, keeping the order within each. */
function interleave(lists: Part[][], order: readonly number[]): Part[] {
  const rest = lists.map((list) => [...list])
  const log: Part[] = []
  for (let turn = 0; rest.some((list) => list.length > 0); turn++) {
    const full = rest.filter((list) => list.length > 0)
    log.push(full[(order[turn % order.length] ?? 0) % full.length]!.shift()!)
  }
  return log
}

/** How the consumer fares: sizes of calls, and whether each is applied, fails, or the consumer ends before or after it was applied. */
const fate = fc.record({
  sizes: fc.array(fc.integer({ min: 1, max: 7 }), { minLength: 1, maxLength: 10 }),
  ends: fc.array(fc.constantFrom('ok', 'ok', 'ok', 'fails', 'ends before', 'ends after'), { maxLength: 20 }),
  memory: fc.constantFrom(60, 100, 1_000),
})

/** The loop's way with Chunks, over a list for a log. Returns what was applied, by seq_id, and the stored position. */
function consume(log: readonly Part[], { sizes, ends, memory }: typeof fate extends fc.Arbitrary<infer T> ? T : never) {
  const applied = new Map<string, Buffer>()
  let clock = 0
  let position = 0n
  const open = (): Chunks => {
    const mine: Chunks = openChunks((bytes) => {
      if (mine.bytes() + bytes > memory) mine.giveBack()
      return mine.bytes() === 0 || mine.bytes() + bytes <= memory
    }, () => clock)
    return mine
  }
  let chunks = open()
  const headless: Part[] = []
  let from = 0
  for (let call = 0; from < log.length; call++) {
    if (call > 10_000) throw new Error('the partition does not move')
    clock += 10
    const end = ends.shift() ?? 'ok'
    const whole: [string, Buffer][] = []
    chunks.begin(BigInt(from))
    let next = from
    for (; next < Math.min(log.length, from + (sizes[call % sizes.length] ?? 1)); next++) {
      const { identity, chunk, bytes } = log[next]!
      const taken = chunks.take(BigInt(next), identity, chunk, bytes)
      if (taken === 'FULL') { clock += IDLE; break }
      if (taken === 'HEADLESS' && !applied.has(identity.seqId)) headless.push(log[next]!)
      if (Buffer.isBuffer(taken)) whole.push([identity.seqId, Buffer.from(taken)])
    }
    if (end === 'ok' || end === 'ends after') {
      for (const [seqId, value] of whole) applied.set(seqId, value)
      position = chunks.hold() ?? BigInt(next)
      chunks.settle()
      from = next
      const again = chunks.rewind()
      if (again !== undefined) from = Number(again)
    }
    if (end.startsWith('ends')) {
      chunks = open()
      from = Number(position)
    }
  }
  return { applied, position, headless, chunks }
}

test('I6 whatever runs ended early, were repeated and interleaved, and wherever the consumer ended: every completed run is applied, byte for byte', (t) => {
  const world = fc.record({ stories: fc.array(story, { minLength: 1, maxLength: 4 }), order: fc.array(fc.nat(), { minLength: 1, maxLength: 30 }), fate })
  fc.assert(fc.property(world, ({ stories, order, fate }) => {
    const log = interleave(stories.map((one, seqId) => recordsOf(seqId, one)), order)
    const { applied, position, headless } = consume(log, structuredClone(fate))
    for (const [seqId, { size, completed }] of stories.entries()) {
      const value = applied.get(String(seqId))
      if (completed) t.deepEqual(value, valueOf(seqId, size), `event ${seqId}`)
      else if (value !== undefined) t.deepEqual(value, valueOf(seqId, size))
    }
    t.deepEqual(headless, [])
    const openOnes = [...stories.keys()].filter((seqId) => !applied.has(String(seqId)))
    const heads = log.findIndex(({ identity }) => openOnes.includes(Number(identity.seqId)))
    if (heads >= 0) t.true(position <= BigInt(heads), `position ${position} passed the first chunk at ${heads}`)
  }), { numRuns: 2_000 })
})

test('the position stays at the first chunk of the oldest open set, and goes on when that is applied', (t) => {
  const chunks = openChunks(() => true)
  const [a, b] = [partsOf(1, 30, 10), partsOf(2, 20, 10)]
  takeAll(chunks, [a[0]!, b[0]!, a[1]!], 5)
  t.is(chunks.hold(), 5n)
  chunks.begin(8n)
  t.true(Buffer.isBuffer(takeAll(chunks, [a[2]!], 8)[0]))
  t.is(chunks.hold(), 6n)
  chunks.settle()
  t.is(chunks.bytes(), 20)
})

test('a call that failed delivers its changes again, and only when their last chunk comes again', (t) => {
  const chunks = openChunks(() => true)
  const [first, last] = partsOf(1, 20, 10)
  takeAll(chunks, [first!])
  chunks.begin(1n)
  t.true(Buffer.isBuffer(takeAll(chunks, [last!], 1)[0]))
  chunks.begin(1n)
  t.is(chunks.hold(), 0n)
  t.true(Buffer.isBuffer(takeAll(chunks, [last!], 1)[0]))
  chunks.settle()
  t.is(chunks.hold(), undefined)
  t.deepEqual(takeAll(chunks, [last!, first!], 2), ['PART', 'PART'])
})

test('a change without memory is passed over, and read again when its last chunk shows that it is all there', (t) => {
  let now = 0
  let others = 0
  const chunks: Chunks = openChunks((bytes) => { chunks.giveBack(); return others + chunks.bytes() + bytes <= 30 }, () => now)
  const [a, b, c] = [partsOf(1, 20, 10), partsOf(2, 20, 10), partsOf(3, 20, 10)]
  t.deepEqual(takeAll(chunks, [b[1]!, a[0]!, b[0]!]), ['HEADLESS', 'PART', 'PART'])
  t.is(chunks.rewind(), undefined)
  takeAll(chunks, [b[1]!], 3)
  t.is(chunks.hold(), 1n)
  others = 20
  t.is(chunks.rewind(), 2n)
  t.deepEqual(takeAll(chunks, [b[0]!], 2), ['FULL'], 'it waits for the memory of other partitions')
  others = 0
  t.deepEqual(takeAll(chunks, [b[0]!, c[0]!], 2), ['PART', 'PART'])
  now = IDLE
  chunks.giveBack()
  t.true(Buffer.isBuffer(takeAll(chunks, [b[1]!], 3)[0]), 'its memory is not given to others')
  chunks.settle()
  t.deepEqual([chunks.rewind(), chunks.hold(), chunks.bytes()], [undefined, 1n, 0])
  takeAll(chunks, [a[1]!], 4)
  t.is(chunks.rewind(), 1n)
  t.deepEqual(takeAll(chunks, [a[0]!, b[0]!, b[1]!], 1), ['PART', 'PART', 'PART'], 'what is applied needs no memory')
  t.true(Buffer.isBuffer(takeAll(chunks, [a[1]!], 4)[0]))
})

test('a set that nothing comes for gives its memory to another partition', (t) => {
  let now = 0
  const chunks = openChunks(() => true, () => now)
  const [first, last] = partsOf(1, 20, 10)
  takeAll(chunks, [first!], 5)
  chunks.giveBack()
  t.is(chunks.bytes(), 20)
  now = IDLE
  chunks.giveBack()
  t.deepEqual([chunks.bytes(), chunks.hold()], [0, 5n])
  takeAll(chunks, [last!], 9)
  t.is(chunks.rewind(), 5n)
})

test('a last chunk of which others are missing is said, and holds up nothing', (t) => {
  const chunks = openChunks(() => true)
  const [first, second, last] = partsOf(1, 30, 10)
  t.deepEqual(takeAll(chunks, [second!, first!, last!]), ['HEADLESS', 'PART', 'HEADLESS'])
  t.is(chunks.hold(), undefined)
})
