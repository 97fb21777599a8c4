import type { Unreadable } from '../../outbox/rejected.ts'
import type { Sql } from '../../outbox/sql.ts'
import { openSlot, type Slot } from '../runtime/slot.ts'

type Run = <T>(work: (sql: Sql) => PromiseLike<T>) => Promise<T>

/** The connections of a listener, each made when it is first used, each for work that must not wait for the others'. */
export type Connections = {
  groups: Slot[]
  big: Slot
  /** Small look-ups: relations met, durability. */
  run: Run
  upkeep: Run
  reachable(): Promise<boolean>
  reject(keep: (sql: Sql, entry: Unreadable) => Promise<string>): { reject(entry: Unreadable): Promise<string>; drained(): Promise<void> }
  close(): Promise<void>
}

export function openConnections(url: string): Connections {
  const opened: Slot[] = []
  function open(name: string, deadline?: number): Slot {
    const slot = openSlot({ url, name: `listener ${name}`, ...(deadline === undefined ? {} : { deadline }) })
    opened.push(slot)
    return slot
  }
  const ready = open('ready', 1_000)
  // Two minutes: 256 MB are parsed, compressed and written to the log of Postgres in one statement.
  const rejected = oneAtATime(open('rejected', 120_000))
  let asking: Promise<boolean> | undefined

  return {
    groups: [open('group 1'), open('group 2')],
    big: open('big', 120_000),
    run: oneAtATime(open('look-up')),
    upkeep: oneAtATime(open('upkeep', 60_000)),
    reachable() {
      asking ??= ready.run((sql) => sql`select 1`).then(() => true, () => false).finally(() => {
        asking = undefined
      })
      return asking
    },
    reject(keep) {
      let last: Promise<unknown> = Promise.resolve()
      return {
        reject(entry) {
          const id = rejected((sql) => keep(sql, entry))
          last = id.catch(() => undefined)
          return id
        },
        async drained() {
          await last
        },
      }
    },
    async close() {
      await Promise.all(opened.map((slot) => slot.close()))
    },
  }
}

/** A slot takes one statement at a time; those who share one stand in line. */
function oneAtATime(slot: Slot): Run {
  let last: Promise<unknown> = Promise.resolve()
  return (work) => {
    const mine = last.then(() => slot.run(work))
    last = mine.catch(() => undefined)
    return mine
  }
}
