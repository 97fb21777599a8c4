import { randomInt } from 'node:crypto'
import { appendFileSync, rmSync, writeFileSync } from 'node:fs'
import { join, relative } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'

import { DeltapostError } from '../../outbox/errors.ts'
import { migrate, pairDatabases } from '../../services/jobs/migrate.ts'
import { processEnvironment } from '../../services/runtime/config.ts'
import { openSlot, type Slot } from '../../services/runtime/slot.ts'
import type { DemoOptions } from '../commands/demo.ts'
import { type Environment, STATE_FOLDER } from '../commands/environment.ts'
import { say } from '../commands/print.ts'
import { readable, type RoleProcess, startRole } from '../commands/role-process.ts'
import { interruption } from '../interruption.ts'
import { startStack } from '../stack/stack.ts'
import { startedRoles } from '../up.ts'
import { ACCOUNT_TABLE } from './account.ts'
import { measure } from './measure.ts'
import { type OwnDatabase, ownDatabase } from './own-database.ts'
import { play, type Played } from './play.ts'
import { openProgress, showRowsAndTrace, showSamples, showVerdict, standing } from './report.ts'
import { postSamples, SAMPLE_TABLES, type SampleAnswer } from './samples.ts'
import { now, openSender } from './sender.ts'
import { judge, waitingInSecond } from './verdict.ts'
import { makeWorkload } from './workload.ts'

const LOG_FILE = join(STATE_FOLDER, 'demo.log')
const READY_MS = 30_000
// Nothing moved for so long: it never will. Longer than a rebalance and a lease together.
const STILL_MS = 45_000
const ASK_EVERY_MS = 500

/** The whole way on servers of its own; gives the exit code. Nothing is left running, however it ends. */
export async function demo(options: DemoOptions): Promise<number> {
  const environment = processEnvironment()
  const signal = interruption()
  const directory = join(STATE_FOLDER, 'demo')
  const stack = await startStack({ directory, fresh: true, environment, log: say })
  const roles: RoleProcess[] = []
  try {
    const place = await ownDatabase(stack, options.twoDatabases === true)
    try {
      return await onStack({ options, place, environment, signal, roles })
    } finally {
      await Promise.all(roles.map((role) => role.stop()))
      await place.drop()
    }
  } catch (error) {
    if (!signal.aborted) throw error
    throw new DeltapostError('INTERRUPTED', 'interrupted; nothing is left running', 'npm run demo', { cause: error })
  } finally {
    await stack.stop()
    rmSync(directory, { recursive: true, force: true })
  }
}

type Place = Omit<OwnDatabase, 'drop'>
type Parts = { options: DemoOptions; place: Place; environment: Environment; signal: AbortSignal; roles: RoleProcess[] }

async function onStack({ options, place, environment, signal, roles }: Parts): Promise<number> {
  const two = place.target !== place.databaseUrl
  await migrate(place.databaseUrl, { log: () => undefined })
  if (two) {
    await migrate(place.target, { log: () => undefined })
    await pairDatabases(place.databaseUrl, place.target, say)
  }
  const slot = openSlot({ url: place.databaseUrl, name: 'demo', deadline: 60_000 })
  const target = two ? openSlot({ url: place.target, name: 'demo', deadline: 60_000 }) : slot
  try {
    await target.run((sql) => sql.unsafe(`${ACCOUNT_TABLE};${SAMPLE_TABLES}`))
    const listener = await startRoles(environmentOf(environment, place), place, roles, signal)
    say(`roles: ${roles.map(({ role, pid }) => `${role} ${pid}`).join(', ')}; the listener is ${listener}; their log: ${relative('.', LOG_FILE)}`)
    const { played, samples } = await postAll(listener, options, slot, signal)
    await settle(slot, target, signal)
    return await slot.run(async (sql) => target.run(async (targetSql) => {
      await showSamples(sql, samples)
      await showRowsAndTrace(sql, targetSql, played)
      const verdict = await judge(sql, targetSql, played, samples)
      showVerdict(verdict, await measure(sql, played), roles)
      return verdict.differences.length === 0 ? 0 : 1
    }))
  } finally {
    await Promise.all([slot.close(), target.close()])
  }
}

/** The defaults of the service, whatever the environment of a development machine says, on a port of its own. */
function environmentOf(environment: Environment, place: Place): Environment {
  const unset = ['SOURCE', 'SOURCE_TZ', 'CLOCK_TOLERANCE', 'AUTO_CREATE', 'HOST']
  return {
    ...environment,
    ...Object.fromEntries(unset.map((name) => [name, ''])),
    TOPIC: place.topic,
    CONSUMER_GROUP: `${place.topic}.demo`,
    // The oldest dialect names no schema.
    DEFAULT_SCHEMA: 'guildhall',
    PORT: '0',
    LOG_LEVEL: environment['LOG_LEVEL'] === 'debug' ? 'debug' : 'info',
  }
}

async function startRoles(environment: Environment, place: Place, roles: RoleProcess[], signal: AbortSignal): Promise<string> {
  writeFileSync(LOG_FILE, '')
  for (const { name, role, environment: own } of startedRoles(environment, place)) {
    roles.push(startRole(role, own, (line) => keepLine(`${name.padEnd(8)} | ${readable(line)}`)))
  }
  const late = pause(READY_MS, undefined, { signal, ref: false }).then(() => {
    throw new DeltapostError('ROLE_LATE', `the roles are not ready after ${READY_MS / 1_000} s`, 'LOG_LEVEL=debug npm run demo')
  })
  const addresses = await Promise.race([Promise.all(roles.map(({ ready }) => ready)), late])
  const listener = addresses.find((address) => address !== null)
  if (listener === undefined || listener === null) throw new Error('the listener told no address')
  return listener
}

/** All lines of the roles go to the file; errors, and what is no log line at all, are shown as well. */
function keepLine(line: string): void {
  appendFileSync(LOG_FILE, `${line}\n`)
  if (/\| (\S+ (ERROR|FATAL) |(?!\d\d:\d\d))/.test(line)) say(line)
}

async function postAll(listener: string, options: DemoOptions, slot: Slot, signal: AbortSignal): Promise<{ played: Played; samples: SampleAnswer[] }> {
  const post = openSender(listener, signal)
  const samples = await postSamples(post)
  say(`${samples.length} sample posts sent`)
  const seed = options.seed ?? randomInt(1, 1_000_000)
  say(`${options.events} generated changes at ${options.rate} a second (--seed ${seed})`)
  const workload = makeWorkload({ seed, changes: options.events, perSecond: options.rate, begin: Math.floor(now() * 1_000) })
  const progress = openProgress()
  let text = ''
  let askAgain = 0
  const played = await play(workload, post, signal, ({ sent }) => {
    if (performance.now() > askAgain) {
      askAgain = performance.now() + ASK_EVERY_MS
      slot.run(standing).then((where) => (text = where.text), () => (text = 'the database does not answer'))
    }
    if (text !== '') progress.told(`posted ${sent.length} of ${options.events}; ${text}`)
  })
  progress.done()
  return { played, samples }
}

/** Waits until every change has an outcome, or nothing has moved for STILL_MS: the verdict then says what is missing. */
async function settle(slot: Slot, target: Slot, signal: AbortSignal): Promise<void> {
  const progress = openProgress()
  for (let left = -1, since = performance.now(); ; await pause(200, undefined, { signal })) {
    const where = await slot.run(standing)
    const untold = slot === target ? 0 : await target.run(waitingInSecond)
    progress.told(where.text)
    if (where.left + untold !== left) since = performance.now()
    left = where.left + untold
    if ((where.settled && untold === 0) || performance.now() - since > STILL_MS) break
  }
  progress.done()
}
