import { chunkHeader, countOf, cut, MOST_TOTAL } from '../../outbox/chunk.ts'
import { batchBytes, roomFor } from '../runtime/kafka.ts'
import type { Outgoing } from '../runtime/kafka.ts'

/** Below this many bytes for the value of a chunk the rest of the record is what is too large. */
const LEAST_CHUNK = 1_024

/** The lane was lost, or the relay is to stop, between two chunks: nothing of the event counts as published. */
export class ChunksInterrupted extends Error {
  readonly code = 'CHUNKS_INTERRUPTED'
  readonly remedy = 'nothing: whoever holds the lane sends all chunks of the event anew'
  readonly retry = true
}

/** More than one record, and together above the topic's limit: refused here as the broker would, with its name for it. */
class BatchAboveLimit extends Error {
  readonly type = 'RECORD_LIST_TOO_LARGE'
}

/**
 * Writes messages where a batch may have `limit` bytes; returns the offset of the first record.
 *
 * A single message above it is written in chunks, one after the other, each when the broker has the one before: so a
 * partition holds the chunks of one run in their order. A run that ends early is never gone on with; the event is sent
 * again from its first chunk on, which is how the consumer knows that the earlier ones count no more.
 */
export async function sendWithin(
  limit: number, messages: readonly Outgoing[], write: (messages: readonly Outgoing[], bytes: number) => Promise<bigint>, mayGoOn: () => boolean,
): Promise<bigint> {
  const bytes = batchBytes(messages)
  const [alone] = messages
  if (bytes <= limit || alone === undefined) return write(messages, bytes)
  if (messages.length > 1) throw new BatchAboveLimit(`${messages.length} records of ${bytes} bytes, and the topic takes ${limit}`)
  const room = roomFor(limit, alone.key, { ...alone.headers, ...chunkHeader({ index: MOST_TOTAL, count: MOST_TOTAL, total: MOST_TOTAL }) })
  if (room < LEAST_CHUNK) return write(messages, bytes)
  let first: bigint | undefined
  for (const { chunk, bytes: value } of cut(alone.value, room)) {
    if (first !== undefined && !mayGoOn()) {
      throw new ChunksInterrupted(`stopped after ${chunk.index} of ${countOf(alone.value.length, room)} chunks: the lane is not ours any more`)
    }
    const offset = await write([{ ...alone, value, headers: { ...alone.headers, ...chunkHeader(chunk) } }], limit)
    first ??= offset
  }
  return first ?? write(messages, bytes)
}
