import { readFileSync } from 'node:fs'
import { resolve } from 'node:path'
import { type Command, InvalidArgumentError } from 'commander'

import { DeltapostError } from '../../outbox/errors.ts'
import { listRejected, type Posted, type RejectedEntry, retryRejected, showRejected } from '../../outbox/rejected.ts'
import { readConfig } from '../../services/runtime/config.ts'
import { databaseAddress, withDatabase } from './database.ts'
import { environmentOfRunning, runningStack, withUnused } from './environment.ts'
import { wholeNumber } from './migrate.ts'
import { say, sayFields, sayJson, sayTable, size } from './print.ts'

const SHOWN = 2_048

export function addRejected(program: Command): void {
  const rejected = program.command('rejected')
    .description('posts that could not be read as a change: a work list, since their sender never repeats them')
  rejected.command('list')
    .description('what waits, newest first')
    .option('--all', 'also what was retried')
    .option('--limit <n>', 'how many', wholeNumber, 100)
    .option('--json', 'one JSON document')
    .addHelpText('after', `
Example:
  deltapost rejected list --all --limit 20`)
    .action(list)
  rejected.command('show')
    .description('one of them, with its bytes')
    .argument('<id>', 'its number in the list', entryId)
    .option('--raw', 'only the bytes, as they came')
    .option('--json', 'one JSON document, the bytes in base64')
    .addHelpText('after', `
Examples:
  deltapost rejected show 7
  deltapost rejected show 7 --raw > post.json`)
    .action(show)
  rejected.command('retry')
    .description('post it again, as it is or mended')
    .argument('<id>', 'its number in the list', entryId)
    .option('--file <path>', 'post the bytes of this file in its place')
    .option('--old', 'take it although it is older than the horizon')
    .option('--listener <url>', 'address of the listener (HOST and PORT, or the one of a running up)')
    .addHelpText('after', `
What is rejected again becomes an entry of its own with the new reason.
With --old a change from before HORIZON is taken: if its row was deleted since, it comes back.

Examples:
  deltapost rejected retry 7
  deltapost rejected retry 7 --file mended.json`)
    .action(retry)
}

async function list({ all, limit, json }: { all?: true; limit: number; json?: true }): Promise<void> {
  const entries = await withDatabase((sql) => listRejected(sql, { ...(all === true ? {} : { state: 'WAITING' as const }), limit }))
  if (json === true) return sayJson(entries.map(named))
  sayTable(entries.map((entry) => ({ ...named(entry), bytes: size(entry.bytes) })), 'nothing waits')
}

async function show(id: string, { raw, json }: { raw?: true; json?: true }): Promise<void> {
  const entry = await withDatabase((sql) => showRejected(sql, id))
  if (entry === undefined) throw missing(id)
  const { body, headers } = entry
  if (raw === true) return void process.stdout.write(body)
  if (json === true) return sayJson({ ...named(entry), headers, body: body.toString('base64') })
  sayFields({ ...named(entry), bytes: size(entry.bytes) })
  say('headers')
  sayFields(headers)
  say(`body${body.length > SHOWN ? ` (the first ${SHOWN} of ${body.length} bytes, all with --raw)` : ''}\n${body.subarray(0, SHOWN).toString('utf8')}`)
}

async function retry(id: string, options: { file?: string; old?: true; listener?: string }): Promise<void> {
  const bytes = options.file === undefined ? undefined : bytesOf(options.file)
  const listener = options.listener ?? listenerAddress()
  if (!URL.canParse(listener) || !/^https?:/.test(listener)) {
    throw new DeltapostError('LISTENER_UNREACHABLE', `${listener} is not the address of a listener`, '--listener http://127.0.0.1:8080')
  }
  const posted = await withDatabase((sql) => retryRejected(id, bytes, { sql, post: (path, headers, body) => postAgain(listener, path, options.old === true ? { ...headers, 'deltapost-old': 'accept' } : headers, body) }), databaseAddress())
  if (posted === undefined) throw missing(id)
  if (posted.seqIds.length > 0) say(`accepted: ${posted.seqIds.join(', ')}`)
  if (posted.rejected.length === 0) return
  throw new DeltapostError(
    'REJECTED_AGAIN', `it was rejected again, as ${posted.rejected.join(', ')}`,
    `deltapost rejected show ${posted.rejected[0] ?? id}, then retry it with --file`,
  )
}

function bytesOf(file: string): Buffer {
  try {
    return readFileSync(file)
  } catch (cause) {
    throw new DeltapostError('FILE_UNREADABLE', `${resolve(file)} cannot be read`, 'name the file with its whole path', { cause })
  }
}

/** A connection refused here is the listener's, not the database's. */
async function postAgain(listener: string, path: string, headers: Readonly<Record<string, string>>, body: Buffer): Promise<Posted> {
  const kept = Object.entries(headers).filter(([name]) => /^(content-type|idempotency-key|idempotency-ordinal|traceparent|deltapost-old)$/i.test(name))
  const response = await fetch(new URL(path, listener), { method: 'POST', headers: Object.fromEntries(kept), body: new Uint8Array(body) })
    .catch((cause: unknown) => {
      throw new DeltapostError('LISTENER_UNREACHABLE', `no answer from the listener at ${listener}`, 'deltapost serve listener, or --listener URL', { cause })
    })
  const text = await response.text()
  if (response.status >= 500 || response.status === 413) {
    throw new DeltapostError('LISTENER_BUSY', `the listener answered ${response.status}: ${text.slice(0, 200)}`, 'the same command later', { retry: true })
  }
  const said: unknown = JSON.parse(text)
  const answers: unknown[] = Array.isArray(said) ? said : [said]
  return { seqIds: collected(answers, 'seq_id'), rejected: collected(answers, 'rejected') }
}

function collected(answers: readonly unknown[], name: string): string[] {
  return answers.flatMap((answer) => {
    const value: unknown = typeof answer === 'object' && answer !== null ? Reflect.get(answer, name) : undefined
    return typeof value === 'string' || typeof value === 'number' ? [String(value)] : []
  })
}

function listenerAddress(): string {
  const stack = runningStack()
  if (stack !== undefined) return stack.listener
  const { host, port } = readConfig(withUnused(environmentOfRunning(), ['DATABASE_URL', 'KAFKA_BROKERS']))
  return `http://${host === '0.0.0.0' ? '127.0.0.1' : host}:${port}`
}

/** The entry under the names of the table's columns. */
function named(entry: RejectedEntry): Record<string, unknown> {
  const { id, receivedAt, path, reason, detail, state, retriedAt, seqIds, bytes } = entry
  return { id, received_at: receivedAt, path, reason, detail, state, retried_at: retriedAt, seq_ids: seqIds, bytes }
}

function missing(id: string): DeltapostError {
  return new DeltapostError('NO_SUCH_REJECTED', `no rejected request ${id} waits`, 'deltapost rejected list --all')
}

function entryId(text: string): string {
  if (!/^[1-9]\d{0,18}$/.test(text)) throw new InvalidArgumentError('a number from 1 is expected')
  return text
}
