import express, { type ErrorRequestHandler, type Express, type Request, type Response } from 'express'
import { BadChange, type Reason } from '../../outbox/change.ts'
import { isEnvironment } from '../runtime/slot.ts'
import type { Log } from '../runtime/log.ts'
import { discardRest, readBody, type Body, type Budget } from './body.ts'
import { ingest, refuse, type Answer, type IngestParts, type Item, type Post } from './ingest.ts'

export type AppParts = {
  ingestParts: IngestParts
  maxBody: number
  budget: Budget
  /** Milliseconds without a byte after which an upload is given up; see body.ts. */
  stalledMs?: number
  /** True where Postgres answers within a second. */
  reachable: () => Promise<boolean>
  /** Aborted when the process is to stop. */
  signal: AbortSignal
  log: Log
}

const STATUS: Partial<Record<Reason, number>> = { too_large: 413, idempotency_conflict: 422, older_than_horizon: 422 }
const DISCARD_MS = 2_000

/**
 * The routes. Bodies are read raw and answers written by hand: the framework's own cost half of the rate.
 *
 * `drained` resolves when no post is at work any more; an upload that was cut is kept after its connection has ended.
 */
export function listenerApp(parts: AppParts): { app: Express; drained: () => Promise<void> } {
  const app = express()
  const atWork = new Set<Promise<void>>()
  app.disable('x-powered-by')
  app.disable('etag')
  // The names by which older senders call one and the same intake.
  const paths = ['/events', '/kafkaevents', '/fileevents']
  app.post(paths, (request, response) => {
    const post = takePost(request, response, parts).finally(() => atWork.delete(post))
    atWork.add(post)
    return post
  })
  app.all(paths, (_, response) => send(response, parts, 405, { error: 'method_not_allowed' }, { Allow: 'POST' }))
  app.get('/healthz', (_, response) => send(response, parts, 200, { alive: true }))
  app.get('/readyz', async (_, response) => {
    const ready = !parts.signal.aborted && await parts.reachable()
    send(response, parts, ready ? 200 : 503, { ready })
  })
  app.all(['/healthz', '/readyz'], (_, response) => send(response, parts, 405, { error: 'method_not_allowed' }, { Allow: 'GET' }))
  app.use((_: Request, response: Response) => send(response, parts, 404, { error: 'not_found' }))
  app.use(onError(parts))
  return {
    app,
    async drained() {
      await Promise.allSettled(atWork)
    },
  }
}

async function takePost(request: Request, response: Response, parts: AppParts): Promise<void> {
  const body = await readBody(request, parts)
  try {
    if (body.kind === 'whole') sendAnswer(response, parts, await ingest(body.bytes, postOf(request), parts.ingestParts))
    else await refuseBody(body, request, response, parts)
  } finally {
    body.release()
  }
}

async function refuseBody(body: Body, request: Request, response: Response, parts: AppParts): Promise<void> {
  const post = postOf(request)
  if (body.kind === 'aborted' || body.kind === 'stalled') {
    const why = body.kind === 'aborted' ? 'went away' : 'fell silent'
    request.destroy() // no answer: whoever wakes up again sees a reset, which every sender takes for 'post again'
    if (body.bytes.length === 0) return
    await refuse(new BadChange('incomplete_body', `the sender ${why} after ${body.bytes.length} bytes`), body.bytes, post, parts.ingestParts)
    return
  }
  await discardRest(request, DISCARD_MS)
  if (body.kind === 'busy') {
    send(response, parts, 503, { error: 'busy' }, { 'Retry-After': '1', Connection: 'close' })
    return
  }
  const fault = new BadChange('too_large', `above ${parts.maxBody} bytes; the first ${body.bytes.length} are kept`)
  send(response, parts, 413, await refuse(fault, body.bytes, post, parts.ingestParts), { Connection: 'close' })
}

function postOf(request: Request): Post {
  const headers: Record<string, string> = {}
  for (const [name, value] of Object.entries(request.headers)) {
    if (/^(proxy-)?authorization$|^cookie$/.test(name) || value === undefined) continue
    headers[name] = typeof value === 'string' ? value : value.join(', ')
  }
  const traceparent = headers['traceparent']
  return {
    path: request.path,
    headers,
    idempotencyKey: headers['idempotency-key'] === '' ? undefined : headers['idempotency-key'],
    firstOrdinal: /^\d{1,9}$/.test(headers['idempotency-ordinal'] ?? '') ? Number(headers['idempotency-ordinal']) : 0,
    acceptOld: headers['deltapost-old'] === 'accept',
    traceparent: traceparent !== undefined && isTraceparent(traceparent) ? traceparent : undefined,
  }
}

/** https://www.w3.org/TR/trace-context/: version ff and ids of zeros only are invalid. */
function isTraceparent(text: string): boolean {
  return /^(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$/.test(text)
}

function sendAnswer(response: Response, parts: AppParts, { batch, items }: Answer): void {
  if (batch) {
    send(response, parts, items.some((item) => 'seq_id' in item) ? 200 : 422, items)
    return
  }
  for (const item of items) send(response, parts, 'seq_id' in item ? 200 : STATUS[item.reason] ?? 400, item)
}

type Sent = Item | readonly Item[] | Readonly<Record<string, string | boolean>>

// Small on purpose: the trigger prints the answer to the log of its database server.
function send(response: Response, { signal }: AppParts, status: number, content: Sent, headers: Record<string, string> = {}): void {
  if (response.headersSent || response.destroyed) return
  const text = JSON.stringify(content)
  response.writeHead(status, {
    'Content-Type': 'application/json',
    'Content-Length': Buffer.byteLength(text),
    ...(signal.aborted ? { Connection: 'close' } : {}),
    ...headers,
  })
  response.end(text)
}

/**
 * What is not the sender's fault is 503 and may be posted again, also where the fault is ours: nothing says that the
 * change is on disk, and a repeat is recognised.
 */
function onError(parts: AppParts): ErrorRequestHandler {
  let quietUntil = 0
  return (error: unknown, request, response, _next) => {
    const status = statusOf(error)
    if (status !== undefined) {
      send(response, parts, status, { error: 'bad_request' })
      return
    }
    // Failing commits are logged where they fail, once. This is a fault of the program or its set-up, or an upload that
    // broke off while nothing could be kept; a line every ten seconds tells it as well as one a post.
    if ((!mayRetry(error) || response.destroyed) && performance.now() >= quietUntil) {
      quietUntil = performance.now() + 10_000
      parts.log.error({ error, path: request.path }, 'a post failed')
    }
    send(response, parts, 503, { error: 'unavailable' }, { 'Retry-After': '1' })
  }
}

function mayRetry(error: unknown): boolean {
  return isEnvironment(error) || (error instanceof Error && 'retry' in error && error.retry === true)
}

/** 4xx of the framework itself, such as for an address that cannot be decoded. */
function statusOf(error: unknown): number | undefined {
  if (!(error instanceof Error && 'status' in error && typeof error.status === 'number')) return undefined
  return error.status >= 400 && error.status < 500 ? error.status : undefined
}
