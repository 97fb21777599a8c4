import { AsyncLocalStorage } from 'node:async_hooks'

/** The clock (milliseconds, as performance.now), the timers and the chance of one simulated process. */
export type OwnTime = { now: () => number; random: () => number; timers: Set<OwnTimer> }
export type OwnTimer = { due: number; fire: () => void }

const current = new AsyncLocalStorage<OwnTime>()
let taken = false

/** Runs something, and all that it awaits and sets going, by a time of its own; what runs elsewhere has the real one. */
export function inOwnTime<T>(time: OwnTime, work: () => T): T {
  if (!taken) takeOver()
  return current.run(time, work)
}

/** Once a process: the globals that the program looks at ask first whose time it is. */
function takeOver(): void {
  taken = true
  const [now, random, set, clear] = [performance.now.bind(performance), Math.random, globalThis.setTimeout, globalThis.clearTimeout]
  performance.now = () => (current.getStore()?.now ?? now)()
  Math.random = () => (current.getStore()?.random ?? random)()
  Object.assign(globalThis, {
    setTimeout: (work: () => void, ms = 0, ...rest: []) => {
      const time = current.getStore()
      if (time === undefined) return set(work, ms, ...rest)
      const timer: OwnTimer = { due: time.now() + ms, fire: () => { if (time.timers.delete(timer)) current.run(time, work) } }
      time.timers.add(timer)
      return timer
    },
    clearTimeout: (timer: OwnTimer & NodeJS.Timeout) => {
      const time = current.getStore()
      if (time === undefined) clear(timer)
      else time.timers.delete(timer)
    },
  })
}

export type Chance = { below: (n: number) => number; one: <T>(of: readonly T[]) => T; in: (n: number) => boolean; fraction: () => number }

/** Mulberry32: the same numbers for a seed everywhere, and neighbouring seeds have nothing to do with each other. */
export function chanceOf(seed: number): Chance {
  let state = seed >>> 0
  const fraction = (): number => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = Math.imul(state ^ (state >>> 15), state | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
  const below = (n: number): number => Math.floor(fraction() * n)
  return { fraction, below, in: (n) => below(n) === 0, one: (of) => of[below(of.length)]! }
}
