import { readArrival, readPart } from './arrival.ts'
import type { ConsumedRecord, Foreign, Part } from './arrival.ts'
import type { Chunks } from './chunks.ts'
import type { Arrival } from './element.ts'

/** What the records of a call come to. */
export type Gathered = {
  /** Changes that are whole, one that came in chunks among them at the offset of its last one. */
  arrivals: Arrival[]
  foreign: { record: ConsumedRecord; foreign: Foreign }[]
  headless: Part[]
  /** The offset to read on from. */
  next: bigint
  /** The record at `next` begins a change for which there is no memory now. */
  full: boolean
}

/** Reads the records of one apply call in their order; its whole changes are settled by whoever applies them. */
export function gather(records: readonly ConsumedRecord[], chunks: Chunks): Gathered {
  const all: Gathered = { arrivals: [], foreign: [], headless: [], next: 0n, full: false }
  chunks.begin(BigInt(records[0]?.offset ?? 0))
  for (const record of records) {
    const part = readPart(record)
    const whole = part !== undefined && 'chunk' in part ? chunks.take(BigInt(record.offset), part.identity, part.chunk, part.value) : undefined
    if (whole === 'FULL') return { ...all, next: BigInt(record.offset), full: true }
    all.next = BigInt(record.offset) + 1n
    if (part !== undefined && !('chunk' in part)) all.foreign.push({ record, foreign: part })
    else if (part === undefined || Buffer.isBuffer(whole)) {
      const value = Buffer.isBuffer(whole) ? whole : record.value
      const read = readArrival({ ...record, value })
      if ('identity' in read) all.arrivals.push(read)
      else all.foreign.push({ record: { ...record, value }, foreign: read })
    } else if (whole === 'HEADLESS') all.headless.push(part)
  }
  return all
}
