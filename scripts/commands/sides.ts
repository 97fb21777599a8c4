import { type Config, readConfig } from '../../services/runtime/config.ts'
import { type Slot, openSlot, SlotLost } from '../../services/runtime/slot.ts'
import { unreachable } from './database.ts'
import { environmentOfRunning, withUnused } from './environment.ts'
import { secondOf } from './target.ts'

/** The databases of a system, each statement with a time of its own: changes come into `first` and are applied in `target`, mostly one and the same. */
export type Sides = { config: Config; first: Slot; target: Slot; targetUrl: string }

/** A table that is locked must not hold up the operator for long; the consumer waits as long. */
const LOCK_MS = 3_000

/** Runs `work` with slots on both databases; each connects at its first statement. Rejects with DATABASE_UNREACHABLE. */
export async function withSides<T>(work: (sides: Sides) => Promise<T>): Promise<T> {
  const config = readConfig(withUnused(environmentOfRunning(), ['KAFKA_BROKERS']))
  const second = secondOf(config.databaseUrl, config.targetDatabaseUrl)
  const first = slotOf(config.databaseUrl)
  const target = second === undefined ? first : slotOf(second)
  try {
    return await work({ config, first, target, targetUrl: second ?? config.databaseUrl })
  } finally {
    await Promise.all([...new Set([first, target])].map((slot) => slot.close()))
  }
}

function slotOf(url: string): Slot {
  const slot = openSlot({ url, name: 'cli', deadline: 60_000, lockTimeout: LOCK_MS })
  return {
    close: slot.close,
    run: (work) => slot.run(work).catch((error: unknown) => {
      throw error instanceof SlotLost ? unreachable(url, error) : error
    }),
  }
}
