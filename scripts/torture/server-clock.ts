import { spawnSync } from 'node:child_process'
import { existsSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

/** The time of day of one server, which is not that of the machine. */
export type ServerClock = {
  /** What the server is started with, again and again. */
  environment: Record<string, string>
  /** From now on the server is so many milliseconds ahead of the machine; it sees a step. */
  shift: (ms: number) => void
}

/**
 * Makes what shifts a server's clock, in this folder, and gives a clock for each name; or says why there is none. It is
 * compiled where it runs: a ready library (libfaketime) also wraps locks and waits, which PostgreSQL's signal handlers and a
 * JVM do not bear, and is no more likely to be there than a compiler.
 */
export function serverClocks<Name extends string>(directory: string, names: readonly Name[]): Record<Name, ServerClock> | string {
  if (process.platform !== 'linux') return 'only on Linux'
  const library = join(directory, 'server-clock.so')
  if (!existsSync(library)) {
    const made = spawnSync('cc', ['-shared', '-fPIC', '-O2', '-Wall', '-o', library, join(import.meta.dirname, 'server-clock.c'), '-ldl'], { encoding: 'utf8' })
    if (made.status !== 0) return made.error === undefined ? `cc failed: ${made.stderr.trim()}` : `there is no C compiler (${made.error.message})`
  }
  return Object.fromEntries(names.map((name) => [name, openClock(library, join(directory, `clock-${name}`))])) as Record<Name, ServerClock> // of these names
}

/** The shift is eight bytes in a file that the server has mapped; they are written in one piece. */
function openClock(library: string, file: string): ServerClock {
  const shift = (ms: number): void => {
    const bytes = Buffer.alloc(8)
    bytes.writeBigInt64LE(BigInt(ms))
    writeFileSync(file, bytes, { flag: existsSync(file) ? 'r+' : 'w' }) // never cut short: who has it mapped would get SIGBUS
  }
  shift(0)
  return { environment: { LD_PRELOAD: library, DELTAPOST_TORTURE_CLOCK_FILE: file }, shift }
}
