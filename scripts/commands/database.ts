import { DeltapostError } from '../../outbox/errors.ts'
import type { Sql } from '../../outbox/sql.ts'
import { readConfig } from '../../services/runtime/config.ts'
import { SlotLost, openSlot } from '../../services/runtime/slot.ts'
import { environmentOfRunning, withUnused } from './environment.ts'

/** The address of the database a command works on, from the environment or a running `up`. */
export function databaseAddress(): string {
  return readConfig(withUnused(environmentOfRunning(), ['KAFKA_BROKERS'])).databaseUrl
}

/** Runs `work` on one connection; 15 seconds for all of it. Rejects with DATABASE_UNREACHABLE where there is no server. */
export async function withDatabase<T>(work: (sql: Sql) => Promise<T>, url: string = databaseAddress()): Promise<T> {
  const slot = openSlot({ url, name: 'cli' })
  try {
    return await slot.run(work)
  } catch (error) {
    throw error instanceof SlotLost ? unreachable(url, error) : error
  } finally {
    await slot.close()
  }
}

/** The address without its password, and why there is no answer. */
export function unreachable(url: string, cause: Error): DeltapostError {
  const { hostname, port, pathname } = new URL(url)
  const why = cause.cause instanceof Error ? cause.cause.message : cause.message
  return new DeltapostError(
    'DATABASE_UNREACHABLE',
    `no answer from the database ${pathname.slice(1)} at ${hostname}:${port === '' ? '5432' : port}: ${why}`,
    'start that server, or correct DATABASE_URL (npm run up starts servers of its own)',
    { cause, retry: true },
  )
}
