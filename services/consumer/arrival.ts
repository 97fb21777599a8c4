import type { IHeaders } from 'kafkajs'
import { BadChange, readChange } from '../../outbox/change.ts'
import { decodeChunk, fits } from '../../outbox/chunk.ts'
import type { Chunk } from '../../outbox/chunk.ts'
import { decodeIdentity, receivedAtOf, TRACE_HEADER } from '../../outbox/record.ts'
import type { Identity } from '../../outbox/record.ts'
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

/** A record that carries a part of a change's value. */
export type Part = { identity: Identity; chunk: Chunk; value: Buffer; offset: string }

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
    const traceparent = record.headers?.[TRACE_HEADER]?.toString() ?? null
    return {
      identity, change, offset: record.offset, receivedAt: receivedAtOf(value) ?? Number(record.timestamp),
      record: () => ({ key: record.key?.toString('utf8') ?? null, value: utf8.decode(record.value ?? undefined), traceparent }),
    }
  } catch (error) {
    if (error instanceof BadChange) return { offset: record.offset, reason: error.reason }
    if (error instanceof TypeError || error instanceof SyntaxError) return { offset: record.offset, reason: 'invalid_record' }
    throw error
  }
}

/** Reads a chunk record; undefined where the record carries a whole value. */
export function readPart(record: ConsumedRecord): Part | Foreign | undefined {
  const { offset, value } = record
  const chunk = decodeChunk(record.headers)
  if (chunk === undefined) return undefined
  const identity = decodeIdentity(record.headers)
  if (identity === undefined) return { offset, reason: 'no_identity' }
  if (value === null) return { offset, reason: 'no_value' }
  if (chunk === 'INVALID' || !fits(chunk, value)) return { offset, reason: 'invalid_record' }
  return { identity, chunk, value, offset }
}

/** The names as they nearly always are, in front of key values that nobody needs here: a fifth of the time of reading it all. */
const FRONT = /^\["([^"\\]*)","([^"\\]*)"[,\]]/

/** [schema, table, ...key values] as the relay writes it. */
function namesOf(key: Buffer | null): { schema: string; table: string } | undefined {
  if (key === null) return undefined
  const text = key.toString('utf8')
  const front = FRONT.exec(text)
  const parts: unknown = front === null ? JSON.parse(text) : front.slice(1)
  if (!Array.isArray(parts)) return undefined
  const [schema, table] = parts as unknown[]
  return typeof schema === 'string' && typeof table === 'string' ? { schema, table } : undefined
}
