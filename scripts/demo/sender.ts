import { request } from 'node:http'

/** What the listener said. `sentAt` and `answeredAt` are milliseconds since 1970 with a fraction. */
export type Answer = {
  status: number
  seqId: string | null
  rejected: { id: string; reason: string } | null
  sentAt: number
  answeredAt: number
}

export type Post = (path: string, body: string | Buffer) => Promise<Answer>

/**
 * Posts as the trigger's function does: a connection for this one post, no time limit, no second try.
 * Rejects where there is no answer at all.
 */
export function openSender(listener: string, signal: AbortSignal): Post {
  return async (path, body) => {
    const sentAt = now()
    const { promise, resolve, reject } = Promise.withResolvers<Answer>()
    const posted = request(new URL(path, listener), {
      method: 'POST',
      agent: false,
      signal,
      headers: { 'cache-control': 'no-cache', 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) },
    }, (response) => {
      let text = ''
      response.setEncoding('utf8')
      response.on('data', (part: string) => (text += part))
      response.once('end', () => resolve({ ...read(text), status: response.statusCode ?? 0, sentAt, answeredAt: now() }))
      response.once('error', reject)
    })
    posted.once('error', reject)
    posted.end(body)
    return promise
  }
}

/** Milliseconds since 1970, finer than Date.now(). */
export function now(): number {
  return performance.timeOrigin + performance.now()
}

function read(text: string): Pick<Answer, 'seqId' | 'rejected'> {
  let said: { seq_id?: string; rejected?: string | number; reason?: string }
  try {
    said = JSON.parse(text) as typeof said // the listener's documented answers
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error
    return { seqId: null, rejected: { id: '', reason: `an answer that is not JSON: ${text.slice(0, 80)}` } }
  }
  const { seq_id: seqId, rejected, reason } = said
  return { seqId: seqId ?? null, rejected: rejected === undefined ? null : { id: String(rejected), reason: reason ?? '' } }
}
