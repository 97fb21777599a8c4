import test from 'ava'
import type { PendingEvent } from '../../outbox/pending.ts'
import { until } from '../../test/support/until.ts'
import { hold } from './lanes.ts'
import { openPartition } from './partition.ts'
import { strandOf } from './strand.ts'

/** As kafkajs names what a broker says. */
class TooLarge extends Error {
  readonly type = 'RECORD_LIST_TOO_LARGE'
}

test('a limit that was small for a while does not keep the batches small', async (t) => {
  const lane = hold({ lane: 1, term: '1', floor: '0' }, Number.POSITIVE_INFINITY)
  const strand = strandOf(lane, 'topic')
  let limit = 1_000
  const sizes: number[] = []
  let published = 0
  const partition = openPartition({
    partition: 0,
    send: async (events) => {
      if (events.length * 100 > limit) throw new TooLarge()
      sizes.push(events.length)
      return 0n
    },
    published: (batch) => { published += batch.length },
    refused: () => t.fail('none is refused alone'),
    dropped: () => t.fail('none is dropped'),
    wentOn: () => undefined,
    trouble: { failed: () => undefined, worked: () => undefined },
  })
  let position = 0
  const add = (count: number): void => {
    for (let n = 0; n < count; n++) {
      position += 1
      const event: PendingEvent = { lane: 1, position: String(position), bytes: 100, topicname: 'topic', id: '', version: '', key: '', value: '', traceparent: null }
      partition.add({ event, lane, strand, reading: 0 })
    }
  }
  add(100)
  await until(() => published === 100)
  t.true(Math.max(...sizes) <= 10)
  limit = Number.POSITIVE_INFINITY
  add(10_000)
  await until(() => published === 10_100)
  t.is(Math.max(...sizes), 500)
})
