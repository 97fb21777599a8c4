import pino from 'pino'
import type { Logger } from 'pino'

export type Log = Logger

/**
 * The log of one process: JSON lines on stdout, names and numbers only, never the data of a row.
 *
 * Synchronous, because the last lines before an exit are the ones an operator needs, and one line a batch is little.
 */
export function openLog(role: string, level: string): Log {
  return pino({
    level,
    base: { role },
    timestamp: pino.stdTimeFunctions.isoTime,
    serializers: { error: describeError },
  }, pino.destination({ sync: true }))
}

/** What may be logged of an error: never `detail`, in which Postgres quotes values of the row. */
export function describeError(error: unknown): Record<string, unknown> {
  if (!(error instanceof Error)) return { message: String(error) }
  const known = ['code', 'remedy', 'severity', 'schema_name', 'table_name', 'constraint_name', 'routine'] as const
  const fields: Record<string, unknown> = { name: error.name, message: withoutValues(error.message) }
  for (const name of known) if (name in error) fields[name] = error[name as keyof Error]
  if (error.cause !== undefined) fields['cause'] = describeError(error.cause)
  return fields
}

/** Postgres quotes the value it refuses at the end of its message: `invalid input syntax for type integer: "..."`. */
function withoutValues(message: string): string {
  return message.replace(/: ".*"$/s, ': (value not shown)').replace(/=\(.*\)/s, '=(values not shown)')
}
