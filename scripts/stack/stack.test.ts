import test from 'ava'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import { DeltapostError } from '../../outbox/errors.ts'
import { startStack, type StackOptions, type Way, type WayName } from './stack.ts'

const NAMES: WayName[] = ['environment', 'docker', 'embedded']

/** Ways that lack what `lacking` names and break where `broken` says; `started` lists the ones that were tried. */
function waysThat(lacking: Partial<Record<WayName, string>>, broken?: WayName): { ways: Way[]; started: WayName[] } {
  const started: WayName[] = []
  const ways = NAMES.map((name) => ({
    name,
    missing: async () => lacking[name],
    start: async () => {
      started.push(name)
      if (name === broken) throw new Error(`${name} broke`)
      return { databaseUrl: `postgres://${name}`, kafkaBrokers: `${name}:1`, stop: async () => {} }
    },
  }))
  return { ways, started }
}

function options(more: Partial<StackOptions> = {}): StackOptions & { said: string[] } {
  const directory = mkdtempSync(join(tmpdir(), 'deltapost-stack-'))
  process.once('exit', () => rmSync(directory, { recursive: true, force: true }))
  const said: string[] = []
  return { directory, environment: {}, log: (line) => said.push(line), said, ...more }
}

test('addresses from the environment come before Docker, and Docker before servers of our own', async (t) => {
  const lacking: Partial<Record<WayName, string>> = {}
  for (const name of NAMES) {
    const asked = options()
    const stack = await startStack(asked, waysThat(lacking).ways)
    t.is(stack.way, name)
    t.regex(asked.said.join(), new RegExp(`servers: ${name}`))
    await stack.stop()
    lacking[name] = 'not here'
  }
})

test('when no way is possible one error names all three and what each lacks', async (t) => {
  const { ways } = waysThat({ environment: 'no addresses', docker: 'no engine', embedded: 'no Java' })
  const error = await t.throwsAsync(startStack(options(), ways), { instanceOf: DeltapostError })
  t.is(error.code, 'STACK_IMPOSSIBLE')
  t.regex(error.message, /environment: no addresses[^]*docker: no engine[^]*embedded: no Java/)
})

test('a Docker that cannot start the servers is passed over, and that is said', async (t) => {
  const asked = options()
  const { ways, started } = waysThat({ environment: 'no addresses' }, 'docker')
  const stack = await startStack(asked, ways)
  t.deepEqual(started, ['docker', 'embedded'])
  t.regex(asked.said[0] ?? '', /docker broke/)
  await stack.stop()
})

test('a way that was asked for is taken or fails, and no other is tried', async (t) => {
  const { ways, started } = waysThat({}, 'docker')
  await t.throwsAsync(startStack(options({ environment: { DELTAPOST_STACK: 'docker' } }), ways), { message: 'docker broke' })
  await t.throwsAsync(startStack(options({ way: 'embedded' }), waysThat({ embedded: 'no Java' }).ways), { message: /no Java/ })
  t.deepEqual(started, ['docker'])
  await t.throwsAsync(startStack(options({ environment: { DELTAPOST_STACK: 'podman' } }), ways), { message: /podman/ })
})

test('addresses that do not answer are an error, not a reason to start other servers', async (t) => {
  const { freePorts } = await import('./free-port.ts')
  const [port = 0] = await freePorts(1)
  const environment = { DATABASE_URL: `postgres://127.0.0.1:${port}/x`, KAFKA_BROKERS: `127.0.0.1:${port}` }
  const error = await t.throwsAsync(startStack(options({ environment })), { instanceOf: DeltapostError })
  t.is(error.code, 'STACK_UNREACHABLE')
})

test('one address alone does not count as given', async (t) => {
  const asked = options({ way: 'environment', environment: { KAFKA_BROKERS: '127.0.0.1:9092' } })
  await t.throwsAsync(startStack(asked), { message: /DATABASE_URL is not set/ })
})

test('two stacks never share one data directory', async (t) => {
  const asked = options()
  const { ways } = waysThat({ environment: 'no addresses' })
  const stack = await startStack(asked, ways)
  const error = await t.throwsAsync(startStack(asked, ways), { instanceOf: DeltapostError })
  t.is(error.code, 'STACK_IN_USE')
  await stack.stop()
  await (await startStack(asked, ways)).stop()
})
