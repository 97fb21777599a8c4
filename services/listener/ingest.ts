import { isUtf8 } from 'node:buffer'
import { BadChange, badSyntax, changeOf, readChange, type Change } from '../../outbox/change.ts'
import { documentsOf, type Document } from '../../outbox/documents.ts'
import { contentHash, eventKey, idempotencyKey, rowKey } from '../../outbox/event-key.ts'
import type { Accepted, Repeat } from '../../outbox/intake.ts'
import type { Unreadable } from '../../outbox/rejected.ts'
import type { KeyMemory } from '../../outbox/relation.ts'
import { microsToTimestamp, sourceMicros } from '../../outbox/time.ts'
import type { Groups } from './group.ts'

/** What a post says besides its body. `headers` without credentials. */
export type Post = {
  path: string
  headers: Readonly<Record<string, string>>
  idempotencyKey: string | undefined
  /** The place of the first document in the batch it was part of: not 0 where one of a batch is retried. */
  firstOrdinal: number
  /** Somebody looked at it: it may be older than the horizon. */
  acceptOld: boolean
  traceparent: string | undefined
}

export type IngestParts = {
  settings: { topic: string; source: string; sourceTimeZone: string; defaultSchema: string | undefined; horizon: number }
  keys: KeyMemory
  groups: Pick<Groups, 'offer'>
  /** Keeps bytes that are no change; returns the id of the entry. */
  reject: (entry: Unreadable) => Promise<string>
  /** What is known of an event key. */
  lookUp: (eventKey: string) => Promise<Repeat[]>
}

/** The answer of one document, as it is sent. */
export type Item = { seq_id: string } | { rejected: string; reason: BadChange['reason'] }

/** `items` in the order of the documents; `batch` where the body was an array or had more than one. */
export type Answer = { batch: boolean; items: Item[] }

// A batch of a million documents must not lie in the queue at once: it takes its turn with other posts in windows.
const WINDOW = 1_024

/** Takes every change of a body, or keeps its bytes. Rejects only for the environment's sake: then post all of it again. */
export async function ingest(bytes: Buffer, post: Post, parts: IngestParts): Promise<Answer> {
  if (!isUtf8(bytes)) {
    return single(await refuse(new BadChange('invalid_utf8', 'the body is not UTF-8'), bytes, post, parts))
  }
  const text = bytes.toString('utf8')
  const documents = documentsOf(text)
  const first = documents.next()
  if (first.done === true) return single(await refuse(new BadChange('empty_body', 'the body is empty'), bytes, post, parts))
  const second = documents.next()
  if (second.done === true && !first.value.inArray) {
    // Postgres takes no byte order mark for JSON.
    const payload = text.charCodeAt(0) === 0xfeff ? text.slice(1) : text
    return single(await take({ text, document: first.value, payload, ordinal: post.firstOrdinal }, post, parts))
  }

  const items: Item[] = []
  let window: Promise<Item>[] = []
  let ordinal = post.firstOrdinal
  for (const document of chain(first, second, documents)) {
    window.push(take({ text, document, payload: text.slice(document.start, document.end), ordinal }, post, parts))
    ordinal += 1
    if (window.length < WINDOW) continue
    items.push(...await Promise.all(window))
    window = []
  }
  items.push(...await Promise.all(window))
  return { batch: true, items }
}

function* chain(first: IteratorResult<Document, void>, second: IteratorResult<Document, void>, rest: Iterable<Document>): Generator<Document> {
  if (first.done !== true) yield first.value
  if (second.done !== true) yield second.value
  yield* rest
}

/** Keeps bytes as rejected and gives the answer that says so. */
export async function refuse(fault: BadChange, bytes: Buffer, post: Post, parts: Pick<IngestParts, 'reject'>): Promise<Item> {
  const { path, headers } = post
  const id = await parts.reject({ path, headers, body: bytes, reason: fault.reason, detail: fault.detail })
  return { rejected: id, reason: fault.reason }
}

type Piece = { text: string; document: Document; payload: string; ordinal: number }

async function take(piece: Piece, post: Post, parts: IngestParts): Promise<Item> {
  try {
    const change = await accept(piece, post, parts)
    if (isTooOld(change, post, parts)) return await repeatOf(change, parts)
    const outcome = await parts.groups.offer(change)
    if ('seqId' in outcome) return { seq_id: outcome.seqId }
    throw new BadChange(outcome.reason, outcome.detail)
  } catch (error) {
    if (!(error instanceof BadChange)) throw error
    const headers = post.idempotencyKey === undefined ? post.headers : { ...post.headers, 'idempotency-ordinal': String(piece.ordinal) }
    return refuse(error, Buffer.from(piece.payload), { ...post, headers }, parts)
  }
}

/** Reads a document and adds what intake needs. Throws BadChange. */
async function accept(piece: Piece, post: Post, { settings, keys }: IngestParts): Promise<Accepted> {
  const change = read(piece, settings.defaultSchema)
  const micros = sourceMicros(change.time, settings.sourceTimeZone, Date.now())
  if (micros === undefined) throw new BadChange('bad_time', 'TIME is not of the form 2019-09-16T10:00:00.511189Z')
  let keyColumns = keys.keyOf(change.schema, change.table)
  if (keyColumns === undefined) keyColumns = await keys.meet(change.schema, change.table)
  const chosen = post.idempotencyKey
  return {
    eventKey: chosen === undefined ? eventKey(change) : idempotencyKey(chosen, piece.ordinal),
    contentHash: chosen === undefined ? null : contentHash(change),
    topic: settings.topic,
    source: settings.source,
    schema: change.schema,
    table: change.table,
    operation: change.operation,
    dialect: change.dialect,
    payload: piece.payload,
    clean: change.relay ? change.cleanText : null,
    rowKey: rowKey(change, keyColumns),
    time: microsToTimestamp(micros),
    traceparent: post.traceparent ?? null,
  }
}

/**
 * True for a change from before the horizon. Its row may have been deleted since, and the tombstone that would tell so may
 * be gone: applied now, it would bring the row back.
 */
function isTooOld({ time }: Accepted, { acceptOld }: Post, { settings: { horizon } }: IngestParts): boolean {
  return horizon > 0 && !acceptOld && Date.parse(time) < Date.now() - horizon
}

/** The answer to an old change that was taken while it was young. Throws BadChange where it is not known. */
async function repeatOf({ eventKey: key, contentHash: hash, time }: Accepted, { lookUp }: IngestParts): Promise<Item> {
  const [repeat] = await lookUp(key)
  if (repeat === undefined || repeat.contentHash !== hash) {
    throw new BadChange('older_than_horizon', `its TIME is ${time}, before the horizon (HORIZON): a later delete of its row may be forgotten`)
  }
  return { seq_id: repeat.seqId }
}

function read({ text, document, payload }: Piece, defaultSchema: string | undefined): Change {
  if (document.fault !== undefined) throw badSyntax(document.fault)
  if (document.node === undefined) return readChange(payload, { defaultSchema })
  return changeOf(text, document.node, { defaultSchema }, payload)
}

function single(item: Item): Answer {
  return { batch: false, items: [item] }
}
