import { createHash } from 'node:crypto'
import { insertGroup } from '../../outbox/intake.ts'
import type { Accepted } from '../../outbox/intake.ts'
import type { Sql } from '../../outbox/sql.ts'
import type { Chance } from './own-time.ts'
import type { Action } from './schedule.ts'

/** A change that is to come, and what was found out of it. */
export type Coming = { lane: number; topic: string; key: string }
export type Committed = { position: string; lane: number; topic: string }

/** What posts changes: `connections` have one transaction each at most, `keys` are row keys by lane. */
export type SourceParts = {
  connections: readonly Sql[]
  keys: ReadonlyMap<number, string>
  name: string
  committed: (events: readonly Committed[]) => void
}

/** Transactions that begin, and commit or end without, when the schedule says so. */
export type Source = { actions: (faults: boolean) => Action[]; ended: () => boolean; open: () => number }

export function openSource(parts: SourceParts, chance: Chance): Source {
  const lanes = [...parts.keys.keys()]
  const coming = Array.from({ length: 3 + chance.below(4) }, () => Array.from({ length: 1 + chance.below(3) },
    (): Coming => ({ lane: chance.one(lanes), topic: chance.in(4) ? 'other' : 'topic', key: '' })))
  const open = new Map<Sql, Committed[]>()
  let number = 0

  async function insert(sql: Sql, group: readonly Coming[]): Promise<Committed[]> {
    const inserted = await insertGroup(sql, group.map((one) => accepted(one, parts, number++)))
    return inserted.map(({ ordinal, seqId }) => ({ position: seqId, lane: group[ordinal]!.lane, topic: group[ordinal]!.topic }))
  }
  async function begin(sql: Sql): Promise<void> {
    open.set(sql, [])
    void sql`begin`.execute()
    open.set(sql, await insert(sql, coming.pop()!))
  }
  async function end(sql: Sql, how: 'commit' | 'rollback'): Promise<void> {
    await sql.unsafe(how)
    if (how === 'commit') parts.committed(open.get(sql)!)
    open.delete(sql)
  }

  return {
    open: () => open.size,
    ended: () => coming.length === 0 && open.size === 0,
    actions(faults) {
      const idle = parts.connections.find((sql) => !open.has(sql))
      return [
        ...coming.length > 0 && idle !== undefined ? [
          { weight: 2, what: 'a transaction begins', act: () => begin(idle) },
          { weight: 1, what: 'a transaction', act: async () => parts.committed(await insert(idle, coming.pop()!)) },
        ] : [],
        ...[...open].flatMap(([sql, events]) => {
          const what = events.map(({ position, lane }) => `${position} of lane ${lane}`).join()
          return [
            { weight: faults ? 0.5 : 3, what: `commit ${what}`, act: () => end(sql, 'commit') },
            ...faults ? [{ weight: 0.05, what: `rollback ${what}`, act: () => end(sql, 'rollback') }] : [],
          ]
        }),
      ]
    },
  }
}

function accepted({ lane, topic }: Coming, { keys, name }: SourceParts, number: number): Accepted {
  const hash = createHash('md5').update(`${name} ${number}`).digest('hex')
  return {
    eventKey: hash, contentHash: null, topic, source: 'INFORMIX', schema: 'app', table: 'test', operation: 'INSERT', dialect: 'v2',
    payload: '{"DATA":1}', clean: null, rowKey: keys.get(lane)!, time: '2026-01-01T00:00:00Z', traceparent: null,
  }
}
