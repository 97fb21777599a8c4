import { DeltapostError } from '../../outbox/errors.ts'
import { isEnvironment, sqlstateOf } from '../runtime/slot.ts'

/** What becomes of changes that Postgres refuses. Durations are milliseconds. */
export type Course = {
  /** Attempts after the first. */
  maxRetries: number
  /** Before the first retry; each further one waits twice as long. */
  retryBackoff: number
  errorTopic: string
  errorRecipients: readonly string[]
}

/** The course as the functions of inbox read it. */
export function courseText(course: Course): string {
  return JSON.stringify({
    max_retries: course.maxRetries, backoff_ms: course.retryBackoff, error_topic: course.errorTopic, recipients: course.errorRecipients,
  })
}

/**
 * Whose failure it is. change: the values of a row are refused, which counts as an attempt; also with a SQLSTATE that
 * nobody knows, for a trigger may raise any. relation: its table is missing, altered, locked, or closed to us; it stops,
 * and others go on. environment: all wait, and nothing is counted. inbox.is_refusal says the same.
 *
 * What has no SQLSTATE and is none of our errors is a fault of this program, and treated as the environment's: it must
 * not use up anything.
 */
export function kindOf(error: unknown): 'change' | 'relation' | 'environment' {
  if (error instanceof DeltapostError) return ['TARGET_MISSING', 'TARGET_COLUMN_MISSING', 'RELATION_STOPPED'].includes(error.code) ? 'relation' : 'environment'
  const state = sqlstateOf(error)
  if (state === '55P03') return 'relation' // only inbox.effect has a limit for locks: the target's
  if (state === undefined || isEnvironment(error)) return 'environment'
  return /^(0A|3F|42|55)/.test(state) && state !== '42804' ? 'relation' : 'change'
}

/** What is wrong, without values of a row: the server's message and detail quote them. */
export function faultOf(error: unknown): string {
  if (error instanceof DeltapostError) return `${error.code}: ${error.message}`
  const names = ['constraint_name', 'column_name', 'table_name'] as const
  const fields = error instanceof Error ? names.flatMap((name) => name in error ? [`${name.replace('_name', '')} ${String(error[name as keyof Error])}`] : []) : []
  const state = sqlstateOf(error)
  // Class 42 names tables, columns and rights, and no values.
  const said = state?.startsWith('42') === true && error instanceof Error ? [error.message] : []
  return [`SQLSTATE ${state ?? 'none'}`, ...fields, ...said].join(', ')
}
