import { createRequire } from 'node:module'
import test from 'ava'
import fc from 'fast-check'

import type { Outgoing } from './kafka.ts'
import { encodeBatch } from './record-batch.ts'

const require = createRequire(import.meta.url)
type Encoder = { buffer: Buffer }
// Untyped files of the package: what it writes itself, record by record, is what ours is held against.
const kafkajsRecord = require('kafkajs/src/protocol/recordBatch/record/v0') as (record: object) => Encoder
const { RecordBatch } = require('kafkajs/src/protocol/recordBatch/v0') as { RecordBatch: (batch: object) => Promise<Encoder> }

async function byKafkajs(messages: readonly Outgoing[]): Promise<Buffer> {
  const stamps = messages.map(({ timestamp }) => Number(timestamp))
  const first = Math.min(...stamps)
  const records = messages.map((message, at) => kafkajsRecord({ ...message, offsetDelta: at, timestampDelta: stamps[at]! - first }))
  const { buffer } = await RecordBatch({ records, firstTimestamp: first, maxTimestamp: Math.max(...stamps), lastOffsetDelta: records.length - 1 })
  return buffer
}

/** All but what no client may decide or an idempotent producer needs: leader's epoch, checksum, producer's epoch and sequence. */
function told(batch: Buffer): Buffer {
  return Buffer.concat([batch.subarray(0, 12), batch.subarray(16, 17), batch.subarray(21, 51), batch.subarray(57)])
}

const bytes = (maxLength: number) => fc.uint8Array({ maxLength, size: 'max' }).map((some) => Buffer.from(some))
const message: fc.Arbitrary<Outgoing> = fc.record({
  key: bytes(200), value: fc.oneof(bytes(300), bytes(20_000)),
  timestamp: fc.integer({ min: 1_700_000_000_000, max: 1_700_000_000_000 + 2 ** 40 }).map(String),
  headers: fc.dictionary(fc.string({ unit: 'binary', maxLength: 20 }), fc.oneof(fc.string({ unit: 'binary', maxLength: 80 }), bytes(200)), { maxKeys: 4 }),
})

test('a batch has the bytes that kafkajs writes for the same messages', async (t) => {
  await fc.assert(fc.asyncProperty(fc.array(message, { minLength: 1, maxLength: 200 }), async (messages) => {
    t.deepEqual(told(encodeBatch(messages)), told(await byKafkajs(messages)))
  }), { numRuns: 100 })
})
