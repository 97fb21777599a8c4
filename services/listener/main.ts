import pRetry from 'p-retry'
import { lookUpRepeats } from '../../outbox/intake.ts'
import { rememberKeys } from '../../outbox/relation.ts'
import type { Config } from '../runtime/config.ts'
import type { Log } from '../runtime/log.ts'
import { lateAfter } from '../runtime/shutdown.ts'
import { isEnvironment } from '../runtime/slot.ts'
import { listenerApp } from './app.ts'
import { openBudget } from './body.ts'
import { openConnections } from './connections.ts'
import { checkDurable } from './durable.ts'
import { openGroups } from './group.ts'
import { serveHttp } from './serve.ts'
import { every, leaveBehind } from './upkeep.ts'

export type ListenerParts = {
  config: Config
  log: Log
  signal: AbortSignal
  /** Rung once per committed group. */
  wake: { ring: () => void }
  onListening?: (url: string) => void
  /** Milliseconds without a byte after which an upload is given up (default STALLED_MS). */
  stalledMs?: number
}

/**
 * The listener: takes posts until `signal` aborts, and resolves when all that was accepted is answered, or cut
 * off shortly before config.shutdownTimeout: a statement of the upkeep is not waited for.
 */
export async function runListener({ config, log, signal, wake, onListening, stalledMs }: ListenerParts): Promise<void> {
  // Within the limit, at which the process itself ends with 1, and a second for keeping the uploads that the cut broke off.
  const cutAfter = config.shutdownTimeout * 0.75
  const late = lateAfter(signal, cutAfter + 1_000)
  const connections = openConnections(config.databaseUrl)
  const { run, upkeep } = connections
  const groups = openGroups({ slots: connections.groups, bigSlot: connections.big, wake, log })
  const keys = rememberKeys(run, config.source)
  const { app, drained } = listenerApp({
    ingestParts: { settings: config, keys, groups, reject: connections.reject, lookUp: (key) => run((sql) => lookUpRepeats(sql, [key])) },
    maxBody: config.maxBody, budget: openBudget(config.bodyBudget), reachable: connections.reachable, signal, log,
    ...(stalledMs === undefined ? {} : { stalledMs }),
  })
  try {
    await Promise.race([late, pRetry(() => run(checkDurable), {
      retries: Infinity, minTimeout: 200, maxTimeout: 2_000, randomize: true, signal,
      shouldRetry: ({ error }) => isEnvironment(error),
      onFailedAttempt: ({ error, attemptNumber }) => {
        if (attemptNumber === 1 && isEnvironment(error)) log.warn({ error }, 'waits for Postgres before it listens')
      },
    })])
    const loops = [
      every(60_000, 'partitions', () => upkeep((sql) => sql`select auditlog.add_partitions()`), log, signal),
      every(5_000, 'relations', keys.refresh, log, signal),
      leaveBehind(config, log, signal),
    ]
    await serveHttp({
      app, host: config.host, port: config.port, limit: cutAfter, signal,
      onListening: (url) => {
        log.info({ url }, 'listening')
        onListening?.(url)
      },
    })
    await Promise.race([Promise.all([...loops, drained()]), late])
  } catch (error) {
    if (!signal.aborted) throw error
  } finally {
    await connections.close(config.shutdownTimeout * 0.05)
  }
}
