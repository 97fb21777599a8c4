import { BadChange, type Reason } from './bad-change.ts'
import { dialectOf } from './dialect.ts'
import { JsonSyntax, compactJson, parseJson, stringValue } from './json.ts'
import type { JsonNode, JsonObject } from './json.ts'

export { BadChange, type Reason }

/** A value as text; null is SQL's null. The text NULL of an UPDATE stays text here: only its type says what it means. */
export type Value = string | null

/** `new` or `old` absent: the change does not carry it. */
export type Column = { name: string; new?: Value; old?: Value }

export type Operation = 'INSERT' | 'UPDATE' | 'DELETE'

/** What happened to one row of the source. */
export type Change = {
  dialect: 'v0' | 'v1' | 'v2'
  /** TIME as it came; sourceMicros reads it. */
  time: string
  schema: string
  table: string
  operation: Operation
  columns: Column[]
  /** True where the text had fields that relays add. */
  relay: boolean
  /** The text without those fields; the same text where there were none. */
  cleanText: string
}

/**
 * Reads one change of an Informix trigger, or of a relay that posts one again. Throws BadChange.
 *
 * Also reads the Kafka record, which is the change with SEQ_ID, TOPICNAME and SOURCE in front. `defaultSchema` is for the
 * oldest dialect, which names no schema.
 */
export function readChange(text: string, options: { defaultSchema?: string | undefined }): Change {
  if (isBlank(text)) throw new BadChange('empty_body', 'the body is empty')
  try {
    return changeOf(text, parseJson(text), options, text)
  } catch (error) {
    throw error instanceof JsonSyntax ? badSyntax(error) : error
  }
}

/** As readChange, for a document that was parsed already: `node` is a part of `text`, and `whole` what it came as. */
export function changeOf(
  text: string, node: JsonNode, options: { defaultSchema?: string | undefined }, whole = text.slice(node.start, node.end),
): Change {
  if (node.kind !== 'object') throw new BadChange('not_object', `the document is of the kind ${node.kind}`)
  const envelope = dialectOf(text, node)
  const schema = envelope.schema === undefined ? defaultSchema(options) : cleanName(envelope.schema, 'SCHEMANAME')
  const operation = operationOf(envelope.operation)
  return {
    dialect: envelope.dialect,
    time: envelope.time,
    schema,
    table: cleanName(envelope.table, 'TABLENAME'),
    operation,
    columns: columnsOf(text, envelope.data, operation),
    relay: envelope.relay,
    cleanText: envelope.relay ? withoutRelayFields(text, node, envelope.relayFields) : whole,
  }
}

/** The reason that belongs to a fault of the syntax. */
export function badSyntax(fault: JsonSyntax): BadChange {
  return new BadChange(fault.kind === 'syntax' ? 'json_syntax' : fault.kind, `at character ${fault.position}`)
}

function isBlank(text: string): boolean {
  return /^\uFEFF?[ \t\r\n]*$/.test(text)
}

function defaultSchema(options: { defaultSchema?: string | undefined }): string {
  if (options.defaultSchema === undefined) throw new BadChange('no_schema', 'the body names no schema and DEFAULT_SCHEMA is not set')
  return options.defaultSchema
}

function operationOf(text: string): Operation {
  const upper = text.toUpperCase()
  if (upper === 'INSERT' || upper === 'UPDATE' || upper === 'DELETE') return upper
  throw new BadChange('unknown_operation', 'OPERATION is none of INSERT, UPDATE, DELETE')
}

/** Informix may send `db:owner.table`, `'owner'.table`, quotes, blanks, and control characters behind the name. */
function cleanName(raw: string, field: string): string {
  if (/^[a-z0-9_]{1,63}$/.test(raw)) return raw
  if (raw.includes('\0')) throw new BadChange('nul_character', field)
  const trimmed = raw.replace(/[\u0001-\u0020\u007f]+$/, '').trimStart()
  const quoted = /(["'])([^"']+)\1$/.exec(trimmed)?.[2]
  const bare = quoted ?? trimmed.slice(Math.max(trimmed.lastIndexOf('.'), trimmed.lastIndexOf(':')) + 1)
  const name = bare.trim().toLowerCase()
  if (/["'\u0001-\u001f]/.test(name)) throw new BadChange('bad_name', field)
  return checkName(name, field)
}

function checkName(name: string, field: string): string {
  if (name.includes('\0')) throw new BadChange('nul_character', field)
  if (!name.isWellFormed()) throw new BadChange('lone_surrogate', field)
  const bytes = name.length < 16 ? name.length : Buffer.byteLength(name)
  if (bytes < 1 || bytes > 63) throw new BadChange('bad_name', `${field} has ${bytes} bytes, Postgres takes 1 to 63`)
  return name
}

function columnsOf(text: string, data: JsonObject, operation: Operation): Column[] {
  if (data.duplicate !== undefined) throw new BadChange('duplicate_key', `a column of DATA occurs twice: ${data.duplicate.slice(0, 63)}`)
  return data.members.map(({ name, value }) => {
    checkName(name, 'a column name')
    if (operation === 'INSERT') return { name, new: valueOf(text, value, name) }
    if (operation === 'DELETE') return { name, old: valueOf(text, value, name) }
    return updateColumn(text, name, value)
  })
}

function updateColumn(text: string, name: string, value: JsonNode): Column {
  if (value.kind !== 'object' || !isPair(value)) return { name, new: valueOf(text, value, name) }
  if (value.duplicate !== undefined) throw new BadChange('duplicate_key', `old or new occurs twice in the column ${name}`)
  const column: Column = { name }
  for (const side of value.members) {
    if (side.name === 'new') column.new = valueOf(text, side.value, name)
    else column.old = valueOf(text, side.value, name)
  }
  return column
}

function isPair(value: JsonObject): boolean {
  return value.members.length > 0 && value.members.every(({ name }) => name === 'old' || name === 'new')
}

function valueOf(text: string, node: JsonNode, column: string): Value {
  switch (node.kind) {
    case 'string': {
      const value = stringValue(text, node)
      // Only an escape can bring these in: raw ones do not pass the decoding of the body.
      if (node.escaped && value.includes('\0')) throw new BadChange('nul_character', `in the column ${column}`)
      if (node.escaped && !value.isWellFormed()) throw new BadChange('lone_surrogate', `in the column ${column}`)
      return value
    }
    case 'number': return text.slice(node.start, node.end)
    case 'true': return 't'
    case 'false': return 'f'
    case 'null': return null
    default: return compactJson(text, node)
  }
}

function withoutRelayFields(text: string, node: JsonObject, fields: ReadonlySet<string>): string {
  const kept = node.members.filter(({ name }) => !fields.has(name))
  return `{${kept.map(({ start, value }) => text.slice(start, value.end)).join(', ')}}`
}
