import { CommanderError } from 'commander'

import { DeltapostError } from '../../outbox/errors.ts'
import { ConfigError } from '../../services/runtime/config.ts'
import { isEnvironment, sqlstateOf } from '../../services/runtime/slot.ts'

/** What a shell gets to know: 0 ok, 1 failed, 2 usage or configuration, 3 a check failed, 4 cannot connect. */
export type ExitCode = 0 | 1 | 2 | 3 | 4

const CANNOT_CONNECT = /^(DATABASE_LOST|DATABASE_UNREACHABLE|LISTENER_UNREACHABLE|STACK_UNREACHABLE|ECONNREFUSED|ECONNRESET|ENOTFOUND|ETIMEDOUT|EHOSTUNREACH|CONNECT_TIMEOUT|CONNECTION_\w+)$/

/** The exit code an error ends the command with. */
export function exitCodeOf(error: unknown): ExitCode {
  if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2
  if (error instanceof ConfigError) return 2
  const code = codeOf(error)
  if (code === 'PORT_TAKEN' || code === 'STACK_UNKNOWN') return 2
  if (CANNOT_CONNECT.test(code) || (error instanceof Error && error.name.startsWith('KafkaJS') && isConnection(error))) return 4
  return sqlstateOf(error)?.startsWith('08') === true ? 4 : 1
}

/** `Error:` what happened, and `Try:` what to type next; with `trace` the stack too. */
export function describeFailure(error: unknown, trace: boolean): string {
  const message = error instanceof Error ? error.message : String(error)
  const lines = [`Error: ${message}`, `Try: ${remedyOf(error)}`]
  if (trace && error instanceof Error) lines.push(error.stack ?? '', ...causesOf(error))
  return `${lines.join('\n')}\n`
}

function remedyOf(error: unknown): string {
  if (error instanceof DeltapostError || error instanceof ConfigError) return error.remedy
  const state = sqlstateOf(error)
  // The tables are missing or older than this program.
  if (state === '3F000' || state === '42P01' || state === '42703' || state === '42883') return 'npm run migrate; where that finds nothing to do, the database is of an earlier build: npm run up -- --fresh'
  if (state === '42501') return 'give the account of DATABASE_URL the right that the message names'
  if (exitCodeOf(error) === 4 || isEnvironment(error)) return 'npm run cli -- doctor'
  return 'the same command with LOG_LEVEL=debug, which shows where it failed'
}

function causesOf(error: Error): string[] {
  const causes: string[] = []
  for (let at = error.cause; at instanceof Error; at = at.cause) causes.push(`caused by ${at.stack ?? at.message}`)
  return causes
}

function codeOf(error: unknown): string {
  return error instanceof Error && 'code' in error && typeof error.code === 'string' ? error.code : ''
}

function isConnection(error: Error): boolean {
  return /Connection|BrokerNotFound|NumberOfRetriesExceeded/.test(error.name)
}
