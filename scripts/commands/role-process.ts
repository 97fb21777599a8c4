import { type ChildProcess, spawn } from 'node:child_process'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as pause } from 'node:timers/promises'

import { DeltapostError } from '../../outbox/errors.ts'
import type { Environment } from './environment.ts'
import type { ReadyMessage, Role } from './serve.ts'

/** An exit code, or the signal that ended the process. */
export type Ending = number | NodeJS.Signals

/** A role as a process of its own. `ready` gives the listener's address, null for the others. */
export type RoleProcess = {
  role: Role
  pid: number
  ready: Promise<string | null>
  exited: Promise<Ending>
  /** SIGTERM, and after STOP_SECONDS SIGKILL; settles when the process is gone. */
  stop: () => Promise<void>
}

const PROGRAM = join(import.meta.dirname, '..', 'deltapost.ts')
// Above SHUTDOWN_TIMEOUT's default of 10 s, after which a role ends by itself.
const STOP_SECONDS = 15
const LONGEST_PAUSE_MS = 30_000
// A role that ran so long was well; its next end begins the back-off anew.
const WELL_MS = 60_000
const CONFIGURATION = 2

/**
 * Starts `serve ROLE`. It ends when this process ends, however that happens: the two hold a channel, and the role stops
 * when it closes. It has a process group of its own, so that Ctrl-C reaches only us and the order of stopping is ours.
 */
export function startRole(role: Role, environment: Environment, onLine: (line: string) => void): RoleProcess {
  const child = spawn(process.execPath, [...process.execArgv, PROGRAM, 'serve', role], {
    detached: true,
    stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
    env: { ...environment },
  })
  for (const stream of [child.stdout, child.stderr]) if (stream !== null) createInterface({ input: stream }).on('line', onLine)
  const exited = new Promise<Ending>((resolve, reject) => {
    child.once('error', reject)
    child.once('close', (code, killed) => resolve(killed ?? code ?? 1))
  })
  const ready = Promise.race([
    new Promise<string | null>((resolve) => child.once('message', (message: ReadyMessage) => resolve(message.url))),
    exited.then((ending) => {
      throw new DeltapostError('ROLE_ENDED', `the ${role} ended with ${inWords(ending)} before it was ready`, `read the lines of the ${role} above`)
    }),
  ])
  ready.catch(() => undefined) // whoever waits for `ready` sees it; a role under supervision is judged by `exited`
  return { role, pid: child.pid ?? 0, ready, exited, stop: () => stop(child, exited) }
}

async function stop(child: ChildProcess, exited: Promise<Ending>): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  child.kill('SIGTERM')
  const timer = setTimeout(() => child.kill('SIGKILL'), STOP_SECONDS * 1_000)
  await exited
  clearTimeout(timer)
}

/**
 * Keeps a role running until `signal`: says when it ended and starts it again after 1, 2, 4 ... 30 seconds.
 *
 * Ends by itself only where starting again cannot help (exit code 2, a wrong configuration), with that code; 0 otherwise.
 */
export async function keepRunning(role: Role, parts: {
  environment: Environment
  signal: AbortSignal
  onLine: (line: string) => void
  onReady: (running: RoleProcess, url: string | null) => void
}): Promise<number> {
  const { environment, signal, onLine, onReady } = parts
  for (let wait = 1_000; !signal.aborted; wait = Math.min(wait * 2, LONGEST_PAUSE_MS)) {
    const begun = performance.now()
    const running = startRole(role, environment, onLine)
    const stopped = new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve(running.stop()), { once: true }))
    running.ready.then((url) => onReady(running, url), () => undefined) // told below, by its exit code
    const ending = await Promise.race([running.exited, stopped.then(() => 0)])
    if (signal.aborted) {
      await running.stop()
      return 0
    }
    if (ending === CONFIGURATION) return ending
    if (performance.now() - begun > WELL_MS) wait = 1_000
    onLine(`the ${role} ended with ${inWords(ending)}; it is started again in ${wait / 1_000} s`)
    await pause(wait, undefined, { signal }).catch((error: unknown) => {
      if (!signal.aborted) throw error
    })
  }
  return 0
}

function inWords(ending: Ending): string {
  return typeof ending === 'number' ? `code ${ending}` : `signal ${ending}`
}

/** A line of a role's log for a reader: time, level, message and fields; what is no log line stays as it is. */
export function readable(line: string): string {
  if (!line.startsWith('{"level":')) return line
  const { level, time, role: _role, msg, ...fields } = JSON.parse(line) as Record<string, unknown>
  const word = { 10: 'trace', 20: 'debug', 30: 'info', 40: 'WARN', 50: 'ERROR', 60: 'FATAL' }[Number(level)] ?? String(level)
  const rest = Object.entries(fields).map(([name, value]) => `${name}=${typeof value === 'string' ? value : JSON.stringify(value)}`)
  return [String(time).slice(11, 23), word.padEnd(5), String(msg), ...rest].join(' ').trimEnd()
}
