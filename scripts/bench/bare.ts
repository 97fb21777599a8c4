import { makeSteps, modelOf, rowOf } from './changes.ts'
import { measuredBetween, takeReading } from './measure.ts'
import { openPlace, type Bench } from './place.ts'
import type { Measured, RatioRule } from './result.ts'

const ROWS = 100_000
const TOGETHER = 1_000
/** First they are new, then they change: as in the mix that runs beside it. */
const TIMES = 3

/** What runs beside it is compared with it, so that a slow machine is not taken for a slow program. */
export const BARE_RATIOS: readonly RatioRule[] = [
  { of: 'apply: 100 B', beside: 'apply' }, { of: 'relay: 100 B', beside: 'relay' }, { of: 'pipeline: drain 100 B', beside: 'pipeline' },
].map(({ of, beside }) => ({ name: `${of} to bare upserts`, of, to: `bare: beside ${beside}` }))

/**
 * The measure of the machine: rows of 100 B upserted into the table by one connection, 1,000 in a statement, with nothing
 * that makes it safe: no outbox, no Kafka, no versions, no logs. No pipeline that writes these rows can be faster.
 */
export async function bareUpserts(bench: Bench, beside: string, repeat: number): Promise<Measured> {
  const place = await openPlace(bench)
  try {
    const rows = [...modelOf(makeSteps(ROWS))].map(([id, version]) => rowOf(id, version, 100))
    const documents = Array.from({ length: Math.ceil(rows.length / TOGETHER) }, (_, at) => JSON.stringify(rows.slice(at * TOGETHER, (at + 1) * TOGETHER)))
    const before = await takeReading(place)
    for (const document of Array.from({ length: TIMES }, () => documents).flat()) {
      bench.signal.throwIfAborted()
      await place.sql`
        insert into bench.item (id, n, at, note)
        select id, n, at, note from json_to_recordset(${document}::text::json) as r(id bigint, n integer, at timestamp, note text)
        on conflict (id) do update set n = excluded.n, at = excluded.at, note = excluded.note`
    }
    const after = await takeReading(place)
    const [there] = await place.sql<{ n: number }[]>`select count(*)::integer as n from bench.item`
    return measuredBetween(place, before, after, {
      scenario: 'bare', variant: `beside ${beside}`, repeat, changes: rows.length * TIMES, seconds: (after.at - before.at) / 1_000,
      faults: there?.n === rows.length ? [] : [`rows: ${there?.n}, expected ${rows.length}`],
    })
  } finally {
    await place.drop()
  }
}
