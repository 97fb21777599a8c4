import test from 'ava'
import type { PendingEvent } from '../../outbox/pending.ts'
import { until } from '../../test/support/until.ts'
import { Withdrawn } from './joint.ts'
import { hold } from './lanes.ts'
import type { HeldLane } from './lanes.ts'
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

test('I4 I5 where a send is withdrawn because a lane was lost, the others of it go next, each lane in order', async (t) => {
  const [kept, lost] = [1, 2].map((lane) => hold({ lane, term: '1', floor: '0' }, Number.POSITIVE_INFINITY)) as [HeldLane, HeldLane]
  const [sent, dropped]: string[][] = [[], []]
  const partition = openPartition({
    partition: 0,
    send: async (events, mayGoOn) => {
      await new Promise(setImmediate)
      if (!mayGoOn()) throw new Withdrawn('not sent')
      sent!.push(...events.map(({ position }) => position))
      return 0n
    },
    published: () => undefined,
    refused: () => t.fail('none is refused'),
    dropped: (batch) => { dropped!.push(...batch.map(({ event }) => event.position)) },
    wentOn: () => undefined,
    trouble: { failed: () => t.fail('the broker did not fail'), worked: () => undefined },
  })
  for (let position = 1; position <= 6; position++) {
    const lane = position % 2 === 0 ? lost : kept
    const event: PendingEvent = { lane: lane.lane, position: String(position), bytes: 100, topicname: 'topic', id: '', version: '', key: '', value: '', traceparent: null }
    partition.add({ event, lane, strand: strandOf(lane, 'topic'), reading: 0 })
  }
  await Promise.resolve()
  await Promise.resolve()
  lost.lost = true
  await until(() => sent!.length + dropped!.length === 6)
  t.deepEqual([sent, dropped], [['1', '3', '5'], ['2', '4', '6']])
})
