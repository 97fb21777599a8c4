import { DeltapostError } from '../../outbox/errors.ts'
import { keepRejected, type Unreadable } from '../../outbox/rejected.ts'
import type { Sql } from '../../outbox/sql.ts'
import { openSlot, type Plans, type Slot } from '../runtime/slot.ts'

type Run = <T>(work: (sql: Sql) => PromiseLike<T>) => Promise<T>

/** The connections of a listener, each made when it is first used, each for work that must not wait for the others'. */
export type Connections = {
  groups: Slot[]
  big: Slot
  /** Small look-ups: relations met, durability. */
  run: Run
  upkeep: Run
  /** True where Postgres answers within a second. */
  reachable: () => Promise<boolean>
  /** Keeps bytes that are no change; returns the id of the entry. */
  reject: (entry: Unreadable) => Promise<string>
  /** See Slot. */
  close: (grace?: number) => Promise<void>
}

// Two minutes: 256 MB are parsed, compressed and written to the log of Postgres in one statement.
const BIG_DEADLINE = 120_000
const BIG_BODY = 1 << 20
// As long as a statement may take: who waited so long in line is told that it did not work.
const PATIENCE_MS = 15_000

export function openConnections(url: string): Connections {
  const opened: Slot[] = []
  function open(name: string, deadline = 15_000, plans?: Plans): Slot {
    const slot = openSlot({ url, name: `listener ${name}`, deadline, ...(plans && { plans }) })
    opened.push(slot)
    return slot
  }
  const ready = oneAtATime(open('ready', 1_000))
  const rejected = oneAtATime(open('rejected'))
  const bigRejected = oneAtATime(open('big rejected', BIG_DEADLINE))
  let asking: Promise<boolean> | undefined

  return {
    groups: [open('group 1', 15_000, 'kept'), open('group 2', 15_000, 'kept')],
    big: open('big', BIG_DEADLINE),
    run: oneAtATime(open('look-up')),
    upkeep: oneAtATime(open('upkeep', 60_000)),
    reachable() {
      asking ??= ready((sql) => sql`select 1`).then(() => true, () => false).finally(() => {
        asking = undefined
      })
      return asking
    },
    reject: (entry) => (entry.body.length > BIG_BODY ? bigRejected : rejected)((sql) => keepRejected(sql, entry)),
    async close(grace) {
      await Promise.all(opened.map((slot) => slot.close(grace)))
    },
  }
}

/** A slot takes one statement at a time; those who share one stand in line. */
function oneAtATime(slot: Slot): Run {
  let last: Promise<unknown> = Promise.resolve()
  return (work) => {
    const since = performance.now()
    const mine = last.then(() => {
      if (performance.now() - since > PATIENCE_MS) throw notServed()
      return slot.run(work)
    })
    last = mine.then(() => undefined, () => undefined)
    return mine
  }
}

function notServed(): DeltapostError {
  return new DeltapostError('DATABASE_SLOW', `no turn on a connection within ${PATIENCE_MS / 1000} s`,
    'look at what holds Postgres up with deltapost doctor', { retry: true })
}
