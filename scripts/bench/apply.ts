import { bareUpserts } from './bare.ts'
import { modelOf, makeSteps, type Step, type Unfit } from './changes.ts'
import { measuredBetween, takeReading } from './measure.ts'
import { faultsOf } from './oracles.ts'
import { openPlace, type Bench, type Place } from './place.ts'
import { fillTopic } from './prefill.ts'
import type { Measured } from './result.ts'
import { reach } from './wait.ts'

/** A topic with everything on it, and a database in which nothing of it is applied yet. */
export type Filled = { place: Place; steps: readonly Step[]; records: number; bytes: number; unfit?: Unfit }

export async function fill(bench: Bench, steps: readonly Step[], row: { bytes: number; unfit?: Unfit }): Promise<Filled> {
  const place = await openPlace(bench)
  try {
    await fillTopic(bench, place, steps, row)
    return { place, steps, ...row, records: await place.records() }
  } catch (error) {
    await place.drop()
    throw error
  }
}

/**
 * Applies a full topic in a copy of its database with one consumer and nothing else.
 *
 * The clock is that of the database: from the first outcome to the moment when the positions have reached the end.
 * The CPU is counted from the assignment on, so that the start of a process is not charged to the changes.
 */
export async function applyOnce(bench: Bench, filled: Filled, run: {
  scenario: string; variant: string; repeat: number; maxRetries?: number
}): Promise<Measured> {
  const { maxRetries, ...named } = run
  const place = await filled.place.copy()
  try {
    bench.tell(`${run.scenario}: ${run.variant}, run ${run.repeat}`)
    await place.start('consumer', maxRetries === undefined ? {} : { MAX_RETRIES: String(maxRetries) })
    const before = await takeReading(place)
    const { at } = await reach({
      what: 'records applied', goal: filled.records, everyMs: 20, signal: bench.signal, ask: () => applied(place),
    })
    const after = await takeReading(place)
    const [first] = await place.sql<{ at: string }[]>`select extract(epoch from min(applied_at))::text as at from inbox.applied`
    const refused = filled.unfit === undefined ? 0 : filled.steps.filter(({ marked }) => marked).length
    const faults = await faultsOf(place.sql, {
      changes: filled.steps.length, bytes: filled.bytes, published: true, model: modelOf(filled.steps, filled.unfit),
      ...(filled.unfit === undefined ? {} : { refused: { count: refused, unfit: filled.unfit, status: maxRetries === 0 ? 'FAILED' as const : 'RETRYING' as const } }),
    })
    return measuredBetween(place, before, after, { ...named, changes: filled.steps.length, seconds: at - Number(first?.at), faults })
  } finally {
    await place.drop()
  }
}

async function applied(place: Place): Promise<{ count: number; at: number }> {
  const [row] = await place.sql<{ count: number; at: string }[]>`
    select coalesce(sum(next_offset), 0)::integer as count, extract(epoch from clock_timestamp())::text as at
    from inbox.position where topic = ${place.topic}`
  return { count: row?.count ?? 0, at: Number(row?.at) }
}

/** From a full topic, 100 B and 1 KB rows. */
export async function apply(bench: Bench, keep: (run: Measured) => void): Promise<void> {
  for (const bytes of [100, 1_000]) {
    const filled = await fill(bench, makeSteps(bench.options.events), { bytes })
    try {
      for (let repeat = 1; repeat <= bench.options.repeats; repeat += 1) {
        if (bytes === 100) keep(await bareUpserts(bench, 'apply', repeat))
        keep(await applyOnce(bench, filled, { scenario: 'apply', variant: `${bytes} B`, repeat }))
      }
    } finally {
      await filled.place.drop()
    }
  }
}
