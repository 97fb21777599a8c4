import { mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'

import { processEnvironment } from '../../services/runtime/config.ts'

export type Environment = Readonly<Record<string, string | undefined>>

/** Where a running `up` can be reached: addresses, and the number of its process. */
export type RunningStack = { listener: string; database: string; target: string; kafka: string; pid: number }

/** Below the working directory, as `.env` is. */
export const STATE_FOLDER = resolve('.deltapost')
const FILE = join(STATE_FOLDER, 'stack.json')

/** Written beside its place and renamed: a reader sees all of it or nothing. Only its owner reads it: it has a password. */
export function writeRunningStack(stack: RunningStack): void {
  mkdirSync(dirname(FILE), { recursive: true })
  const partial = `${FILE}.partial-${process.pid}`
  writeFileSync(partial, `${JSON.stringify(stack, null, 2)}\n`, { mode: 0o600 })
  renameSync(partial, FILE)
}

export function removeRunningStack(): void {
  rmSync(FILE, { force: true })
}

/** What `up` wrote, or undefined where none runs: a file whose process is gone is left over from a crash. */
export function runningStack(): RunningStack | undefined {
  try {
    const stack = JSON.parse(readFileSync(FILE, 'utf8')) as RunningStack // written by writeRunningStack
    process.kill(stack.pid, 0)
    return stack
  } catch (error) {
    if (error instanceof Error && 'code' in error && (error.code === 'ENOENT' || error.code === 'ESRCH')) return undefined
    throw error
  }
}

/**
 * The environment for a command that looks at a running system: where DATABASE_URL is not set, the addresses of the `up`
 * that runs in this folder, which is said on stderr.
 */
export function environmentOfRunning(): Environment {
  const environment = processEnvironment()
  if (isSet(environment, 'DATABASE_URL')) return environment
  const stack = runningStack()
  if (stack === undefined) return environment
  process.stderr.write(`the servers are those of npm run up (process ${stack.pid})\n`)
  return {
    ...environment,
    DATABASE_URL: stack.database,
    ...(isSet(environment, 'KAFKA_BROKERS') ? {} : { KAFKA_BROKERS: stack.kafka }),
  }
}

/** Addresses that a command does not use need not be there; every other fault of the environment still shows. */
export function withUnused(environment: Environment, names: readonly ('DATABASE_URL' | 'KAFKA_BROKERS')[]): Environment {
  const unused = { DATABASE_URL: 'postgres://not-used', KAFKA_BROKERS: 'not-used:9092' }
  return { ...environment, ...Object.fromEntries(names.filter((name) => !isSet(environment, name)).map((name) => [name, unused[name]])) }
}

function isSet(environment: Environment, name: string): boolean {
  return (environment[name] ?? '') !== '' || (environment[`${name}_FILE`] ?? '') !== ''
}
