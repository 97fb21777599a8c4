/** What the broker said about a record that it will never take; `code` is its name for the error. */
export type Refusal = { code: string; message: string }

/**
 * The errors that say something of the record itself, so that the same bytes fail again whatever is waited for. In any
 * batch with such a record nothing was written.
 *
 * All others are the environment's, or the topic's, and use up no attempt:
 * - about the topic: UNKNOWN_TOPIC_OR_PARTITION, INVALID_TOPIC_EXCEPTION, TOPIC_AUTHORIZATION_FAILED,
 *   CLUSTER_AUTHORIZATION_FAILED, POLICY_VIOLATION, UNSUPPORTED_COMPRESSION_TYPE, UNSUPPORTED_FOR_MESSAGE_FORMAT: every
 *   record of the topic fails until somebody mends it, and then every one passes.
 * - INVALID_TIMESTAMP: records carry the time of sending, so a clock is wrong, or the topic takes none that are now.
 * - CORRUPT_MESSAGE: bytes that did not arrive as they were sent; UNKNOWN: the broker does not know itself.
 * - leaders, replicas, time-outs, disks, connections: the broker's.
 */
const OF_THE_RECORD = new Set(['MESSAGE_TOO_LARGE', 'RECORD_LIST_TOO_LARGE', 'INVALID_RECORD'])

/** Undefined where waiting can help. */
export function refusalOf(error: unknown): Refusal | undefined {
  for (let at: unknown = error; at instanceof Error; at = at.cause) {
    if ('type' in at && typeof at.type === 'string' && OF_THE_RECORD.has(at.type)) return { code: at.type, message: at.message }
  }
  return undefined
}
