import { bareUpserts } from './bare.ts'
import { makeSteps } from './changes.ts'
import { measuredBetween, takeReading, topicBytes } from './measure.ts'
import { faultsOf } from './oracles.ts'
import { openPlace, type Bench } from './place.ts'
import { drained, fillOutbox } from './prefill.ts'
import type { Measured } from './result.ts'

/** From a full outbox to the topic, with one relay and nothing else; the clock is the database's, from the first ack to the last. */
export async function relay(bench: Bench, keep: (run: Measured) => void): Promise<void> {
  const steps = makeSteps(bench.options.events)
  for (let repeat = 1; repeat <= bench.options.repeats; repeat += 1) {
    keep(await bareUpserts(bench, 'relay', repeat))
    const place = await openPlace(bench)
    try {
      bench.tell(`relay: 100 B, run ${repeat}`)
      await fillOutbox(bench, place, steps, { bytes: 100 })
      await place.start('relay')
      const before = await takeReading(place)
      await drained(bench, place, steps.length)
      const after = await takeReading(place)
      const [row] = await place.sql<{ seconds: number }[]>`
        select extract(epoch from max(producer_publish_time) - min(producer_publish_time))::float8 as seconds from auditlog.publish_log`
      const faults = await faultsOf(place.sql, { changes: steps.length, model: undefined, bytes: 100, published: true })
      const kafkaBytes = topicBytes(bench.kafkaData, place.topic)
      keep(measuredBetween(place, before, after, {
        scenario: 'relay', variant: '100 B', repeat, changes: steps.length, seconds: row?.seconds ?? NaN, faults,
        ...(kafkaBytes === undefined ? {} : { kafkaBytes }),
      }))
    } finally {
      await place.drop()
    }
  }
}
