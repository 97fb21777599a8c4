import { unescape } from 'node:querystring'
import { DeltapostError } from '../../outbox/errors.ts'
import type { Channel } from './loop.ts'
import type { Notice } from './message.ts'

/** Milliseconds for each step of the exchange, and for all of it. */
const STEP_LIMIT = 10_000
const LIMIT = 30_000

/**
 * Tells by mail through an SMTP server: smtp:// (STARTTLS where the server offers it) or smtps://.
 *
 * A certificate is always checked. A password goes only over TLS, or to this machine itself. A connection per message,
 * since one a minute at most does not earn a pool.
 */
export function openMail(parts: { url: string; from: string; to: readonly string[]; limit?: number }): Channel {
  const { limit = LIMIT } = parts
  const server = serverOf(parts.url)
  const options = {
    ...server,
    requireTLS: server.auth !== undefined && !server.secure && !/^(localhost|127\.[\d.]+|::1)$/.test(server.host),
    tls: { rejectUnauthorized: true, minVersion: 'TLSv1.2' as const },
    connectionTimeout: STEP_LIMIT, greetingTimeout: STEP_LIMIT, socketTimeout: STEP_LIMIT, dnsTimeout: STEP_LIMIT, socketCloseTimeout: 1_000,
    disableFileAccess: true, disableUrlAccess: true,
  }
  const where = `${server.host}:${server.port}`
  return {
    name: 'mail',
    to: `${parts.to.join(', ')} by ${where}`,
    async tell(notice, signal) {
      // Imported when there is something to tell: most relays never need it.
      const { createTransport } = await import('nodemailer')
      const transport = createTransport(options)
      try {
        await transport.sendMail({ ...mailOf(notice), from: parts.from, to: [...parts.to], signal: AbortSignal.any([signal, AbortSignal.timeout(limit)]) })
      } catch (error) {
        throw told(error, where)
      } finally {
        transport.close()
      }
    },
  }
}

/** Recipients are texts of any kind, which the error record carries; mail goes to those that are plain addresses. */
export function addressesOf(recipients: readonly string[]): string[] {
  return recipients.filter((one) => /^[^\s@<>(),:;"[\]\\]+@[^\s@<>(),:;"[\]\\]+$/.test(one))
}

type Server = { host: string; port: number; secure: boolean; auth?: { user: string; pass: string } }

/** Taken apart here, since nodemailer takes any of its options from the query, the one that logs the password too. */
function serverOf(url: string): Server {
  const { protocol, hostname, port, username, password } = new URL(url)
  const secure = protocol === 'smtps:'
  return {
    host: hostname.replace(/^\[(.*)\]$/, '$1'),
    port: port === '' ? (secure ? 465 : 587) : Number(port),
    secure,
    ...(username === '' ? {} : { auth: { user: unescape(username), pass: unescape(password) } }),
  }
}

/** The id in the header lets a mail program show a repeat once; auto-generated keeps absence notes from answering. */
function mailOf({ id, title, text }: Notice): { subject: string; text: string; messageId: string; headers: Record<string, string> } {
  return { subject: title, text, messageId: `<${id}@deltapost>`, headers: { 'Auto-Submitted': 'auto-generated', 'X-Auto-Response-Suppress': 'All' } }
}

/** Codes where the server has answered, since an answer may repeat what it was sent; no cause, for the same reason. */
function told(error: unknown, where: string): DeltapostError {
  const code = error instanceof Error && 'code' in error ? String(error.code) : 'failed'
  const answered = error instanceof Error && 'responseCode' in error && typeof error.responseCode === 'number' ? error.responseCode : undefined
  if (answered !== undefined) {
    return new DeltapostError('NOTICE_REFUSED', `${where} answered ${answered} (${code})`, REMEDY, { retry: true })
  }
  const why = error instanceof Error && /^(ESOCKET|ETLS|EDNS|ECONNECTION|ETIMEDOUT)$/.test(code) ? `${code}: ${error.message}` : code
  return new DeltapostError('NOTICE_UNREACHABLE', `${where} took no mail: ${why}`, REMEDY, { retry: true })
}

const REMEDY = 'correct NOTICE_SMTP_URL (NODE_EXTRA_CA_CERTS=FILE for a certificate of your own), then deltapost notice test'
