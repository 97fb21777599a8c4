import { comparePair, standingOf } from '../../outbox/receipt.ts'
import { type Config, readConfig } from '../../services/runtime/config.ts'
import type { Log } from '../../services/runtime/log.ts'
import { isEnvironment, openSlot } from '../../services/runtime/slot.ts'
import { environmentOfRunning, runningStack, withUnused } from './environment.ts'

/** The addresses a command works on, from the environment or a running `up`; target undefined: there is one database. */
export function bothAddresses(): { first: string; target: string | undefined } {
  const { databaseUrl: first, targetDatabaseUrl } = readConfig(withUnused(environmentOfRunning(), ['KAFKA_BROKERS']))
  return { first, target: secondOf(first, targetDatabaseUrl) }
}

/** The second database where the first is this one. */
export function secondOf(first: string, target: string | undefined): string | undefined {
  const running = target === undefined ? runningStack() : undefined
  const second = running?.database === first ? running.target : target
  return second === first ? undefined : second
}

// A role must start while a database is away.
const PATIENCE_MS = 5_000

/**
 * Throws ORIGIN_TAKEN or TARGET_NOT_SECOND where the two databases of the configuration do not go together. One that
 * is away is no reason not to start: the consumer asks again when it ships receipts. True where there are two.
 */
export async function refuseWrongPair({ databaseUrl, targetDatabaseUrl }: Config, log: Log): Promise<boolean> {
  if (targetDatabaseUrl === undefined) return false
  const slots = [databaseUrl, targetDatabaseUrl].map((url) => openSlot({ url, name: 'start', deadline: PATIENCE_MS }))
  try {
    const [first, target] = await Promise.all(slots.map((slot) => slot.run(standingOf)))
    return first !== undefined && target !== undefined && comparePair(first, target) === 'two'
  } catch (error) {
    if (!isEnvironment(error)) throw error
    log.warn({ error }, 'one of the two databases is away; their origins are compared when it is back')
    return true
  } finally {
    await Promise.all(slots.map((slot) => slot.close()))
  }
}
