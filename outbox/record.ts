/** The headers of a record; frozen. The value carries everything else. Chunk records have one more, in chunk.ts. */
export const ID_HEADER = 'deltapost-id'
export const VERSION_HEADER = 'deltapost-version'
export const TRACE_HEADER = 'traceparent'

/**
 * Who a record is and where it stands in its row's history.
 *
 * (origin, seqId) is the change, `attempt` the publication of it; (epoch, time, seq) is the version, `time` microseconds
 * since 1970. What Postgres keeps as bigint is text here.
 */
export type Identity = { origin: number; seqId: string; attempt: number; epoch: number; time: string; seq: string }

export type HeaderValue = string | Buffer | readonly (string | Buffer)[] | undefined

/** The headers for an identity; `traceparent` only where there was one. */
export function encodeIdentity(identity: Identity, traceparent?: string | null): Record<string, string> {
  return recordHeaders(
    `${identity.origin}:${identity.seqId}:${identity.attempt}`,
    `${identity.epoch}:${identity.time}:${identity.seq}`,
    traceparent ?? null,
  )
}

/** The same from the texts that nextEvents reads. */
export function recordHeaders(id: string, version: string, traceparent: string | null): Record<string, string> {
  if (traceparent === null) return { [ID_HEADER]: id, [VERSION_HEADER]: version }
  return { [ID_HEADER]: id, [VERSION_HEADER]: version, [TRACE_HEADER]: traceparent }
}

/** Reads an identity, as kafkajs gives headers; undefined where the record is not one of ours. */
export function decodeIdentity(headers: Readonly<Record<string, HeaderValue>> | undefined): Identity | undefined {
  const id = /^(\d{1,5}):(\d{1,19}):(\d{1,5})$/.exec(headerText(headers?.[ID_HEADER]))
  const version = /^(\d{1,10}):(-?\d{1,19}):(\d{1,19})$/.exec(headerText(headers?.[VERSION_HEADER]))
  const [, origin, seqId, attempt] = id ?? []
  const [, epoch, time, seq] = version ?? []
  if (origin === undefined || seqId === undefined || attempt === undefined) return undefined
  if (epoch === undefined || time === undefined || seq === undefined) return undefined
  return { origin: Number(origin), seqId, attempt: Number(attempt), epoch: Number(epoch), time, seq }
}

/** The partition of a lane: events that must keep their order share a lane, and so a partition. */
export function partitionOf(lane: number, partitions: number): number {
  return lane % partitions
}

/** A header that was sent twice has no single meaning: '' fails every pattern above. */
export function headerText(value: HeaderValue): string {
  if (typeof value === 'string') return value
  return Buffer.isBuffer(value) ? value.toString('latin1') : ''
}

const FRONT = /^\{"SEQ_ID":"\d+","TOPICNAME":"(?:[^"\\]|\\.)*","SOURCE":"(?:[^"\\]|\\.)*","RECEIVED_AT":"([^"]*)"/

/**
 * When the change was received, milliseconds since 1970, from the members that the relay puts in front of the value;
 * undefined where they are not there. What the sender wrote under the same names was taken out at intake.
 */
export function receivedAtOf(value: string): number | undefined {
  const received = Date.parse(FRONT.exec(value)?.[1] ?? '')
  return Number.isNaN(received) ? undefined : received
}
