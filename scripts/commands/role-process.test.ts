import test from 'ava'

import { freshDatabase } from '../../test/support/database.ts'
import { brokers } from '../../test/support/kafka.ts'
import { until } from '../../test/support/until.ts'
import { keepRunning, type RoleProcess, startRole } from './role-process.ts'

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0)
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ESRCH') return false
    throw error
  }
}

test('a role that dies is started again, which is said, and none is left after the end', async (t) => {
  const database = await freshDatabase()
  t.teardown(database.drop)
  const environment = { PATH: process.env['PATH'], DATABASE_URL: database.url, KAFKA_BROKERS: brokers().join(), PORT: '0' }
  const ending = new AbortController()
  const started: { role: RoleProcess; url: string | null }[] = []
  const lines: string[] = []
  const kept = keepRunning('listener', {
    environment,
    signal: ending.signal,
    onLine: (line) => lines.push(line),
    onReady: (role, url) => started.push({ role, url }),
  })
  const first = await until(() => started[0], { within: 30_000, what: 'the listener is ready' })
  t.is((await fetch(new URL('/healthz', first.url ?? ''))).status, 200)
  process.kill(first.role.pid, 'SIGKILL')
  const second = await until(() => started[1], { within: 30_000, what: 'the listener is ready again' })
  t.true(lines.some((line) => line.includes('ended with signal SIGKILL; it is started again in 1 s')), lines.join('\n'))
  ending.abort()
  t.is(await kept, 0)
  t.deepEqual([first, second].map(({ role }) => isAlive(role.pid)), [false, false])
})

test('a wrong configuration ends the keeping with 2: starting again would not help', async (t) => {
  const lines: string[] = []
  const code = await keepRunning('relay', {
    environment: { PATH: process.env['PATH'] },
    signal: new AbortController().signal,
    onLine: (line) => lines.push(line),
    onReady: () => t.fail('it cannot be ready'),
  })
  t.is(code, 2)
  t.true(lines.some((line) => line.includes('DATABASE_URL is missing')))
})

test('who waits for a role that ends before it is ready hears of it', async (t) => {
  const role = startRole('relay', { PATH: process.env['PATH'] }, () => {})
  await t.throwsAsync(role.ready, { code: 'ROLE_ENDED', message: 'the relay ended with code 2 before it was ready' })
})
