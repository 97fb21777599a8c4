import { renameSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import { pathToFileURL } from 'node:url'

import type { Environment } from '../commands/environment.ts'
import { type RoleProcess, startRole } from '../commands/role-process.ts'
import type { Role } from '../commands/serve.ts'
import type { RigRole } from './faults/fault.ts'
import type { Armed, RoleOrders } from './role.ts'

/** One role of a campaign: killed, stopped and started again, and never away but by an order. */
export type KeptRole = RigRole & {
  role: Role
  /** The listener's address; it stays the same. */
  url: () => string
  pid: () => number
  /** From when its process last began, in milliseconds of the monotonic clock. */
  begun: () => number
  start: () => Promise<void>
  stop: () => Promise<void>
}

export type KeeperParts = {
  role: Role
  name: string
  second: boolean
  directory: string
  environment: Environment
  orders: Omit<RoleOrders, 'armed' | 'clockMs'>
  onLine: (line: string) => void
  /** It ended by itself, did not become ready, or did not follow SIGTERM. */
  incident: (what: string) => void
}

const READY_MS = 60_000
/** SHUTDOWN_TIMEOUT's default, after which a role ends by itself with code 1, and what a busy machine adds. */
const TERM_MS = 15_000

/** The variable by which the fault "clock" shifts the clock of one process; not one of the service. */
export const CLOCK_VARIABLE = 'DELTAPOST_TORTURE_CLOCK_MS'

export function keepRole(parts: KeeperParts): KeptRole {
  const { role, name, second, incident } = parts
  const orders = openOrders(parts)
  let running: RoleProcess | undefined
  let url = ''
  let begun = 0
  let ordered = false
  let changing: Promise<void> = Promise.resolve()

  async function start(more: Record<string, string> = {}): Promise<void> {
    const { [CLOCK_VARIABLE]: clock, ...environment } = more
    orders.write(null, Number(clock ?? 0))
    begun = performance.now()
    ordered = false
    const process = startRole(role, { ...parts.environment, ...environment, NODE_OPTIONS: `--import=${orders.preload}` }, parts.onLine)
    running = process
    void process.exited.then((ending) => {
      if (ordered || running !== process) return
      incident(`${name} ended by itself with ${ending}`)
      void inTurn(() => start())
    })
    url = await addressOf(process, parts) ?? url
  }

  /** One after the other: two faults may want the same process. */
  function inTurn(work: () => Promise<void>): Promise<void> {
    const mine = changing.then(work)
    changing = mine.catch(() => undefined)
    return mine
  }

  async function end(signal: 'SIGKILL' | 'SIGTERM'): Promise<void> {
    if (running === undefined) return
    ordered = true
    send(running, signal)
    send(running, 'SIGCONT') // a frozen one hears SIGTERM only then
    if (signal === 'SIGTERM') await followed(running, parts)
    await running.exited
  }

  async function hit(label: string, signal: Armed['signal'], nth: number, withinMs: number): Promise<boolean> {
    if (running === undefined) return false
    ordered = true
    orders.write({ label, signal, nth })
    send(running, 'SIGUSR2')
    const ending = await Promise.race([running.exited, pause(withinMs, undefined, { ref: false })])
    orders.write(null)
    if (ending === undefined) {
      ordered = false
      send(running, 'SIGUSR2')
      return false
    }
    if (ending !== 'SIGKILL') incident(`${name} ended with ${ending} before the step ${label}`)
    await start()
    return true
  }

  return {
    role, name, second,
    url: () => url,
    pid: () => running?.pid ?? 0,
    begun: () => begun,
    start: () => inTurn(() => start()),
    kill: () => inTurn(async () => { await end('SIGKILL'); await start() }),
    term: () => inTurn(async () => { await end('SIGTERM'); await start() }),
    startWith: (more) => inTurn(async () => { await end('SIGTERM'); await start(more) }),
    stop: () => inTurn(() => end('SIGTERM')),
    freeze: () => send(running, 'SIGSTOP'),
    thaw: () => send(running, 'SIGCONT'),
    async hit(...order) {
      let passed = false
      await inTurn(async () => { passed = await hit(...order) })
      return passed
    },
  }
}

type Orders = { preload: string; write: (armed: Armed | null, clockMs?: number) => void }

/** The file that the preload of the process reads: at its start, and again at SIGUSR2. */
function openOrders({ name, directory, orders }: KeeperParts): Orders {
  const file = join(directory, `${name.replace(' ', '-')}.json`)
  const preload = pathToFileURL(join(import.meta.dirname, 'role.ts'))
  preload.searchParams.set('orders', file)
  return {
    preload: preload.href,
    write(armed, clockMs = 0) {
      writeFileSync(`${file}.new`, JSON.stringify({ ...orders, armed, clockMs } satisfies RoleOrders))
      renameSync(`${file}.new`, file)
    },
  }
}

/** The address of a listener that is ready; undefined for others, and for one that ended before or takes too long. */
async function addressOf(running: RoleProcess, { name, incident }: KeeperParts): Promise<string | undefined> {
  const late = pause(READY_MS, 'late' as const, { ref: false })
  const ready = await Promise.race([running.ready.catch(() => null), late])
  if (ready === 'late') incident(`${name} is not ready after ${READY_MS / 1_000} s`)
  return ready === 'late' ? undefined : ready ?? undefined
}

/** Resolves when the process has followed SIGTERM, or was killed because it did not in time. */
async function followed(running: RoleProcess, { name, incident }: KeeperParts): Promise<void> {
  const ending = await Promise.race([running.exited, pause(TERM_MS, 'late' as const, { ref: false })])
  if (ending === 'late') {
    incident(`${name} did not follow SIGTERM within ${TERM_MS / 1_000} s`)
    send(running, 'SIGKILL')
  } else if (ending !== 0) incident(`${name} ended with ${ending} on SIGTERM`)
}

/** To a process that may just have ended. */
function send(running: RoleProcess | undefined, signal: NodeJS.Signals): void {
  try {
    if (running !== undefined) process.kill(running.pid, signal)
  } catch (error) {
    if (!(error instanceof Error && 'code' in error && error.code === 'ESRCH')) throw error
  }
}
