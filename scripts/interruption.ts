/**
 * Aborted by Ctrl-C, SIGTERM or SIGHUP, for a command that has servers and roles to stop in order.
 *
 * A second one a second later or more exits at once with 130; what was started ends by itself then, because each of it
 * waits on a pipe or channel that this process holds. (Ctrl-C arrives twice: from the terminal and from npm.)
 */
export function interruption(): AbortSignal {
  const interrupted = new AbortController()
  let askedAt = 0
  for (const name of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.on(name, () => {
      if (interrupted.signal.aborted && performance.now() - askedAt > 1_000) process.exit(130)
      if (interrupted.signal.aborted) return
      askedAt = performance.now()
      process.stderr.write('stopping\n')
      interrupted.abort()
    })
  }
  return interrupted.signal
}
