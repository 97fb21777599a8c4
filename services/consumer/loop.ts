import type { EachBatchPayload } from 'kafkajs'
import { decodeChunk } from '../../outbox/chunk.ts'
import { DeltapostError } from '../../outbox/errors.ts'
import { decodeIdentity } from '../../outbox/record.ts'
import type { Log } from '../runtime/log.ts'
import { isEnvironment } from '../runtime/slot.ts'
import type { Slot } from '../runtime/slot.ts'
import type { Holding } from './apply.ts'
import type { ConsumedRecord, Foreign } from './arrival.ts'
import { OPEN_BYTES } from './chunks.ts'
import { gather } from './gather.ts'
import { lent } from './lending.ts'
import type { Lending } from './lending.ts'
import { raiseTerm, storeWaiting } from './position.ts'
import { openMirror } from './mirror.ts'
import type { Mirror } from './mirror.ts'
import type { Offer } from './rounds.ts'
import { openSession, startOf } from './session.ts'
import type { Session } from './session.ts'
import { keepHeadless, SILENT, tendOpen } from './unfinished.ts'

/** What the loop of one consumer is made of. */
export type LoopParts = {
  group: string
  holder: string
  /** For what is asked and kept beside applying. */
  slots: Lending
  apply: Offer
  /** Bytes of changes that are put together from chunks at the same time; OPEN_BYTES where nothing is said. */
  openBytes?: number
  seek(topic: string, partition: number, offset: bigint): void
  keepForeign(slot: Slot, holding: Holding, record: ConsumedRecord, foreign: Foreign): Promise<void>
  log: Log
}

/** Memory and time of one call are bounded by these: a call of 1,000 changes takes some 20 ms. */
const callLimit = { changes: 1_000, bytes: 8 << 20 }

const backOff = { first: 200, most: 10_000 }

/** What a loop remembers between batches, by topic and partition. */
type Memory = {
  sessions: Map<string, Session>
  /** Failures in a row. */
  failures: Map<string, number>
  mirror: Mirror
}

/** Applies what Kafka delivers. `assigned` must be called at every new assignment: it forgets the terms. */
export function consumerLoop(parts: LoopParts): { eachBatch(payload: EachBatchPayload): Promise<void>; assigned(): void } {
  const memory: Memory = {
    sessions: new Map(), failures: new Map(),
    mirror: openMirror((topic, partition) => memory.sessions.get(`${topic}/${partition}`)?.chunks.hold(), parts.log),
  }
  return {
    eachBatch: (payload) => takeBatch(parts, memory, payload),
    assigned() {
      memory.sessions = new Map() // batches under way keep theirs: their terms stand until somebody raises them
    },
  }
}

async function takeBatch(parts: LoopParts, memory: Memory, payload: EachBatchPayload): Promise<void> {
  const { batch, isRunning, isStale, pause, heartbeat } = payload
  if (!isRunning() || isStale() || batch.messages.length === 0) return
  const name = nameOf(payload)
  let beat: Promise<void> = Promise.resolve()
  // A long call must not cost the assignment: heartbeats are otherwise sent between batches only. One that fails is
  // followed by the next, for a broker that was away for a moment has not forgotten us.
  const beating = setInterval(() => { beat = beat.then(heartbeat, heartbeat); beat.catch(() => undefined) }, 1_000)
  try {
    const next = await applyBatch(parts, memory.sessions, payload)
    if (memory.failures.delete(name)) parts.log.info({ topic: batch.topic, partition: batch.partition }, 'the partition goes on')
    if (next === undefined) return
    payload.resolveOffset((next - 1n).toString())
    await watch(parts, memory, payload)
  } catch (error) {
    const tries = (memory.failures.get(name) ?? 0) + 1
    memory.failures.set(name, tries)
    logFailure(parts.log, batch.topic, batch.partition, tries, error)
    await noteWaiting(parts, memory.sessions.get(name), payload, error)
    const resume = pause()
    setTimeout(resume, Math.min(backOff.first * 2 ** (tries - 1), backOff.most)).unref()
    return
  } finally {
    clearInterval(beating)
  }
  await beat // what a heartbeat says of the group is for kafkajs to act on
  await heartbeat()
  await memory.mirror(payload)
}

/** Writes down why the partition does not move, for status, doctor and event show. Where the database is away nobody can look. */
async function noteWaiting(parts: LoopParts, session: Session | undefined, { batch }: EachBatchPayload, error: unknown): Promise<void> {
  if (session === undefined || error instanceof Fenced || isEnvironment(error)) return
  const why = error instanceof Error ? error.message : String(error)
  try {
    const at = { group: parts.group, topic: batch.topic, partition: batch.partition, term: session.term }
    await lent(parts.slots, (slot) => slot.run((sql) => storeWaiting(sql, at, why)))
  } catch (failure) {
    parts.log.debug({ error: failure }, 'why the partition waits could not be stored')
  }
}

/**
 * Looks after changes that came in part and then nothing more, now and later on: a partition may have no other records.
 * The later look is left out where the session or the consumer has ended.
 */
async function watch(parts: LoopParts, memory: Memory, payload: EachBatchPayload): Promise<void> {
  const { topic, partition } = payload.batch
  const session = memory.sessions.get(nameOf(payload))
  if (session === undefined || session.chunks.hold() === undefined) return
  await lent(parts.slots, (slot) => tendOpen(slot, { group: parts.group, topic, partition, term: session.term }, session))
  if (session.watched) return
  session.watched = true
  setTimeout(() => {
    session.watched = false
    if (memory.sessions.get(nameOf(payload)) !== session || !payload.isRunning()) return
    watch(parts, memory, payload).catch((error: unknown) => parts.log.debug({ error }, 'open chunks could not be looked at'))
  }, SILENT).unref()
}

function nameOf({ batch }: EachBatchPayload): string {
  return `${batch.topic}/${batch.partition}`
}

/** Returns the next offset to read, or undefined where the partition is to be read from elsewhere or is not ours. */
async function applyBatch(parts: LoopParts, sessions: Map<string, Session>, payload: EachBatchPayload): Promise<bigint | undefined> {
  const { topic, partition, messages } = payload.batch
  const first = messages[0]!
  const known = sessions.get(nameOf(payload))
  // Nobody sought, yet it comes from below: Kafka answered 'offset out of range', so this is another log. Look again.
  const session = known === undefined || (known.verified && BigInt(first.offset) < known.from)
    ? await begin(parts, sessions, payload) : known
  if (!session.verified) {
    const last = session.position.lastOffset ?? 0n // nothing applied yet: from the earliest, whatever Kafka has committed
    if (!session.sought && first.offset !== last.toString()) {
      session.sought = true
      parts.seek(topic, partition, last)
      return undefined
    }
    const start = startOf(session, first.offset, decodeIdentity(first.headers), parts.log)
    if ('seek' in start) {
      parts.seek(topic, partition, start.seek)
      return undefined
    }
  }
  const holding = { group: parts.group, topic, partition, term: session.term }
  for (const call of calls(messages, session.from)) {
    if (!payload.isRunning() || payload.isStale()) return undefined
    const { outcome, full } = await applyCall(parts, holding, session, call)
    if (outcome === 'FENCED') {
      parts.log.info({ topic, partition, term: session.term }, 'another consumer has this partition')
      sessions.delete(nameOf(payload)) // raised again if it is still assigned when the next batch comes
      throw new Fenced()
    }
    payload.resolveOffset((session.from - 1n).toString())
    if (full) throw noRoom(topic, partition, session.from)
    const again = session.chunks.rewind()
    if (again !== undefined) {
      session.from = again
      parts.seek(topic, partition, again)
      return undefined
    }
  }
  return BigInt(messages.at(-1)!.offset) + 1n
}

async function begin(parts: LoopParts, sessions: Map<string, Session>, payload: EachBatchPayload): Promise<Session> {
  const { topic, partition } = payload.batch
  const position = await lent(parts.slots, (slot) => slot.run((sql) => raiseTerm(sql, parts.group, topic, partition, parts.holder)))
  const session = openSession(position, (bytes) => hasRoom(sessions, bytes, parts.openBytes ?? OPEN_BYTES))
  sessions.set(nameOf(payload), session)
  return session
}

/** Whether so many more bytes may be set aside for chunks; takes them from sets that nothing came for. One alone always may. */
function hasRoom(sessions: ReadonlyMap<string, Session>, bytes: number, most: number): boolean {
  const taken = (): number => [...sessions.values()].reduce((sum, { chunks }) => sum + chunks.bytes(), 0)
  if (taken() + bytes > most) for (const { chunks } of sessions.values()) chunks.giveBack()
  return taken() === 0 || taken() + bytes <= most
}

/**
 * Applies what is whole and stores the position: behind the call, or at the first chunk of the oldest change that is not.
 * What is applied beyond that is recognised by (origin, seq_id) if it comes again.
 */
async function applyCall(
  parts: LoopParts, holding: Holding, session: Session, records: readonly ConsumedRecord[],
): Promise<{ outcome: 'OK' | 'FENCED'; full: boolean }> {
  const { arrivals, foreign, headless, next, full } = gather(records, session.chunks)
  for (const { record, foreign: why } of foreign) {
    if (session.kept.has(record.offset)) continue
    await lent(parts.slots, (slot) => parts.keepForeign(slot, holding, record, why))
    session.kept.add(record.offset)
  }
  if (headless.length > 0) await lent(parts.slots, (slot) => keepHeadless(slot, holding, headless))
  const bytes = records.reduce((sum, { value }) => sum + (value?.length ?? 0), 0)
  const outcome = await parts.apply({ holding, arrivals, nextOffset: session.chunks.hold() ?? next, bytes })
  if (outcome === 'OK') {
    session.chunks.settle()
    session.from = next
  }
  return { outcome, full }
}

function noRoom(topic: string, partition: number, offset: bigint): DeltapostError {
  return new DeltapostError('CHUNKS_WAIT',
    `no memory is left to put together the change that begins at offset ${offset} of ${topic}/${partition}: others are under way in other partitions`,
    'nothing: the partition goes on when they are applied; more consumers share the partitions out', { retry: true })
}

/** Not an error of anybody: the partition moved on. Thrown so that the batch is left without resolving its offsets. */
class Fenced extends Error {
  readonly code = 'FENCED'
  readonly retry = true
}

/** Cuts a fetch into calls, leaving out what the position has already. */
export function* calls(messages: readonly ConsumedRecord[], from: bigint): Generator<ConsumedRecord[]> {
  let call: ConsumedRecord[] = []
  let bytes = 0
  for (const message of messages) {
    if (BigInt(message.offset) < from) continue
    const size = message.value?.length ?? 0
    if (call.length > 0 && (call.length >= callLimit.changes || bytes + size > callLimit.bytes)) {
      yield call
      call = []
      bytes = 0
    }
    call.push(message)
    bytes += size
    const chunk = decodeChunk(message.headers)
    if (typeof chunk !== 'object' || chunk.index + 1 < chunk.count) continue
    yield call // a large change may be whole now: it is applied before another becomes so
    call = []
    bytes = 0
  }
  if (call.length > 0) yield call
}

function logFailure(log: Log, topic: string, partition: number, tries: number, error: unknown): void {
  if (error instanceof Fenced) return
  const waits = isEnvironment(error) || (error instanceof Error && 'retry' in error && error.retry === true)
  // The first failure and then every tenth: a night of a database that is away is not a log of it.
  if (tries > 1 && tries % 10 !== 0) return
  const fields = { topic, partition, tries, error }
  if (waits) log.warn(fields, 'the partition waits')
  else log.error(fields, 'the partition stops at an error that nobody expected')
}
