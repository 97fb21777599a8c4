import { beginJoin, join } from '../../outbox/chunk.ts'
import type { Chunk, Joining } from '../../outbox/chunk.ts'
import type { Identity } from '../../outbox/record.ts'

/** Bytes of changes that one process puts together at the same time: two of MAX_BODY's most. A larger one goes alone. */
export const OPEN_BYTES = 2 * (257 << 20)

/** A set of which nothing came for so long (milliseconds) gives its memory to one that needs it. Above the longest pause. */
export const IDLE = 15_000

/** Ids that are remembered as applied. The ones before them are found in inbox.applied. */
const MOST_DONE = 1_000

/** A change of which not all chunks were seen yet. `head` is the offset of the first one. */
export type OpenSet = { identity: Identity; chunk: Chunk; head: bigint; seen: number }

/**
 * PART: nothing more to do. HEADLESS: the chunks before it were not seen. FULL: there must be memory for this change
 * before reading goes on, and the record must come again. A buffer is the whole value.
 */
export type Taken = 'PART' | 'HEADLESS' | 'FULL' | Buffer

/** The changes of one partition that come in chunks, under one term. */
export type Chunks = {
  /** To be called before the records of an apply call, with the first one's offset: takes back what a call did that failed. */
  begin: (from: bigint) => void
  take: (offset: bigint, identity: Identity, chunk: Chunk, value: Buffer) => Taken
  /** What take gave whole since `begin` is applied. */
  settle: () => void
  /** The offset that the stored position must not pass, undefined where no set is open. */
  hold: () => bigint | undefined
  /** From where to read again, for a change whose last chunk came while it had no memory. Forgets what lies behind that. */
  rewind: () => bigint | undefined
  /** Bytes set aside. */
  bytes: () => number
  giveBack: () => void
  /** Sets of which nothing came for `ms`, lowest offset first. */
  silentFor: (ms: number) => OpenSet[]
  drop: (sets: readonly OpenSet[]) => void
}

type Gathering = OpenSet & { name: string; joining: Joining | undefined; missed: boolean; delivered: boolean; touched: number }

/**
 * Puts chunks together. `room` says whether so many more bytes may be set aside; `now` is milliseconds, monotonic.
 *
 * A relay sends the chunks of a run one after the other, each confirmed before the next, so every run that was completed
 * lies in the log in order, among records of others, repetitions of its own chunks, and remains of earlier runs. All runs
 * of one cut have the same bytes in the same chunks. So it is enough to take, for each cut of an event, whatever chunk
 * comes next: a completed run completes it at the latest with its own last chunk, and a late repetition (a chunk 0 of a
 * run that was given up, say) takes nothing away.
 *
 * The log is the store: the stored position stays at the first chunk of the oldest open set, and a consumer that starts
 * there reads all of them again. The same serves where memory is short: a set without memory is passed over until its last
 * chunk comes. Then a whole run of it lies in the log, and it is read again from its head, alone: it may wait for memory,
 * and the others of the partition have none until it is whole. Each such turn ends with a change less to come, so no two
 * push each other out for ever, and a set that nobody completes never causes one.
 */
export function openChunks(room: (bytes: number) => boolean, now: () => number = () => performance.now()): Chunks {
  const sets = new Map<string, Gathering>()
  const done = new Set<string>()
  let alone: string | undefined
  const all = (): Gathering[] => [...sets.values()].sort((a, b) => (a.head < b.head ? -1 : 1))

  function forget(name: string): void {
    sets.delete(name)
    if (alone === name) alone = undefined
  }

  function finish(identity: Identity): void {
    remember(done, idOf(identity))
    for (const set of all()) if (idOf(set.identity) === idOf(identity)) forget(set.name)
  }

  function rewind(): bigint | undefined {
    const missed = alone === undefined ? all().find((set) => set.missed) : undefined
    if (missed === undefined) return undefined
    alone = missed.name
    for (const set of all()) {
      set.joining = undefined
      if (set.head >= missed.head) sets.delete(set.name)
    }
    return missed.head
  }

  return {
    begin(from) {
      for (const set of all()) {
        if (set.head >= from) sets.delete(set.name)
        if (set.delivered && set.joining !== undefined) set.joining.next = set.joining.count - 1
        set.delivered = false
      }
    },
    take(offset, identity, chunk, value) {
      if (done.has(idOf(identity))) return 'PART'
      const name = `${idOf(identity)}/${chunk.count}:${chunk.total}`
      const last = chunk.index === chunk.count - 1
      let set = sets.get(name)
      if (set === undefined) {
        if (chunk.index > 0 && last) forget(name)
        if (chunk.index > 0) return 'HEADLESS'
        const fits = (alone === undefined || alone === name) && room(chunk.total)
        if (!fits && alone === name) return 'FULL'
        set = { name, identity, chunk, head: offset, seen: 0, joining: fits ? beginJoin(chunk) : undefined, missed: false, delivered: false, touched: 0 }
        sets.set(name, set)
      }
      set.touched = now()
      if (set.joining === undefined) {
        set.missed ||= last
        return 'PART'
      }
      const whole = join(set.joining, chunk, value)
      set.seen = set.joining.next
      if (!whole && last) {
        forget(name) // what is missing lay before the head: gone with the topic's retention, or applied before this session
        return 'HEADLESS'
      }
      if (!whole || set.delivered) return 'PART'
      set.delivered = true
      return set.joining.value
    },
    settle() {
      for (const set of all()) if (set.delivered) finish(set.identity)
    },
    hold: () => lowestOpen(all()),
    rewind,
    bytes: () => all().reduce((sum, { joining }) => sum + (joining?.value.length ?? 0), 0),
    giveBack() {
      const idle = all().filter((set) => !set.delivered && set.name !== alone && now() - set.touched >= IDLE)
      for (const set of idle) set.joining = undefined
    },
    silentFor: (ms) => all().filter(({ touched }) => now() - touched >= ms),
    drop(some) {
      for (const { identity } of some) finish(identity)
    },
  }
}

function remember(done: Set<string>, id: string): void {
  done.add(id)
  const [oldest] = done
  if (done.size > MOST_DONE && oldest !== undefined) done.delete(oldest)
}

/** The lowest head of a set that is not whole, by this cut or another. */
function lowestOpen(sets: readonly Gathering[]): bigint | undefined {
  const whole = new Set(sets.filter(({ delivered }) => delivered).map(({ identity }) => idOf(identity)))
  return sets.find(({ identity }) => !whole.has(idOf(identity)))?.head
}

function idOf({ origin, seqId, attempt }: Identity): string {
  return `${origin}:${seqId}:${attempt}`
}
