// Type check, lint and every test on servers of their own: `npm test`. With arguments only ava runs, with these.
import { spawn, spawnSync, type ChildProcess } from 'node:child_process'
import { chmodSync, existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'

import { DeltapostError } from '../outbox/errors.ts'
import { migrate } from '../services/jobs/migrate.ts'
import { createDatabase } from './stack/database.ts'
import { startStack, type Stack } from './stack/stack.ts'
import { tapReader, type Outcome } from './stack/tap.ts'

const root = resolve(import.meta.dirname, '..')
const modules = join(root, 'node_modules')
const TEMPLATE = 'deltapost_test_template'
// Above ava's own limits, the longest being that of a campaign, since it asks a hung test file to end and cannot make it.
const SILENCE_MS = 540_000
const say = (line: string): void => void process.stdout.write(`${line}\n`)

const interrupted = new AbortController()
const running = new Set<ChildProcess>()
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  process.on(signal, () => {
    interrupted.abort(signal)
    endRunning('SIGTERM')
    setTimeout(() => endRunning('SIGKILL'), 10_000).unref()
  })
}

/** The whole group of each program: ava's workers do not all end with it. */
function endRunning(signal: NodeJS.Signals): void {
  for (const { pid } of running) if (pid !== undefined) process.kill(-pid, signal)
}

type Run = { code: number; output: string }

async function run(args: string[], environment: Record<string, string> = {}, onText?: (text: string) => void): Promise<Run> {
  const child = spawn(process.execPath, args, {
    cwd: root,
    detached: true,
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, ...environment },
  })
  running.add(child)
  let output = ''
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (text: string) => {
      output += text
      if (stream === child.stdout) onText?.(text)
    })
  }
  const code = await new Promise<number>((done, refuse) => {
    child.once('error', refuse)
    child.once('close', (status) => done(status ?? 1))
  }).finally(() => running.delete(child))
  return { code, output }
}

/** A check that is one program and passes or fails as a whole; its output is shown when it fails. */
async function check(title: string, args: string[]): Promise<Outcome> {
  const begun = performance.now()
  const { code, output } = await run(args)
  const outcome: Outcome = { title, state: code === 0 ? 'passed' : 'failed', details: code === 0 ? '' : output }
  say(`${code === 0 ? '✔' : '✘'} ${title} (${((performance.now() - begun) / 1000).toFixed(1)} s)`)
  return outcome
}

/** Programs of PostgreSQL 15, on which one test runs the SQL where the machine has them. */
function postgres15(): Record<string, string> {
  const told = spawnSync('pg_config', ['--version', '--bindir'], { encoding: 'utf8' }).stdout ?? ''
  const [bindir = '', version = ''] = told.trim().split('\n').reverse()
  const folder = ['/usr/lib/postgresql/15/bin', ...(version.includes(' 15.') ? [bindir] : [])].find((place) => existsSync(join(place, 'initdb')))
  return folder === undefined ? {} : { DELTAPOST_TEST_POSTGRES15_BIN: folder }
}

async function makeTemplate(stack: Stack): Promise<string> {
  // With addresses from the environment the server may be one that another run is using.
  const name = stack.way === 'environment' ? `${TEMPLATE}_${process.pid}` : TEMPLATE
  await createDatabase(stack.databaseUrl, name)
  const url = new URL(stack.databaseUrl)
  url.pathname = `/${name}`
  await migrate(url.href, { log: say })
  return name
}

async function runAva(stack: Stack, template: string, args: string[]): Promise<Outcome[]> {
  const outcomes: Outcome[] = []
  let ended = 'ava ended'
  const watchdog = setTimeout(() => {
    ended = `no test ended for ${SILENCE_MS / 1000} s and ava was killed`
    endRunning('SIGKILL')
  }, SILENCE_MS)
  const read = tapReader((outcome) => {
    watchdog.refresh()
    outcomes.push(outcome)
    say(`${{ passed: '✔', failed: '✘', skipped: '-' }[outcome.state]} ${outcome.title}`)
  })
  const environment = {
    DELTAPOST_TEST_DATABASE_URL: stack.databaseUrl,
    DELTAPOST_TEST_TEMPLATE: template,
    DELTAPOST_TEST_KAFKA: stack.kafkaBrokers,
    DELTAPOST_TEST_STACK: stack.way,
    ...postgres15(),
  }
  const { code, output } = await run([join(modules, 'ava', 'entrypoints', 'cli.js'), '--tap', ...args], environment, read)
  clearTimeout(watchdog)
  // A test file that cannot be read, or no test at all, is a failure that TAP does not count.
  if (outcomes.length === 0 || (code !== 0 && !outcomes.some(({ state }) => state === 'failed'))) {
    outcomes.push({ title: `${ended}, code ${code}`, state: 'failed', details: output.slice(-8000) })
  }
  return outcomes
}

function report(outcomes: Outcome[], begun: number): number {
  const [failed, passed, skipped] = (['failed', 'passed', 'skipped'] as const).map((state) => outcomes.filter((one) => one.state === state))
  for (const { title, details } of failed ?? []) say(`\n✘ ${title}\n${details.trimEnd()}`)
  if (skipped?.length) say(`\nskipped: ${skipped.map(({ title }) => title).join('; ')}`)
  say(`\n${((performance.now() - begun) / 1000).toFixed(0)} s in all`)
  say(`${passed?.length} passed, ${failed?.length} failed`)
  return failed?.length === 0 ? 0 : 1
}

async function checks(): Promise<Outcome[]> {
  const types = await check('type check', [join(modules, 'typescript', 'bin', 'tsc'), '--noEmit'])
  return [types, await check('lint', [join(modules, 'eslint', 'bin', 'eslint.js'), '.'])]
}

async function main(args: string[]): Promise<number> {
  const begun = performance.now()
  const directory = mkdtempSync(join(tmpdir(), 'deltapost-test-'))
  // PostgreSQL runs under another account where we are root.
  chmodSync(directory, 0o755)
  let stack: Stack | undefined
  try {
    const [started, checked] = await Promise.allSettled([startStack({ directory, log: say }), args.length === 0 ? checks() : []])
    if (started.status === 'rejected') throw started.reason
    stack = started.value
    if (checked.status === 'rejected') throw checked.reason
    const tested = interrupted.signal.aborted ? [] : await runAva(stack, await makeTemplate(stack), args)
    if (!interrupted.signal.aborted) return report([...checked.value, ...tested], begun)
    say('interrupted')
    return 130
  } finally {
    await stack?.stop()
    rmSync(directory, { recursive: true, force: true })
  }
}

try {
  process.exitCode = await main(process.argv.slice(2))
} catch (error) {
  if (!(error instanceof DeltapostError)) throw error
  say(`Error: ${error.message}\nTry: ${error.remedy}\n0 passed, 1 failed`)
  process.exitCode = 1
}
