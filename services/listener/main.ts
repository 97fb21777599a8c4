import pRetry from 'p-retry'
import { lookUpRepeats } from '../../outbox/intake.ts'
import { rememberKeys } from '../../outbox/relation.ts'
import type { Config } from '../runtime/config.ts'
import type { Log } from '../runtime/log.ts'
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
}

/** The listener: takes posts until `signal` aborts, and resolves when all that was accepted is answered. */
export async function runListener({ config, log, signal, wake, onListening }: ListenerParts): Promise<void> {
  const connections = openConnections(config.databaseUrl)
  const { run, upkeep } = connections
  const groups = openGroups({ slots: connections.groups, bigSlot: connections.big, wake, log })
  const keys = rememberKeys(run, config.source)
  const { app, drained } = listenerApp({
    ingestParts: { settings: config, keys, groups, reject: connections.reject, lookUp: (key) => run((sql) => lookUpRepeats(sql, [key])) },
    maxBody: config.maxBody, budget: openBudget(config.bodyBudget), reachable: connections.reachable, signal, log,
  })
  try {
    await pRetry(() => run(checkDurable), {
      retries: Infinity, minTimeout: 200, maxTimeout: 2_000, randomize: true, signal,
      shouldRetry: ({ error }) => isEnvironment(error),
      onFailedAttempt: ({ error, attemptNumber }) => {
        if (attemptNumber === 1 && isEnvironment(error)) log.warn({ error }, 'waits for Postgres before it listens')
      },
    })
    const loops = [
      every(60_000, 'partitions', () => upkeep((sql) => sql`select auditlog.add_partitions()`), log, signal),
      every(5_000, 'relations', keys.refresh, log, signal),
      leaveBehind(config, log, signal),
    ]
    // Four fifths: the process itself ends at the whole of it, and what was begun must be answered before.
    await serveHttp({
      app, host: config.host, port: config.port, limit: config.shutdownTimeout * 0.8, signal,
      onListening: (url) => {
        log.info({ url }, 'listening')
        onListening?.(url)
      },
    })
    await Promise.all([...loops, drained()])
  } catch (error) {
    if (!signal.aborted) throw error
  } finally {
    await connections.close()
  }
}
