import type { SqlPlant } from '../plant-sql.ts'
import type { Plant } from '../plant.ts'

/** A planted bug, with the least that must go on for it to show. `expects` are the oracles of which one at least turns red. */
export type Mutant = {
  name: string
  /** The bug as somebody would write it, and what it does. */
  why: string
  plants: readonly Plant[]
  sql?: readonly SqlPlant[]
  workloads: readonly string[]
  faults: readonly string[]
  settings?: Record<string, string>
  events: number
  expects: readonly string[]
}

/** A plant without its name: the plants of a mutant have the mutant's. */
type Change = Omit<Plant, 'name'>
type SqlChange = { routine: string; find: string; replace: string } | { statements: string }

/** A mutant whose plants carry its name. */
export function mutant({ plants = [], sql = [], ...rest }: Omit<Mutant, 'plants' | 'sql'> & { plants?: readonly Change[]; sql?: readonly SqlChange[] }): Mutant {
  const { name } = rest
  return { ...rest, plants: plants.map((plant) => ({ ...plant, name })), ...(sql.length > 0 && { sql: sql.map((plant) => ({ ...plant, name })) }) }
}

// What follows is no bug: conditions that the service must bear, and under which a bug shows within seconds.

/** Changes of one row come in any lane, as those do whose key is spelled in several ways. */
export const SPREAD: Change = {
  file: 'services/listener/ingest.ts', find: '    rowKey: rowKey(change, keyColumns),',
  replace: '    rowKey: rowKey(change, keyColumns) === null ? null : JSON.stringify([String(Math.random())]),',
}

/** All changes come in random lanes, also those of a table without a key, which end the same in every order. */
export const SCATTERED: Change = {
  file: 'services/listener/ingest.ts', find: '    rowKey: rowKey(change, keyColumns),',
  replace: '    rowKey: JSON.stringify([String(Math.random())]),',
}

/** Partitions are applied up to a second apart. */
export const UNEVEN: Change = {
  file: 'services/consumer/loop.ts', find: '    const next = await applyBatch(parts, memory.sessions, payload)',
  replace: '    await new Promise((resolve) => setTimeout(resolve, Math.random() * 1_000))\n    const next = await applyBatch(parts, memory.sessions, payload)',
}

/** The way to the broker is slow now and then, so something waits behind each send. */
export const SLOW_SENDS: Change = {
  file: 'services/relay/partition.ts', find: '      const ours = sendable(queue.splice(0, sizes.take(queue)))',
  replace: '      await new Promise((resolve) => setTimeout(resolve, Math.random() * 60))\n      const ours = sendable(queue.splice(0, sizes.take(queue)))',
}

/** One send in 20 ends after half a second with nothing written. */
export const FAILING_SENDS: Change = {
  file: 'services/relay/topics.ts', find: '      send: (events, mayGoOn) => parts.send(name, number, events, mayGoOn),',
  replace: `      send: async (events, mayGoOn) => {
        if (Math.random() >= 0.05) return parts.send(name, number, events, mayGoOn)
        await new Promise((resolve) => setTimeout(resolve, 500))
        throw new Error('a send that fails')
      },`,
}

/** Records have at most a megabyte, as where nobody has set a limit: larger changes go in chunks. */
export const SMALL_RECORDS: Change = { file: 'services/relay/publish.ts', find: 'const MOST_LIMIT = 64 << 20', replace: 'const MOST_LIMIT = 1_048_588' }

/** Of one send in 20 the answer is lost: the broker has the records, and they are sent again. */
export const LOST_ANSWERS: Change = {
  file: 'services/relay/topics.ts', find: '      send: (events, mayGoOn) => parts.send(name, number, events, mayGoOn),',
  replace: `      send: async (events, mayGoOn) => {
        const first = await parts.send(name, number, events, mayGoOn)
        if (Math.random() < 0.05) throw new Error('an answer that is lost')
        return first
      },`,
}

const REFUSED_NOW = `raise exception using errcode = 'check_violation', message = 'refused at the first try';`

/** The target refuses one change in 30 at its first try and takes it at the next, as where a rule of it was mended. */
export const REFUSED_AT_FIRST: readonly SqlChange[] = [
  {
    routine: 'inbox.apply_rows', find: `if strpos(changes::text, '"~x":true') > 0 then`,
    replace: `if exists (
    select from json_to_recordset(changes) as c("~s" bigint, "~w" boolean, "~o" smallint)
    where c."~s" % 30 = 0 and c."~w" is null and not exists (select from inbox.applied a where a.origin = c."~o" and a.seq_id = c."~s")
  ) then
    ${REFUSED_NOW}
  end if;
  if strpos(changes::text, '"~x":true') > 0 then`,
  },
  {
    routine: 'inbox.apply_item_once', find: 'if item.q is not null then',
    replace: `if item.s % 30 = 0 and not item.again and not exists (select from inbox.applied a where a.origin = item.o and a.seq_id = item.s) then
    ${REFUSED_NOW}
  elsif item.q is not null then`,
  },
]
