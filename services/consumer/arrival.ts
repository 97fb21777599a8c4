import type { IHeaders } from 'kafkajs'
import { BadChange, readChange } from '../../outbox/change.ts'
import { decodeIdentity, receivedAtOf } from '../../outbox/record.ts'
import type { Arrival } from './element.ts'

/** What is needed of a Kafka record to read it. */
export type ConsumedRecord = {
  key: Buffer | null
  value: Buffer | null
  headers?: IHeaders | undefined
  offset: string
  timestamp: string
}

/** A record that is not a change of ours: which one, and why. */
export type Foreign = { offset: string; reason: string }

const utf8 = new TextDecoder('utf-8', { fatal: true })

/**
 * Reads a record. Identity and version come from the headers only: the value is what the sender wrote.
 *
 * The names of schema and table come from the key, where the relay wrote them as the listener had read them.
 */
export function readArrival(record: ConsumedRecord): Arrival | Foreign {
  const identity = decodeIdentity(record.headers)
  if (identity === undefined) return { offset: record.offset, reason: 'no_identity' }
  if (record.value === null) return { offset: record.offset, reason: 'no_value' }
  try {
    const names = namesOf(record.key)
    const value = utf8.decode(record.value)
    const change = readChange(value, names === undefined ? {} : { defaultSchema: names.schema })
    if (names !== undefined) Object.assign(change, names)
    return { identity, change, offset: record.offset, receivedAt: receivedAtOf(value) ?? Number(record.timestamp) }
  } catch (error) {
    if (error instanceof BadChange) return { offset: record.offset, reason: error.reason }
    if (error instanceof TypeError || error instanceof SyntaxError) return { offset: record.offset, reason: 'invalid_record' }
    throw error
  }
}

/** [schema, table, ...key values] as the relay writes it. */
function namesOf(key: Buffer | null): { schema: string; table: string } | undefined {
  if (key === null) return undefined
  const parts: unknown = JSON.parse(key.toString('utf8'))
  if (!Array.isArray(parts)) return undefined
  const [schema, table] = parts as unknown[]
  return typeof schema === 'string' && typeof table === 'string' ? { schema, table } : undefined
}
