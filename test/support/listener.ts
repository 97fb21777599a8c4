import { once } from 'node:events'
import { request, type ClientRequest, type IncomingHttpHeaders, type IncomingMessage } from 'node:http'
import { text as readText } from 'node:stream/consumers'

import { runListener } from '../../services/listener/main.ts'
import { readConfig, type Config } from '../../services/runtime/config.ts'
import { openLog } from '../../services/runtime/log.ts'

export type Answered = { status: number; headers: IncomingHttpHeaders; text: string; json: unknown }

export type TestListener = {
  url: string
  post: (body: string | Uint8Array, options?: { path?: string; headers?: Record<string, string> }) => Promise<Answered>
  get: (path: string) => Promise<Answered>
  /** How often the relay was woken. */
  rung: () => number
  /** Aborts, as SIGTERM does, and waits for the end. */
  stop: () => Promise<void>
  abort: () => void
  ended: Promise<void>
}

/** A listener in this process on a free port. `overrides` are fields of the configuration. */
export async function startListener(databaseUrl: string, overrides: Partial<Config> = {}): Promise<TestListener> {
  const config = {
    ...readConfig({ DATABASE_URL: databaseUrl, KAFKA_BROKERS: '127.0.0.1:9', PORT: '0', DEFAULT_SCHEMA: 'guildhall' }),
    ...overrides,
  }
  const stopping = new AbortController()
  const { promise: listening, resolve, reject } = Promise.withResolvers<string>()
  let rings = 0
  const ended = runListener({
    config, log: openLog('listener', 'silent'), signal: stopping.signal, onListening: resolve,
    wake: {
      ring: () => {
        rings += 1
      },
    },
  })
  ended.catch(reject)
  const url = await listening
  return {
    url,
    post: (body, { path = '/events', headers = {} } = {}) => exchange(url, 'POST', path, headers, body),
    get: (path) => exchange(url, 'GET', path, {}),
    rung: () => rings,
    abort: () => stopping.abort(),
    async stop() {
      stopping.abort()
      await ended
    },
    ended,
  }
}

async function exchange(url: string, method: string, path: string, headers: Record<string, string>, body?: string | Uint8Array): Promise<Answered> {
  const sent = request(`${url}${path}`, { method, headers, agent: false })
  sent.end(body)
  return answerOf(sent)
}

/** The answer of a request that the caller writes itself. */
export async function answerOf(sent: ClientRequest): Promise<Answered> {
  const [response] = await once(sent, 'response') as [IncomingMessage]
  const text = await readText(response)
  return { status: response.statusCode ?? 0, headers: response.headers, text, json: JSON.parse(text) as unknown }
}
