import test from 'ava'
import fc from 'fast-check'
import { beginJoin, boundsOf, chunkHeader, countOf, cut, decodeChunk, fits, join, MOST_TOTAL } from './chunk.ts'
import type { Joining } from './chunk.ts'

const value = fc.uint8Array({ minLength: 1, maxLength: 400 }).map((bytes) => Buffer.from(bytes))

test('a value that is cut and joined is the same bytes, and no chunk is above the room or empty', (t) => {
  fc.assert(fc.property(value, fc.integer({ min: 1, max: 450 }), (bytes, most) => {
    const chunks = [...cut(bytes, most)]
    t.is(chunks.length, Math.ceil(bytes.length / most))
    t.true(chunks.every(({ chunk, bytes: part }) => part.length > 0 && part.length <= most && fits(chunk, part)))
    const joining = beginJoin({ count: chunks.length, total: bytes.length })
    t.deepEqual(chunks.map(({ chunk, bytes: part }) => join(joining, chunk, part)), chunks.map((_, at) => at === chunks.length - 1))
    t.deepEqual(joining.value, bytes)
  }))
})

test('chunks of several runs, of the same cut and of others, repeated and late, never make another value', (t) => {
  const mess = fc.record({
    bytes: value, mosts: fc.array(fc.integer({ min: 1, max: 100 }), { minLength: 1, maxLength: 3 }),
    order: fc.array(fc.tuple(fc.nat(), fc.nat()), { maxLength: 200 }),
  })
  fc.assert(fc.property(mess, ({ bytes, mosts, order }) => {
    const runs = mosts.map((most) => [...cut(bytes, most)])
    let joining: Joining | undefined
    for (const [which, at] of order) {
      const run = runs[which % runs.length]!
      const { chunk, bytes: part } = run[at % run.length]!
      if (chunk.index === 0) joining = beginJoin(chunk)
      if (joining !== undefined && join(joining, chunk, part)) t.deepEqual(joining.value, bytes)
    }
  }))
})

test('the bounds follow from total and count alone and cover the value', (t) => {
  fc.assert(fc.property(fc.integer({ min: 1, max: MOST_TOTAL }), fc.integer({ min: 512, max: 64 << 20 }), (total, most) => {
    const count = countOf(total, most)
    const at = (index: number) => boundsOf({ index, count, total })
    t.is(at(0).from, 0)
    t.is(at(count - 1).to, total)
    t.true(at(count - 1).to - at(count - 1).from <= most)
  }))
})

test('a chunk header comes back, as text and as bytes; one that no relay writes is told from none', (t) => {
  const chunk = { index: 2, count: 5, total: 5_000_000 }
  t.deepEqual(chunkHeader(chunk), { 'deltapost-chunk': '2:5:5000000' })
  t.deepEqual(decodeChunk(chunkHeader(chunk)), chunk)
  t.deepEqual(decodeChunk({ 'deltapost-chunk': Buffer.from('2:5:5000000') }), chunk)
  t.is(decodeChunk({}), undefined)
  t.is(decodeChunk(undefined), undefined)
  for (const header of ['', '2:5', '5:5:100', '0:0:0', '0:9:8', '-1:5:100', '0:1:999999999', '0:2000000:3000000', '1:2:3\n', ['0:1:5', '0:1:5']]) {
    t.is(decodeChunk({ 'deltapost-chunk': header }), 'INVALID', JSON.stringify(header))
  }
})
