import { setTimeout as pause } from 'node:timers/promises'
import { DeltapostError } from '../../outbox/errors.ts'
import { comparePair, dropReceipts, readReceipts, readStatementTexts, standingOf, tellOutcomes, tellStatements } from '../../outbox/receipt.ts'
import type { Receipt } from '../../outbox/receipt.ts'
import type { Config } from '../runtime/config.ts'
import type { Log } from '../runtime/log.ts'
import { openSlot } from '../runtime/slot.ts'
import type { Slot } from '../runtime/slot.ts'

export type ShippingParts = {
  /** Where the changes were received: audit_log is there. */
  first: Slot
  /** Where they are applied. */
  target: Slot
  holder: string
  signal: AbortSignal
  log: Log
}

/** Idle looking, in milliseconds: begins at the first, doubles to the second. */
const look = { first: 50, most: 500 }

const backOff = { first: 500, most: 30_000 }

/** A database that is away for an hour is said so once a minute. */
const SAY_EVERY = 60_000

/** Origins may be raised while this runs; two small questions. */
const COMPARE_EVERY = 10_000

/**
 * Runs `work` until the signal and, where there is a second database, the shipping of receipts beside it. Either one's
 * failure ends the other: a consumer whose outcomes are told to nobody would look healthy.
 */
export async function besideShipping(
  { config, log, signal }: { config: Config; log: Log; signal: AbortSignal }, work: (signal: AbortSignal) => Promise<void>,
): Promise<void> {
  if (config.targetDatabaseUrl === undefined) return work(signal)
  const ended = new AbortController()
  const either = AbortSignal.any([signal, ended.signal])
  const first = openSlot({ url: config.databaseUrl, name: 'receipts' })
  const target = openSlot({ url: config.targetDatabaseUrl, name: 'receipts' })
  const shipping = shipReceipts({ first, target, holder: config.holder, signal: either, log })
  shipping.catch(() => ended.abort()) // its error is thrown below
  try {
    await work(either)
  } finally {
    ended.abort()
    await shipping.finally(() => Promise.all([first.close(), target.close()]))
  }
}

/**
 * Tells the first database what became of its changes in the second, until the signal. Ends at once where both are one.
 *
 * Either database may be away: what is not told stays in inbox.receipt, and memory holds one shipment. Throws only what
 * waiting cannot mend: ORIGIN_TAKEN and TARGET_NOT_SECOND.
 */
export async function shipReceipts(parts: ShippingParts): Promise<void> {
  const { signal } = parts
  const trouble = openTrouble(parts.log)
  let origins: readonly number[] | undefined
  let compareAt = 0
  let idle = look.first
  while (!signal.aborted) {
    let wait: number
    try {
      if (origins === undefined || performance.now() > compareAt) {
        origins = await originsToTell(parts)
        if (origins === undefined) return
        compareAt = performance.now() + COMPARE_EVERY
      }
      const shipped = await shipOnce(parts, origins)
      trouble.over()
      idle = shipped > 0 ? look.first : Math.min(idle * 2, look.most)
      wait = shipped > 0 ? 0 : idle
    } catch (error) {
      if (error instanceof DeltapostError) throw error
      origins = undefined // whoever comes back may be another one
      wait = trouble.failed(error)
    }
    if (wait > 0) await pause(wait, undefined, { signal }).catch((error: unknown) => { if (!signal.aborted) throw error })
  }
}

/** The first database's origins, the present one first; undefined where there is no second database. */
async function originsToTell({ first, target, log }: ShippingParts): Promise<readonly number[] | undefined> {
  const [here, there] = [await first.run(standingOf), await target.run(standingOf)]
  if (comparePair(here, there) === 'same') {
    log.info('TARGET_DATABASE_URL and DATABASE_URL are one database')
    return undefined
  }
  return [here.origin, ...here.origins.filter((origin) => origin !== here.origin)]
}

/**
 * One shipment: read, tell, delete, each a statement of its own, in this order. Ending between any two of them repeats it
 * without harm. Returns how many receipts were read; 0 too while another consumer ships.
 */
export async function shipOnce({ first, target, holder }: Pick<ShippingParts, 'first' | 'target' | 'holder'>, origins: readonly number[]): Promise<number> {
  const receipts = await target.run((sql) => readReceipts(sql, origins, holder))
  if (receipts === undefined || receipts.length === 0) return 0
  await tell({ first, target }, receipts)
  await target.run((sql) => dropReceipts(sql, receipts))
  return receipts.length
}

async function tell({ first, target }: Pick<ShippingParts, 'first' | 'target'>, receipts: readonly Receipt[]): Promise<void> {
  const texts = await target.run((sql) => readStatementTexts(sql, receipts))
  await first.run((sql) => tellStatements(sql, texts))
  await first.run((sql) => tellOutcomes(sql, receipts, texts))
}

type Trouble = { failed: (error: unknown) => number; over: () => void }

/** Says the first failure, then one a minute, then that it is over; gives how long to wait. */
function openTrouble(log: Log): Trouble {
  let failures = 0
  let sayAt = 0
  return {
    failed(error) {
      failures += 1
      if (performance.now() >= sayAt) {
        sayAt = performance.now() + SAY_EVERY
        log.warn({ failures, error }, 'outcomes cannot be told to the first database; they wait in the second, and applying goes on')
      }
      return Math.min(backOff.first * 2 ** Math.min(failures - 1, 10), backOff.most)
    },
    over() {
      if (failures > 0) log.info({ failures }, 'outcomes are told to the first database again')
      failures = 0
      sayAt = 0
    },
  }
}
