import type { Identity } from '../../outbox/record.ts'
import type { Log } from '../runtime/log.ts'
import { openChunks } from './chunks.ts'
import type { Chunks } from './chunks.ts'
import type { Position } from './position.ts'

/**
 * One assignment of a partition: the term it is applied under, and from which offset on.
 *
 * Before the first apply the last record that was applied is read again. If it is another one, the topic was made anew
 * and the stored offset means nothing in it: then everything is read from the earliest on.
 *
 * `from` is where reading goes on. The stored position is there too, or, while a change has come in part, at its first
 * chunk: what was applied behind that is recognised when a later session reads it again. So the last applied record may
 * lie behind the stored position, and is looked at first all the same.
 */
export type Session = {
  readonly term: string
  from: bigint
  verified: boolean
  /** Whether the last applied record was asked for; where it is gone, the first record there is comes instead. */
  sought: boolean
  readonly position: Position
  /** Offsets of records that are not changes and were kept as rejected: a partition that waits reads them again. */
  readonly kept: Set<string>
  /** Changes that have come in part. They end with the session; the next one reads their chunks again. */
  readonly chunks: Chunks
  /** A look at open sets is planned, for a partition in which nothing else comes. */
  watched: boolean
}

/** What to do with a batch: seek elsewhere, or apply from `from` on. */
export type Start = { seek: bigint } | { from: bigint }

/** A session for a raised term. Where no change was ever applied, all is read: records that are not changes tell no log from another. */
export function openSession(position: Position, room: (bytes: number) => boolean = () => true): Session {
  return {
    term: position.term, from: position.lastOffset === null ? 0n : position.nextOffset, verified: false, sought: false, position,
    kept: new Set(), chunks: openChunks(room), watched: false,
  }
}

/**
 * Compares the first record of a fetch with what the position remembers, once.
 *
 * `identity` is undefined for a record that is not ours.
 */
export function startOf(session: Session, firstOffset: string, identity: Identity | undefined, log: Log): Start {
  const { lastOffset, lastOrigin, lastSeqId } = session.position
  const offset = BigInt(firstOffset)
  session.verified = true
  if (offset === lastOffset) {
    if (identity?.origin === lastOrigin && identity?.seqId === lastSeqId) return session.from > offset ? { from: session.from } : { seek: session.from }
    log.warn({ offset: firstOffset }, 'another record stands where the last applied one stood: the topic was made anew, reading it from the earliest on')
    session.from = 0n
    return { seek: 0n }
  }
  if (lastOffset !== null && offset < lastOffset) {
    log.warn({ offset: firstOffset, stored: session.from.toString() }, 'the topic ends before the stored offset: it was made anew, reading it from the earliest on')
    session.from = offset
  } else if (lastOffset !== null && offset > session.from) {
    log.error({ expected: session.from.toString(), found: firstOffset },
      'records between the stored offset and the first one there are gone from the topic: its retention is shorter than this outage; find them in auditlog.pending (published, not deployed) and publish them again: deltapost event publish SEQ_ID')
  }
  return { from: session.from }
}
