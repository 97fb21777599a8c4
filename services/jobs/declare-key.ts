import { DeltapostError } from '../../outbox/errors.ts'
import { nameKey } from '../../outbox/name-key.ts'
import { openSlot, sqlstateOf } from '../runtime/slot.ts'
import type { Log } from '../runtime/log.ts'

export type DeclareKey = {
  schema: string
  table: string
  /** In the order of the key. */
  columns: readonly string[]
  /** The source whose relation this is, as in SOURCE. */
  source: string
  log: Log
}

/**
 * Registers the key of a relation; from then on its rows are found by it, and no longer by their full image.
 *
 * A table that was made from payloads is emptied and built again from producer_log, through Kafka like everything else:
 * resolves with the number of changes that are on their way again. A table that was there before needs a unique index.
 * Throws KEY_REFUSED with the statement that helps.
 */
export async function declareKey(databaseUrl: string, { schema, table, columns, source, log }: DeclareKey): Promise<number> {
  const slot = openSlot({ url: databaseUrl, name: 'declare key', deadline: 600_000, lockTimeout: 30_000 })
  try {
    const [row] = await slot.run((sql) => sql<{ replayed: string }[]>`
      select outbox.declare_key(${source}, ${schema}, ${table}, ${[...columns]}::text[]) as replayed`)
    const replayed = Number(row?.replayed ?? 0)
    log.info({ schema, table, key: columns, replayed }, 'declared the key')
    return replayed
  } catch (error) {
    if (sqlstateOf(error) !== 'P0001' || !(error instanceof Error)) throw error
    const hint = 'hint' in error && typeof error.hint === 'string' ? error.hint : 'npm run cli -- schema list'
    throw new DeltapostError('KEY_REFUSED', error.message, hint, { cause: error })
  } finally {
    await slot.close()
  }
}

/** Makes a key that was declared in the second database known to the first, where changes of the table come in. */
export async function tellKey(firstUrl: string, { schema, table, columns, source }: DeclareKey): Promise<void> {
  const slot = openSlot({ url: firstUrl, name: 'declare key', deadline: 600_000, lockTimeout: 30_000 })
  try {
    await slot.run((sql) => nameKey(sql, source, schema, table, columns))
  } finally {
    await slot.close()
  }
}
