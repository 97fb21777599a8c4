import { BadChange, badSyntax, readChange } from './change.ts'
import type { Change } from './change.ts'
import { dialectOf } from './dialect.ts'
import { JsonSyntax, parseJson } from './json.ts'
import type { JsonNode, JsonObject } from './json.ts'

/** The members that the relay puts in front of a change, in its order. */
const FRONT = ['SEQ_ID', 'TOPICNAME', 'SOURCE', 'RECEIVED_AT']

/**
 * The record with another change in it: what the relay put in front stays, and so do identity and version, which are not
 * in the text. Fields of relays in `text` are dropped. Throws BadChange.
 */
export function withChange(record: string, text: string, schema: string): string {
  const clean = readChange(text, { defaultSchema: schema }).cleanText
  const front = frontOf(record)
  const rest = clean.slice(clean.indexOf('{') + 1)
  return front === '' ? `{${rest}` : `{${front},${rest}`
}

/**
 * The record with other values of columns: of the row as the change leaves it, or, of a delete, as it was. A column the
 * change does not carry is added. All other bytes stay as they are. null is SQL's null.
 */
export function withValues(record: string, values: ReadonlyMap<string, string | null>): string {
  const { data } = dialectOf(record, objectOf(record))
  const splices: { at: number; to: number; text: string }[] = []
  const added: string[] = []
  for (const [name, value] of values) {
    const text = JSON.stringify(value)
    const there = data.members.find((member) => member.name === name)?.value
    if (there === undefined) added.push(`${JSON.stringify(name)}:${text}`)
    else splices.push(spliceOf(there, text))
  }
  if (added.length > 0) splices.push({ at: data.end - 1, to: data.end - 1, text: `${data.members.length > 0 ? ',' : ''}${added.join(',')}` })
  let edited = record
  for (const { at, to, text } of splices.toSorted((a, b) => b.at - a.at)) edited = edited.slice(0, at) + text + edited.slice(to)
  return edited
}

/** Throws BadChange where the record is no change, and returns it where it is one. */
export function readRecord(record: string, schema: string): Change {
  return readChange(record, { defaultSchema: schema })
}

/** Whether two changes are of the same row, by the texts of the key's values, before and after. */
export function sameRow(one: Change, other: Change, key: readonly string[]): boolean {
  return key.every((name) => {
    const [left, right] = [one, other].map(({ columns }) => columns.find((column) => column.name === name))
    const side = (a: typeof left, first: 'old' | 'new', second: 'old' | 'new'): string | undefined => (a?.[first] ?? a?.[second])?.trimEnd()
    return side(left, 'new', 'old') === side(right, 'new', 'old') && side(left, 'old', 'new') === side(right, 'old', 'new')
  })
}

function spliceOf(there: JsonNode, text: string): { at: number; to: number; text: string } {
  if (there.kind !== 'object' || there.members.length === 0 || !there.members.every(({ name }) => name === 'old' || name === 'new')) {
    return { at: there.start, to: there.end, text }
  }
  const after = there.members.find(({ name }) => name === 'new')?.value
  return after === undefined ? { at: there.end - 1, to: there.end - 1, text: `,"new":${text}` } : { at: after.start, to: after.end, text }
}

function frontOf(record: string): string {
  const { members, start } = objectOf(record)
  let end = start + 1
  for (const [at, { name, value }] of members.entries()) {
    if (name !== FRONT[at]) break
    end = value.end
  }
  return record.slice(start + 1, end)
}

function objectOf(record: string): JsonObject {
  try {
    const node = parseJson(record)
    if (node.kind === 'object') return node
    throw new BadChange('not_object', `the document is of the kind ${node.kind}`)
  } catch (error) {
    throw error instanceof JsonSyntax ? badSyntax(error) : error
  }
}
