import { once } from 'node:events'
import { createServer, type RequestListener, type Server } from 'node:http'

export type ServeParts = {
  app: RequestListener
  host: string
  port: number
  /** Milliseconds from the abort after which connections that are still open are cut. */
  limit: number
  signal: AbortSignal
  onListening: (url: string) => void
}

/**
 * Serves until the signal aborts; then takes no more connections, answers what was begun, and resolves when the last
 * connection has ended. Rejects where the address is taken.
 */
export async function serveHttp({ app, host, port, limit, signal, onListening }: ServeParts): Promise<void> {
  if (signal.aborted) return
  // Above the 60 s after which load balancers drop an idle connection; the headers' limit must lie above it.
  const server = createServer({ keepAliveTimeout: 65_000, headersTimeout: 66_000 }, app)
  server.listen(port, host)
  await once(server, 'listening')
  onListening(addressOf(server, host))
  if (!signal.aborted) await once(signal, 'abort')

  const closed = once(server, 'close')
  server.close()
  const timer = setTimeout(() => server.closeAllConnections(), limit)
  await closed
  clearTimeout(timer)
}

function addressOf(server: Server, host: string): string {
  const address = server.address()
  const port = typeof address === 'object' && address !== null ? address.port : 0
  return `http://${host.includes(':') ? `[${host}]` : host}:${port}`
}
