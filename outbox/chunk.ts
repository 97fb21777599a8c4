import { headerText } from './record.ts'
import type { HeaderValue } from './record.ts'

/** On chunk records only: index:count:total, `total` being the bytes of the whole value. */
export const CHUNK_HEADER = 'deltapost-chunk'

/** Which part of a value a record carries: `index` of `count`, from 0; the value has `total` bytes. */
export type Chunk = { index: number; count: number; total: number }

/** A value becomes one string of V8, which ends here; no header may ask for more memory. */
export const MOST_TOTAL = 2 ** 29 - 24
/** Chunks of one value: of 1 KB each at the least for the largest. The bounds are computed exactly far beyond that. */
const MOST_COUNT = 2 ** 20

export function chunkHeader({ index, count, total }: Chunk): Record<string, string> {
  return { [CHUNK_HEADER]: `${index}:${count}:${total}` }
}

/** Undefined where the record is no chunk, 'INVALID' where its header is none that the relay writes. */
export function decodeChunk(headers: Readonly<Record<string, HeaderValue>> | undefined): Chunk | 'INVALID' | undefined {
  const header = headers?.[CHUNK_HEADER]
  if (header === undefined) return undefined
  const [, index, count, total] = (/^(\d{1,9}):(\d{1,9}):(\d{1,9})$/.exec(headerText(header)) ?? []).map(Number)
  if (index === undefined || count === undefined || total === undefined) return 'INVALID'
  if (count < 1 || count > MOST_COUNT || index >= count || total < count || total > MOST_TOTAL) return 'INVALID'
  return { index, count, total }
}

/**
 * How many chunks a value of `total` bytes needs where a record has room for `most`.
 *
 * The bounds follow from total and count alone. So any two chunks of one event with the same numbers are of the same cut,
 * whichever relay sent them and whatever limit it had read, and may be put together.
 */
export function countOf(total: number, most: number): number {
  return Math.max(1, Math.ceil(total / most))
}

/** The bytes of a chunk, as [from, to) of the value. Sizes differ by one byte at most; with countOf none is above `most`. */
export function boundsOf({ index, count, total }: Chunk): { from: number; to: number } {
  return { from: Math.floor((index * total) / count), to: Math.floor(((index + 1) * total) / count) }
}

/** Cuts a value into chunks for records with room for `most` bytes each. They are views of `value`, not copies. */
export function* cut(value: Buffer, most: number): Generator<{ chunk: Chunk; bytes: Buffer }> {
  const count = countOf(value.length, most)
  for (let index = 0; index < count; index++) {
    const chunk = { index, count, total: value.length }
    const { from, to } = boundsOf(chunk)
    yield { chunk, bytes: value.subarray(from, to) }
  }
}

/** A value that is being put together: memory for all of it, and the index that comes next. */
export type Joining = { count: number; next: number; value: Buffer }

export function beginJoin({ count, total }: Pick<Chunk, 'count' | 'total'>): Joining {
  return { count, next: 0, value: Buffer.allocUnsafeSlow(total) }
}

/**
 * Copies a chunk to its place if it is the one that comes next; a repetition, one that comes too early, and one of
 * another cut change nothing. Returns whether the value is whole. `bytes` must be of the chunk's size (`fits`).
 */
export function join(joining: Joining, chunk: Chunk, bytes: Buffer): boolean {
  const { count, value } = joining
  if (chunk.count === count && chunk.total === value.length && chunk.index === joining.next) {
    bytes.copy(value, boundsOf(chunk).from)
    joining.next += 1
  }
  return joining.next === count
}

/** Whether a record's value has the size that its header says. */
export function fits(chunk: Chunk, bytes: Buffer): boolean {
  const { from, to } = boundsOf(chunk)
  return bytes.length === to - from
}
