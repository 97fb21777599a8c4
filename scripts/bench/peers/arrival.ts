import type { Sql } from 'postgres'

import { DeltapostError } from '../../../outbox/errors.ts'
import { modelOf, rowOf, type Step } from '../changes.ts'
import type { Latency } from '../latency.ts'
import { wrongRows } from '../oracles.ts'
import type { Bench } from '../place.ts'
import { reach } from '../wait.ts'

/** Of the last rows to change: looked up by their key, which costs the target next to nothing. */
const TAIL = 200

/**
 * Waits until the target's table is what these changes make of it. First for the last rows to change, asked often; then
 * for the number and the sum over all, since partitions end at different times. Gives what is wrong where it never is.
 */
export async function arrival(bench: Bench, sql: Sql, steps: readonly Step[], bytes: number): Promise<string[]> {
  const model = modelOf(steps)
  const tail = [...new Set(steps.toReversed().map(({ id }) => id))].filter((id) => model.has(id)).slice(0, TAIL)
  const numbers = tail.map((id) => Number(rowOf(id, model.get(id) ?? 0, bytes).n))
  const sum = [...model].reduce((all, [id, version]) => all + Number(rowOf(id, version, bytes).n), 0)
  const wait = { signal: bench.signal, told: () => undefined }
  try {
    await reach({
      ...wait, what: 'the last rows', goal: tail.length, everyMs: 20,
      // Until they are there, the size of the table shows that something moves.
      ask: async () => (await sql<{ count: number }[]>`
        select case when found = ${tail.length}::integer then found else -(pg_relation_size('bench.item') / 8192)::integer - 1 end as count
        from (select count(*)::integer as found from bench.item
          join unnest(${sql.array(tail, 20)}::bigint[], ${sql.array(numbers, 23)}::integer[]) as t(id, n) using (id, n)) x`)[0] ?? { count: 0 },
    })
    await reach({
      ...wait, what: 'all rows', goal: 1, everyMs: 50,
      ask: async () => {
        const [row] = await sql<{ rows: number; sum: string }[]>`select count(*)::integer as rows, coalesce(sum(n), 0)::text as sum from bench.item`
        return { count: row?.rows === model.size && row.sum === String(sum) ? 1 : -(row?.rows ?? 0) - 1 }
      },
    })
    return []
  } catch (error) {
    if (error instanceof DeltapostError && error.code === 'BENCH_STILL') return [error.message]
    throw error
  }
}

/** Every row of the target against the changes. */
export async function faultsOfRows(sql: Sql, steps: readonly Step[], bytes: number): Promise<string[]> {
  return wrongRows(sql, modelOf(steps), bytes)
}

/**
 * From the moment a change was due to its commit in the target; of rows that changed again, of their last change. Rows
 * that a peer's trigger has stamped, by that: a subscriber's commits carry the source's time.
 */
export async function dueToVisible(sql: Sql, sinceMicros: number): Promise<Latency> {
  const [row] = await sql<Latency[]>`
    select q[1] as p50, q[2] as p95, q[3] as p99, q[4] as p999, q[5] as max from (
      select percentile_disc(array[0.5, 0.95, 0.99, 0.999, 1]) within group (
        order by (extract(epoch from coalesce(arrived, pg_xact_commit_timestamp(xmin))) * 1000000 - due)::float8 / 1000) as q
      from bench.item where due >= ${String(sinceMicros)}
    ) x`
  if (row === undefined) throw new Error('an aggregate without a row')
  return row
}
