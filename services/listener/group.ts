import { DeltapostError } from '../../outbox/errors.ts'
import { BIG_CHANGE, type Accepted } from '../../outbox/intake.ts'
import type { Log } from '../runtime/log.ts'
import { isEnvironment, type Slot } from '../runtime/slot.ts'
import { commitGroup, type Outcome } from './commit.ts'

// Measured: groups above 256 are slower; two in flight keep the disk busy while the next one is gathered.
const MOST_CHANGES = 256
const MOST_CHARACTERS = 1 << 20
// About two seconds of work: a sender that waits longer is better told to come again.
const MOST_WAITING = 16_384
// A loss within this time is mostly a restart of Postgres: worth one repeat, since the trigger itself never posts again.
const QUICK_LOSS_MS = 1_000
// When Postgres does not answer, a group is given up after 15 s; who waited behind it is told then, and not group by group.
const PATIENCE_MS = 15_000

export type Groups = {
  /** Resolves after the commit. Rejects where the outcome is unknown or nothing can be taken: answer 503. */
  offer: (change: Accepted) => Promise<Outcome>
}

export type GroupParts = {
  /** One group is in flight on each. */
  slots: readonly Slot[]
  /** For changes above BIG_CHANGE, one at a time, so that they hold up nobody. */
  bigSlot: Slot
  wake: { ring: () => void }
  log: Log
}

type Waiting = { change: Accepted; since: number; settle: (outcome: Outcome) => void; fail: (error: unknown) => void }

/** Gathers changes of concurrent requests into groups, each committed by one statement; never lingers for more to come. */
export function openGroups({ slots, bigSlot, wake, log }: GroupParts): Groups {
  const report = stateReport(log)
  const usual = openQueue(slots, MOST_CHANGES, wake, report)
  const big = openQueue([bigSlot], 1, wake, report)
  return { offer: (change) => (change.payload.length > BIG_CHANGE ? big : usual).offer(change) }
}

function openQueue(slots: readonly Slot[], most: number, wake: GroupParts['wake'], report: Report): Groups {
  const free = [...slots]
  const queue: Waiting[] = []
  let planned = false

  function plan(): void {
    if (planned) return
    planned = true
    // Requests that were read in the same turn of the event loop go together; nobody waits for a clock.
    setImmediate(pump)
  }

  function pump(): void {
    planned = false
    dropStale(queue)
    while (queue.length > 0) {
      const slot = free.pop()
      if (slot === undefined) return
      void flush(slot, queue.splice(0, groupSize(queue, most)))
    }
  }

  async function flush(slot: Slot, group: readonly Waiting[]): Promise<void> {
    try {
      const outcomes = await commitPatiently(slot, group.map(({ change }) => change))
      report(undefined)
      wake.ring()
      group.forEach(({ settle, fail }, at) => {
        const outcome = outcomes[at]
        if (outcome === undefined) fail(new Error('a change without an outcome'))
        else settle(outcome)
      })
    } catch (error) {
      report(error)
      for (const { fail } of group) fail(error)
    } finally {
      free.push(slot)
      plan()
    }
  }

  return {
    offer(change) {
      if (queue.length >= MOST_WAITING) return Promise.reject(tooMany())
      const { promise, resolve, reject } = Promise.withResolvers<Outcome>()
      queue.push({ change, since: performance.now(), settle: resolve, fail: reject })
      plan()
      return promise
    },
  }
}

function dropStale(queue: Waiting[]): void {
  const oldest = performance.now() - PATIENCE_MS
  const fresh = queue.findIndex(({ since }) => since >= oldest)
  for (const { fail } of queue.splice(0, fresh === -1 ? queue.length : fresh)) fail(tooMany())
}

function groupSize(queue: readonly Waiting[], most: number): number {
  let size = 0
  let characters = 0
  for (const { change } of queue) {
    characters += change.payload.length + (change.clean?.length ?? 0)
    if (size === most || (size > 0 && characters > MOST_CHARACTERS)) break
    size += 1
  }
  return size
}

async function commitPatiently(slot: Slot, changes: readonly Accepted[]): Promise<Outcome[]> {
  const begun = performance.now()
  try {
    return await commitGroup(slot, changes)
  } catch (error) {
    if (!isEnvironment(error) || performance.now() - begun > QUICK_LOSS_MS) throw error
    return commitGroup(slot, changes)
  }
}

function tooMany(): DeltapostError {
  return new DeltapostError('INTAKE_FULL', 'too many changes wait to be committed',
    'post again; if it lasts, look at the disk of Postgres with deltapost doctor', { retry: true })
}

type Report = (error: unknown) => void

/** One line when commits begin to fail and one when they succeed again. */
function stateReport(log: Log): Report {
  let failing = false
  return (error) => {
    if (error !== undefined && !failing) log.error({ error }, 'changes cannot be committed; senders are answered 503')
    if (error === undefined && failing) log.info('changes are committed again')
    failing = error !== undefined
  }
}
