import type { Log } from './log.ts'

// npm and a terminal both pass Ctrl-C on, so one press arrives twice within milliseconds. It is not a second request.
const SAME_PRESS_MS = 500

/**
 * The signal that tells every loop of this process to stop: the first SIGTERM, SIGINT or SIGHUP aborts it, and so does
 * the end of the process that started this one, where the two are connected.
 *
 * A second signal, or `hardLimitMs` milliseconds after the first, exits with code 1: whatever was in flight is repeated
 * after the next start, because nothing is acknowledged before it is done. Errors that nobody caught are logged and exit
 * with code 1 too, since the state they leave is unknown.
 */
export function stopSignal(log: Log, hardLimitMs: number): AbortSignal {
  const stopping = new AbortController()
  let askedAt = 0

  function stop(why: string): void {
    if (stopping.signal.aborted) {
      if (performance.now() - askedAt < SAME_PRESS_MS) return
      log.error({ why }, 'stopped at once: asked a second time')
      process.exit(1)
    }
    askedAt = performance.now()
    log.info({ why }, 'stopping')
    setTimeout(() => {
      log.error({ limit: hardLimitMs }, 'stopped at once: not done within the limit')
      process.exit(1)
    }, hardLimitMs).unref()
    stopping.abort()
  }

  for (const name of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) process.on(name, stop)
  if (process.channel !== undefined) {
    process.once('disconnect', () => stop('the process that started this one is gone'))
    process.channel?.unref()
  }
  for (const event of ['uncaughtException', 'unhandledRejection'] as const) {
    process.on(event, (error: unknown) => {
      log.fatal({ error }, event === 'uncaughtException' ? 'an error that nobody caught' : 'a rejection that nobody waited for')
      process.exit(1)
    })
  }
  return stopping.signal
}

/**
 * Resolves `ms` milliseconds after the signal, for a role that races what may hang in its end against it: within the hard
 * limit, so that the process ends with 0. What is cut off is repeated after the next start.
 */
export function lateAfter(signal: AbortSignal, ms: number): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>()
  const wait = (): void => void setTimeout(resolve, ms).unref()
  if (signal.aborted) wait()
  else signal.addEventListener('abort', wait, { once: true })
  return promise
}
