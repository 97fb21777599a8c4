import { unescape } from 'node:querystring'
import { DeltapostError } from '../../outbox/errors.ts'
import type { Channel } from './loop.ts'
import type { Notice } from './message.ts'

/** A receiver that takes longer is told again; the notice has its id to be recognised by. */
const LIMIT = 10_000

/**
 * Tells by a POST of JSON: `text` and `title` for chats, the members for programs. Any 2xx is an answer; others, and a
 * redirect too, are not: what an address in the configuration sends us to was chosen by nobody.
 *
 * The path of such an address is a secret, as is what stands before the @: only the origin is ever shown.
 */
export function openWebhook(url: string, { limit = LIMIT }: { limit?: number } = {}): Channel {
  const address = new URL(url)
  const { origin, username, password } = address
  // fetch takes no address with a password, and says the whole of it in its error.
  address.username = ''
  address.password = ''
  const credentials = Buffer.from(`${unescape(username)}:${unescape(password)}`).toString('base64')
  const headers = {
    'content-type': 'application/json',
    'user-agent': 'deltapost',
    ...(username === '' ? {} : { authorization: `Basic ${credentials}` }),
  }
  return {
    name: 'webhook',
    to: origin,
    async tell(notice, signal) {
      const response = await fetch(address, {
        method: 'POST', headers, body: bodyOf(notice), redirect: 'manual', signal: AbortSignal.any([signal, AbortSignal.timeout(limit)]),
      }).catch((error: unknown) => {
        throw new DeltapostError('NOTICE_UNREACHABLE', `no answer from ${origin}: ${whyOf(error, limit)}`, REMEDY, { retry: true })
      })
      await response.body?.cancel()
      if (response.ok) return
      const redirect = response.status >= 300 && response.status < 400 ? ', and redirects are not followed' : ''
      throw new DeltapostError('NOTICE_REFUSED', `${origin} answered ${response.status}${redirect}`, REMEDY, { retry: true })
    },
  }
}

const REMEDY = 'correct NOTICE_WEBHOOK_URL, then deltapost notice test'

function bodyOf({ title, text, members }: Notice): string {
  return JSON.stringify({ text, title, ...members })
}

/** Codes only, and no cause: messages of fetch may hold the address. */
function whyOf(error: unknown, limit: number): string {
  if (error instanceof Error && error.name === 'TimeoutError') return `nothing within ${limit} ms`
  for (let at: unknown = error; at instanceof Error; at = at.cause) if ('code' in at && typeof at.code === 'string') return at.code
  return error instanceof Error ? error.name : 'failed'
}
