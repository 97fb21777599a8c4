import { BadChange } from './bad-change.ts'
import { stringValue } from './json.ts'
import type { JsonMember, JsonNode, JsonObject } from './json.ts'

/** The parts of a change where its dialect has them, not yet checked or cleaned. */
export type Envelope = {
  dialect: 'v0' | 'v1' | 'v2'
  time: string
  schema: string | undefined
  table: string
  operation: string
  data: JsonObject
  relay: boolean
  relayFields: ReadonlySet<string>
}

/** What relays add to a change on its way, ours (the first four of the record) and those of older set-ups. */
const RELAY_FIELDS: ReadonlySet<string> = new Set(
  ['SEQ_ID', 'TOPICNAME', 'SOURCE', 'RECEIVED_AT', 'retryCount', 'RECONCILE_STATUS', 'recipients', 'error'])

const OPERATION = /^(insert|update|delete)$/i

/**
 * Tells the dialects apart. v0 has the table as a key and the operation beneath it; v1 and v2 have both as fields, and
 * v2 has `uniquedatatype`, of which only the presence means anything. Throws BadChange.
 */
export function dialectOf(text: string, node: JsonObject): Envelope {
  if (node.duplicate !== undefined) throw new BadChange('duplicate_key', `a field occurs twice: ${node.duplicate.slice(0, 63)}`)
  let relay = false
  let uniquedatatype = false
  let time: JsonNode | undefined
  let schema: JsonNode | undefined
  let table: JsonNode | undefined
  let operation: JsonNode | undefined
  let data: JsonNode | undefined
  for (const { name, value } of node.members) {
    switch (name) {
      case 'TIME': time = value; break
      case 'SCHEMANAME': schema = value; break
      case 'TABLENAME': table = value; break
      case 'OPERATION': operation = value; break
      case 'DATA': data = value; break
      case 'uniquedatatype': uniquedatatype = true; break
      default: relay ||= RELAY_FIELDS.has(name)
    }
  }
  if (schema === undefined && table === undefined && operation === undefined && data === undefined) return oldest(text, node, time)
  return {
    dialect: uniquedatatype ? 'v2' : 'v1',
    time: timeText(text, time),
    schema: nameText(text, schema, 'SCHEMANAME'),
    table: nameText(text, table, 'TABLENAME'),
    operation: operationText(text, operation),
    data: dataObject(data),
    relay,
    relayFields: RELAY_FIELDS,
  }
}

function oldest(text: string, node: JsonObject, time: JsonNode | undefined): Envelope {
  const tables = node.members.filter(({ value }) => soleOperation(value) !== undefined)
  const [member] = tables
  if (tables.length !== 1 || member === undefined) throw notAChange(node)
  const inner = soleOperation(member.value)
  if (inner === undefined) throw notAChange(node)
  // A table may be called `error` or `SOURCE`; then that member is the change and no relay's field.
  const relayFields = new Set([...RELAY_FIELDS].filter((name) => name !== member.name))
  return {
    dialect: 'v0',
    time: timeText(text, time),
    schema: undefined,
    table: member.name,
    operation: inner.name,
    data: dataObject(inner.value),
    relay: node.members.some(({ name }) => relayFields.has(name)),
    relayFields,
  }
}

function soleOperation(value: JsonNode): JsonMember | undefined {
  if (value.kind !== 'object' || value.members.length !== 1) return undefined
  const [inner] = value.members
  return inner !== undefined && OPERATION.test(inner.name) ? inner : undefined
}

function notAChange(node: JsonObject): BadChange {
  if (goesTheOtherWay(node)) return new BadChange('wrong_direction', 'a message of the opposite direction')
  if (!node.members.some(({ name }) => name === 'TIME')) return new BadChange('missing_field', 'TIME')
  return new BadChange('missing_field', 'SCHEMANAME, TABLENAME, OPERATION, DATA')
}

/** The messages with which a mirror writes back to Informix: posted here they would go round for ever. */
function goesTheOtherWay(node: JsonObject): boolean {
  const has = (object: JsonObject, ...names: string[]): boolean =>
    names.every((wanted) => object.members.some(({ name }) => name === wanted))
  if (has(node, 'originator') || has(node, 'operation', 'schema', 'table', 'data')) return true
  return node.members.some(({ name, value }) =>
    name === 'payload' && value.kind === 'object' && has(value, 'operation', 'schema', 'table'))
}

function timeText(text: string, node: JsonNode | undefined): string {
  if (node === undefined) throw new BadChange('missing_field', 'TIME')
  if (node.kind !== 'string') throw new BadChange('bad_time', `TIME is of the kind ${node.kind}`)
  return stringValue(text, node)
}

function nameText(text: string, node: JsonNode | undefined, field: string): string {
  if (node === undefined) throw new BadChange('missing_field', field)
  if (node.kind !== 'string') throw new BadChange('bad_name', `${field} is of the kind ${node.kind}`)
  return stringValue(text, node)
}

function operationText(text: string, node: JsonNode | undefined): string {
  if (node === undefined) throw new BadChange('missing_field', 'OPERATION')
  if (node.kind !== 'string') throw new BadChange('unknown_operation', `OPERATION is of the kind ${node.kind}`)
  return stringValue(text, node)
}

function dataObject(node: JsonNode | undefined): JsonObject {
  if (node === undefined) throw new BadChange('missing_field', 'DATA')
  if (node.kind !== 'object') throw new BadChange('bad_data', `DATA is of the kind ${node.kind}`)
  return node
}
