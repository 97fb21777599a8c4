import { connect as tcp } from 'node:net'
import postgres from 'postgres'
import type { Options, PostgresType, Sql as PostgresSql } from 'postgres'
import { arrayTypes } from './arrays.ts'

/** Milliseconds for the TCP connect, and as many for the sign-in. */
const CONNECT_MS = 5_000

type Types = { timestamp: PostgresType<string> } & typeof arrayTypes

/** bigint and numeric come as text by default, timestamps because of this type: nothing is rounded on the way. */
type Sql = PostgresSql<{ timestamp: string }>

/**
 * A slot: one connection with one single statement in flight, which either answers, fails, or is given up at a deadline.
 *
 * postgres.js 3.4.9 leaves queries hanging for ever when a connection dies between 'error' and 'close', and its begin()
 * can commit outside of the transaction. So every unit of work here is one statement, raced against the death of its
 * connection, and a connection that failed in any way but a plain statement error is thrown away.
 */
export type Slot = {
  /** Runs one statement. Rejects with SlotLost when the outcome is unknown: repeat only what is idempotent. */
  run<T>(work: (sql: Sql) => PromiseLike<T>): Promise<T>
  /** Ends the connection; a statement in flight has `grace` milliseconds (5,000 unless given), then it is lost. */
  close(grace?: number): Promise<void>
}

export type SlotOptions = {
  url: string
  /** Shown in pg_stat_activity. */
  name: string
  /** Milliseconds after which a statement is given up (default 15,000); the server ends it 2 seconds earlier. */
  deadline?: number
  lockTimeout?: number
  plans?: Plans
}

/**
 * How the statements of a connection are planned. At each run, unless given: then a plan cannot be one for tables that
 * were empty. Planning is most of what a small statement costs (0.4 of 0.65 ms for an intake of two changes), so:
 *
 * kept: planned once, and no table is read but over an index: a plan made on an empty table would read all of it ever after.
 * by index: also each join goes row by row over an index, for statements that join what is given to a table that grows.
 */
export type Plans = 'kept' | 'by index'

const KEPT = { plan_cache_mode: 'force_generic_plan', enable_seqscan: 'off' }
const SETTINGS_OF: Readonly<Record<Plans, Readonly<Record<string, string>>>> = {
  kept: KEPT,
  'by index': { ...KEPT, enable_bitmapscan: 'off', enable_hashjoin: 'off', enable_mergejoin: 'off' },
}

/** The statement was sent and its outcome is unknown, or it never reached the server. */
export class SlotLost extends Error {
  readonly code = 'DATABASE_LOST'
  readonly retry = true
}

/**
 * Settings that every connection needs: text instead of rounded numbers, plans that cannot be of an empty table.
 *
 * `givenUp` ends a connect that is under way: the driver's end() does not, and would sign in for nobody when it succeeds.
 */
export function connectionOptions(options: SlotOptions & { givenUp?: AbortSignal }): Options<Types> {
  const deadline = options.deadline ?? 15_000
  const driverOptions = {
    max: 1,
    max_lifetime: null,
    idle_timeout: 0,
    connect_timeout: CONNECT_MS / 1_000, // of the sign-in: the driver begins to count when noDelaySocket is done
    fetch_types: false, // see arrayTypes
    onnotice: () => undefined,
    // The driver never sets TCP_NODELAY, which costs 40 ms on every statement larger than a packet.
    socket: (to: Address) => noDelaySocket(to, options.givenUp),
    connection: {
      application_name: `deltapost ${options.name}`,
      statement_timeout: Math.max(1_000, deadline - 2_000),
      lock_timeout: options.lockTimeout ?? Math.max(1_000, deadline - 5_000),
      idle_in_transaction_session_timeout: 30_000,
      default_transaction_isolation: 'read committed' as const,
      plan_cache_mode: 'force_custom_plan',
      synchronous_commit: 'on',
      search_path: 'pg_catalog',
      ...(options.plans === undefined ? {} : SETTINGS_OF[options.plans]),
      TimeZone: 'UTC',
      DateStyle: 'ISO, MDY',
    },
    types: {
      timestamp: { to: 1114, from: [1082, 1114, 1184], serialize: String, parse: String },
      ...arrayTypes,
    },
  }
  return driverOptions satisfies Options<Types>
}

/** Opens a slot; the connection itself is made by the first statement, and made again after a loss. */
export function openSlot(options: SlotOptions): Slot {
  const deadline = options.deadline ?? 15_000
  // Each statement waits for the loss with a promise of its own: one for the connection's whole life, raced against every
  // statement, would keep what each of them read.
  type Open = { sql: Sql; losing: Set<(error: SlotLost) => void>; alive: boolean; over: AbortController }
  let current: Open | undefined

  function open(): Open {
    const over = new AbortController()
    const mine: Open = { alive: true, losing: new Set(), over, sql: postgres(options.url, {
      ...connectionOptions({ ...options, givenUp: over.signal }),
      onclose: () => {
        if (!mine.alive) return
        mine.alive = false
        for (const lose of mine.losing) lose(new SlotLost('the connection to Postgres closed'))
      },
    }) }
    return mine
  }

  return {
    async run(work) {
      if (!current?.alive) current = open()
      const mine = current
      const { promise: lost, reject: lose } = Promise.withResolvers<never>()
      mine.losing.add(lose)
      try {
        return await withDeadline(Promise.race([Promise.resolve(work(mine.sql)), lost]), deadline)
      } catch (error) {
        if (!isLoss(error)) throw error
        mine.alive = false
        mine.over.abort()
        // Not awaited: end() hangs for ever right after a disconnect.
        mine.sql.end({ timeout: 0 }).catch(() => undefined)
        throw error instanceof SlotLost ? error : new SlotLost(describe(error), { cause: error })
      } finally {
        mine.losing.delete(lose)
      }
    },
    async close(grace = 5_000) {
      const mine = current
      current = undefined
      if (!mine?.alive) return
      mine.alive = false
      // A fifth more, because end() may hang for ever.
      await Promise.race([mine.sql.end({ timeout: grace / 1_000 }), new Promise((resolve) => setTimeout(resolve, grace * 1.2).unref())])
      mine.over.abort()
    },
  }
}

/** SQLSTATE of an error or of what caused it, undefined where the server said nothing. */
export function sqlstateOf(error: unknown): string | undefined {
  for (let at: unknown = error; at instanceof Error; at = at.cause) {
    // A server gives a severity with it; EPIPE has the form of an SQLSTATE too.
    if ('severity' in at && 'code' in at && typeof at.code === 'string') return at.code
  }
  return undefined
}

/** True where waiting can help: connection, sign-in, resources, locks, deadlocks, cancelled by timeout, shutting down. */
export function isEnvironment(error: unknown): boolean {
  if (error instanceof SlotLost || isFatal(error)) return true
  const state = sqlstateOf(error)
  return state !== undefined && /^(08|25|26|28|3D|40|53|55P03|57|58|F0|XX)/.test(state)
}

/** The server ended or refused the connection, whatever SQLSTATE it gives for that: 55000 of a database that takes none. */
function isFatal(error: unknown): boolean {
  return error instanceof Error && 'severity' in error && (error.severity === 'FATAL' || error.severity === 'PANIC')
}

/**
 * True where the connection cannot be trusted any more: the driver's own codes, the network's, and the SQLSTATEs of a
 * server that goes down or has lost its files. Any other ends its statement only, also one that nobody knows: a trigger
 * may raise what it likes. Errors without a code are the caller's.
 */
function isLoss(error: unknown): boolean {
  if (error instanceof SlotLost || isFatal(error)) return true
  const state = sqlstateOf(error)
  if (state !== undefined) return /^(08|25P|26|28|3D|57P|58|F0|XX)/.test(state)
  return error instanceof Error && 'code' in error && typeof error.code === 'string' && /^(E[A-Z]+|CONNECT|SASL|MAX_|MESSAGE_|NOT_TAGGED|UNSAFE)/.test(error.code)
}

function describe(error: unknown): string {
  return error instanceof Error ? `the statement was lost: ${error.message}` : 'the statement was lost'
}

/** Rejects with SlotLost when `work` takes longer than `ms` milliseconds; it goes on, and nobody hears of it. */
export async function withDeadline<T>(work: Promise<T>, ms: number): Promise<T> {
  const { promise: late, reject } = Promise.withResolvers<never>()
  const timer = setTimeout(() => reject(new SlotLost(`no answer from Postgres within ${ms} ms`)), ms)
  try {
    return await Promise.race([work, late])
  } finally {
    clearTimeout(timer)
  }
}

type Address = { host: string[]; port: number[] }

/** Connects within CONNECT_MS: a lost SYN or a full backlog hangs for two minutes, and the driver waits for it without a limit. */
function noDelaySocket({ host: [host], port: [port = 5432] }: Address, givenUp?: AbortSignal): Promise<unknown> {
  const { promise, resolve, reject } = Promise.withResolvers<unknown>()
  const socket = host?.startsWith('/') === true
    ? tcp({ path: `${host}/.s.PGSQL.${port}` })
    : tcp({ host, port, noDelay: true, keepAlive: true })
  const end = (): void => void socket.destroy(new SlotLost('no connection to Postgres: it was given up'))
  const timer = setTimeout(end, CONNECT_MS)
  givenUp?.addEventListener('abort', end)
  if (givenUp?.aborted === true) end()
  const settled = (): void => {
    clearTimeout(timer)
    givenUp?.removeEventListener('abort', end)
  }
  socket.once('connect', () => resolve(socket)).once('connect', settled)
  socket.once('error', reject).once('close', settled)
  return promise
}
