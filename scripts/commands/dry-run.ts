import { DeltapostError } from '../../outbox/errors.ts'
import { outcomesOf } from '../../outbox/parked.ts'
import { faultOf, kindOf } from '../../services/consumer/failure.ts'
import { arrivalOf, takeUp, type TakeUpParts } from '../../services/consumer/parked.ts'
import { readTarget, type TargetTable } from '../../services/consumer/target.ts'
import type { Config } from '../../services/runtime/config.ts'
import { openSlot, type Slot } from '../../services/runtime/slot.ts'
import { type Placed, takeUpParts, type Tried } from './parked-retry.ts'
import { differenceOf, type Place, targetRow, type TargetRow } from './target-row.ts'

/** A change that was tried, and the columns of its row that differ; undefined where its row cannot be told. */
export type Rehearsed = Tried & { difference: ReturnType<typeof differenceOf> | undefined }

/**
 * Milliseconds from the first lock on, looked at before each statement, which has a second: consumers wait behind the rows
 * it locks, and take what is locked for 3 s for a table that cannot be written.
 */
const MOST_MS = 2_000

/** Changes at most. */
export const REHEARSED = 200

/**
 * A connection whose session is read-only by default; only a transaction that says so may write. Where it is lost and made
 * again the driver goes on outside of the transaction, and there each statement that writes fails.
 */
export function openRehearsal(url: string): Slot {
  const address = new URL(url)
  address.searchParams.set('default_transaction_read_only', 'on')
  return openSlot({ url: address.href, name: 'dry run', deadline: 3_000, lockTimeout: 1_000 })
}

/** Applies changes in one transaction that is rolled back, and says what would become of each and of its row. */
export async function rehearse(url: string, config: Config, changes: readonly Placed[], placeOf: (change: Placed) => Place): Promise<Rehearsed[]> {
  const connection = openRehearsal(url)
  let locked = Infinity
  const slot: Slot = {
    close: connection.close,
    run: (work) => {
      if (performance.now() - locked > MOST_MS) throw tooSlow(changes.length)
      return connection.run(work)
    },
  }
  try {
    await slot.run((sql) => sql.unsafe('begin read write'))
    const look = await rowReader(slot, changes, placeOf)
    const parts = takeUpParts(slot, config)
    const seen: { why: string | undefined; before: TargetRow | undefined; after: TargetRow | undefined }[] = []
    locked = performance.now()
    for (const change of changes) {
      const before = await look(change)
      const why = await take(parts, change)
      seen.push({ why, before, after: await look(change) })
    }
    const outcomes = await slot.run((sql) => outcomesOf(sql, changes))
    return outcomes.map((outcome, at) => {
      const { why, before, after } = seen[at]!
      const difference = before === undefined || after === undefined ? undefined : differenceOf(before, after)
      return { ...outcome, difference, ...why === undefined ? {} : { hindered: why } }
    })
  } finally {
    // Where this cannot be sent, the end of the connection says the same.
    await connection.run((sql) => sql.unsafe('rollback')).catch(() => undefined)
    await connection.close()
  }
}

/** Why its relation cannot be written, if so. An error ends what a transaction can do, so there is a savepoint to go back to. */
async function take(parts: TakeUpParts, change: Placed): Promise<string | undefined> {
  await parts.slot.run((sql) => sql.unsafe('savepoint tried'))
  try {
    await takeUp(parts, [change], { state: 'ACTIVE', together: false, forced: true })
    await parts.slot.run((sql) => sql.unsafe('release savepoint tried'))
    return undefined
  } catch (error) {
    if (kindOf(error) !== 'relation') throw error
    await parts.slot.run((sql) => sql.unsafe('rollback to savepoint tried'))
    return faultOf(error)
  }
}

/** Reads the row of a change; the tables are looked up once. */
async function rowReader(slot: Slot, changes: readonly Placed[], placeOf: (change: Placed) => Place): Promise<(change: Placed) => Promise<TargetRow | undefined>> {
  const tables = new Map<string, TargetTable | undefined>()
  for (const { schema, table } of changes.map(placeOf)) {
    const name = `${schema}.${table}`
    if (!tables.has(name)) tables.set(name, await slot.run((sql) => readTarget(sql, schema, table)))
  }
  return async (change) => {
    const { schema, table, key } = placeOf(change)
    const target = tables.get(`${schema}.${table}`)
    if (target === undefined) return undefined
    // A change that holds up no row may have a key that cannot be read, which is an error.
    const unsure = change.key === null
    if (unsure) await slot.run((sql) => sql.unsafe('savepoint looked'))
    const row = await targetRow((work) => slot.run(work), target, key, arrivalOf(change).change)
    if (unsure) await slot.run((sql) => sql.unsafe('rollback to savepoint looked'))
    return row
  }
}

function tooSlow(changes: number): DeltapostError {
  return new DeltapostError('DRY_RUN_SLOW', `trying ${changes} changes took more than ${MOST_MS} ms, and consumers wait for the rows meanwhile; nothing was changed`, 'name fewer: --limit 10')
}
