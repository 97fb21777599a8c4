import test from 'ava'
import fc from 'fast-check'
import { decodeIdentity, encodeIdentity, partitionOf } from './record.ts'

const identity = fc.record({
  origin: fc.integer({ min: 1, max: 32_767 }),
  seqId: fc.bigInt({ min: 1n, max: 2n ** 63n - 1n }).map(String),
  attempt: fc.integer({ min: 0, max: 32_767 }),
  epoch: fc.integer({ min: 1, max: 2 ** 31 - 1 }),
  time: fc.bigInt({ min: -(2n ** 62n), max: 2n ** 63n - 1n }).map(String),
  seq: fc.bigInt({ min: 0n, max: 2n ** 63n - 1n }).map(String),
})

test('an identity comes back from its headers, as text and as the bytes that a consumer gets', (t) => {
  fc.assert(fc.property(identity, (one) => {
    const headers = encodeIdentity(one)
    t.deepEqual(decodeIdentity(headers), one)
    t.deepEqual(decodeIdentity(Object.fromEntries(Object.entries(headers).map(([name, value]) => [name, Buffer.from(value)]))), one)
  }))
})

test('the headers are few and their names are frozen', (t) => {
  const one = { origin: 1, seqId: '7', attempt: 0, epoch: 2, time: '-5', seq: '7' }
  t.deepEqual(encodeIdentity(one), { 'deltapost-id': '1:7:0', 'deltapost-version': '2:-5:7' })
  t.deepEqual(encodeIdentity(one, '00-a-b-01'), { 'deltapost-id': '1:7:0', 'deltapost-version': '2:-5:7', traceparent: '00-a-b-01' })
})

test('a record of somebody else has no identity', (t) => {
  const good = { 'deltapost-id': '1:7:0', 'deltapost-version': '2:5:7' }
  for (const headers of [undefined, {}, { 'deltapost-id': '1:7:0' }, { ...good, 'deltapost-id': '1:7' }, { ...good, 'deltapost-id': ' 1:7:0' },
    { ...good, 'deltapost-version': '2:5.5:7' }, { ...good, 'deltapost-id': ['1:7:0', '1:8:0'] }, { ...good, 'deltapost-id': '1:7:0\n' }]) {
    t.is(decodeIdentity(headers), undefined, JSON.stringify(headers))
  }
})

test('a lane has one partition, and all partitions are used', (t) => {
  const used = new Set(Array.from({ length: 64 }, (_, lane) => partitionOf(lane, 12)))
  t.is(used.size, 12)
  t.is(partitionOf(13, 12), 1)
  t.is(partitionOf(13, 1), 0)
})
