import { CLOCK_VARIABLE } from '../role-keeper.ts'
import { anyOf, type Fault, type Rig, wait } from './fault.ts'

const SHIFTED_MS = 5_000
const HOUR = 3_600_000
const OF_A_ROLE = [-HOUR, HOUR, 72 * HOUR]
const OF_A_SERVER = [-HOUR, HOUR, -24 * HOUR, 24 * HOUR]

/** One process has another time of day than the others and the database. */
const clock: Fault = {
  name: 'clock', kind: 'other',
  async happen(rig) {
    const role = rig.random.pick(rig.roles)
    try {
      await role.startWith({ [CLOCK_VARIABLE]: String(rig.random.pick(OF_A_ROLE)) })
      await wait(rig, SHIFTED_MS)
    } finally {
      await role.startWith({})
    }
  },
}

/**
 * The clock of a server steps while it runs, and steps back: once against the clock of all others, and once against what it
 * wrote itself. Half of the time a relay dies at that moment, and nobody renews by the right clock what it held by the other.
 */
function stepped(server: keyof NonNullable<Rig['clocks']>): Fault {
  const name = `clock-${server}`
  return {
    name, kind: 'other',
    async happen(rig) {
      const its = rig.clocks?.[server]
      if (its === undefined) return rig.noted(`${name}: unavailable, the servers were started without a clock of their own`)
      const ms = rig.random.pick(OF_A_SERVER)
      rig.noted(`${name} ${ms > 0 ? '+' : '-'}${Math.abs(ms) / HOUR} h`)
      its.shift(ms)
      try {
        if (server === 'postgres') await insist(rig, ms)
        await wait(rig, SHIFTED_MS)
      } finally {
        const dying = rig.random.chance(0.5) ? anyOf(rig, 'relay').kill() : undefined
        its.shift(0)
        await dying
      }
    },
  }
}

/** A step that the server does not see would be a fault survived by all. */
async function insist(rig: Rig, ms: number): Promise<void> {
  const [row] = await rig.sql<{ now: number }[]>`select extract(epoch from clock_timestamp())::float8 * 1000 as now`
  const seen = (row?.now ?? NaN) - Date.now()
  if (!(Math.abs(seen - ms) < HOUR / 2)) throw new Error(`the clock of PostgreSQL was to step by ${ms} ms, and is off by ${Math.round(seen)} ms`)
}

export const CLOCKS: readonly Fault[] = [clock, stepped('postgres'), stepped('kafka')]
