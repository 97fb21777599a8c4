import type { IncomingMessage } from 'node:http'

/** Milliseconds without a byte after which a sender is given up: what it reserved is missing to others, and Node waits for 300 s. */
export const STALLED_MS = 15_000
/** What of a rejected oversize body is kept. */
const HEAD = 64 << 10
/** Bodies that declare at most so much have a budget of their own: a large upload that stalls must not turn them away. */
const SMALL = 1 << 20
const SMALL_BUDGET = 32 << 20

/**
 * The bytes of request bodies that may be in memory at one time. The process takes more: a body of 250 MB was seen to
 * need 1.8 GB until it was committed, and 3.4 GB where it was kept as rejected (the driver writes bytes as hex).
 */
export type Budget = Pool & { small: Pool }
type Pool = {
  /** False where there is no room; then nothing is reserved. */
  reserve: (bytes: number) => boolean
  release: (bytes: number) => void
}

export function openBudget(total: number): Budget {
  return { ...openPool(total), small: openPool(SMALL_BUDGET) }
}

function openPool(total: number): Pool {
  let left = total
  return {
    reserve(bytes) {
      if (bytes > left) return false
      left -= bytes
      return true
    },
    release(bytes) {
      left += bytes
    },
  }
}

/**
 * A body as far as it was read. `too_large` has its first 64 KB; `aborted` what came before the sender went away, `stalled`
 * what came before it fell silent; `busy` nothing, because the budget is full. The budget is given back by `release`, after the bytes are done with.
 */
export type Body = { kind: 'whole' | 'too_large' | 'aborted' | 'stalled' | 'busy'; bytes: Buffer; release: () => void }

export type BodyLimits = { maxBody: number; budget: Budget; stalledMs?: number }

/**
 * Reads a raw body. Its length is reserved from the budget before the first byte where the sender declares it, else
 * chunk by chunk. A slow sender has as long as Node gives it, one that is silent for `stalledMs` has not. Never rejects; the
 * request is left unread behind `too_large`, `stalled` and `busy` (see discardRest).
 */
export function readBody(request: IncomingMessage, { maxBody, budget, stalledMs = STALLED_MS }: BodyLimits): Promise<Body> {
  const declared = request.headers['content-length'] === undefined ? undefined : Number(request.headers['content-length'])
  const tooLarge = declared !== undefined && declared > maxBody
  const pool = declared !== undefined && declared <= SMALL ? budget.small : budget
  const { promise, resolve } = Promise.withResolvers<Body>()
  const chunks: Buffer[] = []
  let length = 0
  let reserved = 0
  let silence: NodeJS.Timeout | undefined

  function reserve(bytes: number): boolean {
    if (!pool.reserve(bytes)) return false
    reserved += bytes
    return true
  }

  function finish(kind: Body['kind']): void {
    clearTimeout(silence)
    request.off('data', take).off('end', whole).off('close', aborted)
    request.pause()
    let bytes = chunks.length === 1 && chunks[0] !== undefined ? chunks[0] : Buffer.concat(chunks, length)
    if (kind === 'too_large') bytes = Buffer.from(bytes.subarray(0, HEAD))
    resolve({ kind, bytes, release: () => pool.release(reserved) })
  }

  function take(chunk: Buffer): void {
    silence?.refresh()
    if (declared === undefined && !reserve(chunk.length)) {
      chunks.length = length = 0
      finish('busy')
      return
    }
    chunks.push(chunk)
    length += chunk.length
    if (length > maxBody || (tooLarge && length >= HEAD)) finish('too_large')
  }

  function whole(): void {
    finish(tooLarge ? 'too_large' : 'whole')
  }

  function aborted(): void {
    finish('aborted')
  }

  if (declared !== undefined && !reserve(tooLarge ? HEAD : declared)) finish('busy')
  else {
    request.on('data', take).on('end', whole).on('close', aborted).on('error', () => undefined) // 'close' follows every error
    silence = setTimeout(finish, stalledMs, 'stalled')
  }
  return promise
}

/**
 * Reads on and forgets, until the request ends or `ms` milliseconds have passed: a sender that is answered while it still
 * writes mostly sees a reset connection instead of the answer.
 */
export async function discardRest(request: IncomingMessage, ms: number): Promise<void> {
  if (request.readableEnded || request.destroyed) return
  const { promise, resolve } = Promise.withResolvers<void>()
  const timer = setTimeout(resolve, ms)
  request.once('end', resolve).once('close', resolve).resume()
  await promise
  clearTimeout(timer)
}
