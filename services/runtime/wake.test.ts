import { once } from 'node:events'
import { connect, createServer, type AddressInfo } from 'node:net'
import test from 'ava'
import type { ExecutionContext } from 'ava'
import postgres from 'postgres'
import { freshDatabase } from '../../test/support/database.ts'
import { outboxConnection } from '../../test/support/events.ts'
import { until } from '../../test/support/until.ts'
import { openLog } from './log.ts'
import { openLocalWake, openWake } from './wake.ts'
import type { Wake } from './wake.ts'

const CHANNEL = 'news of "all" kinds'
const log = openLog('test', 'silent')

async function given(t: ExecutionContext): Promise<{ url: string; open: (name: string) => Wake }> {
  const { url, drop } = await freshDatabase()
  const wakes: Wake[] = []
  t.teardown(async () => {
    await Promise.all(wakes.map((wake) => wake.close()))
    await drop()
  })
  return { url, open: (name) => {
    const wake = openWake({ url, channel: CHANNEL, name, log })
    wakes.push(wake)
    return wake
  } }
}

/** Rings until it is heard: the first ring may come before the other side listens. */
async function heard(ringer: Wake, listener: Wake): Promise<void> {
  let rung = false
  void listener.next().then(() => (rung = true))
  await until(() => {
    ringer.ring()
    return rung
  })
}

for (const kind of ['local', 'between processes'] as const) {
  test(`${kind}: a ring is heard by all who wait`, async (t) => {
    const { open } = await given(t)
    const wake = kind === 'local' ? openLocalWake() : open('a')
    await heard(wake, wake)
    const [one, two] = [wake.next(), wake.next()]
    wake.ring()
    t.deepEqual(await Promise.all([one, two]), [undefined, undefined])
    await wake.close()
  })

  test(`${kind}: closing ends the waiting`, async (t) => {
    const { open } = await given(t)
    const wake = kind === 'local' ? openLocalWake() : open('a')
    const next = wake.next()
    await wake.close()
    await next
    t.pass()
  })
}

test('one process rings and another hears it', async (t) => {
  const { open } = await given(t)
  const [ringer, listener] = [open('ringer'), open('listener')]
  await heard(ringer, listener)
  t.pass()
})

test('a thousand rings at once are a few notifications', async (t) => {
  const { url, open } = await given(t)
  const sql = postgres(url, { max: 1 })
  t.teardown(() => sql.end({ timeout: 1 }))
  let count = 0
  const last = Promise.withResolvers<void>()
  await sql.listen(CHANNEL, () => { count += 1 })
  await sql.listen('last', () => last.resolve())
  const wake = open('ringer')
  for (let n = 0; n < 1_000; n++) wake.ring()
  await until(() => count > 0)
  await wake.close()
  await sql.notify('last', '')
  await last.promise
  t.true(count <= 3, String(count))
})

test('a listener whose connection was killed hears again', async (t) => {
  const { url, open } = await given(t)
  const sql = outboxConnection(url)
  t.teardown(() => sql.end({ timeout: 1 }))
  const [ringer, listener] = [open('ringer'), open('listener')]
  await heard(ringer, listener)
  const next = listener.next()
  const killed = await sql`select pg_terminate_backend(a.pid) from pg_stat_activity a
    where a.datname = current_database() and a.application_name like 'deltapost % wake'`
  t.true(killed.length >= 1)
  await next // being back counts as a ring, for what was rung meanwhile is gone
  await heard(ringer, listener)
})

test('a database that is away makes a ring cost nothing but time', async (t) => {
  const wake = openWake({ url: 'postgres://nobody@127.0.0.1:9/none', channel: 'x', name: 'a', log })
  const next = wake.next()
  wake.ring()
  await wake.close()
  await next
  t.pass()
})

/** A line to Postgres that freezes for good behind the sign-in: it swallows the first LISTEN and all that follows on that connection. */
async function freezesAtFirstListen(t: ExecutionContext, url: string): Promise<{ url: string; frozen: () => boolean }> {
  const { port, hostname } = new URL(url)
  let frozen = false
  const server = createServer((client) => {
    const upstream = connect(Number(port || 5432), hostname)
    t.teardown(() => client.destroy())
    upstream.on('error', () => client.destroy()).pipe(client)
    client.on('error', () => upstream.destroy()).on('close', () => upstream.destroy()).on('data', (bytes) => {
      if (frozen || !bytes.includes('listen ')) upstream.write(bytes)
      else {
        frozen = true
        client.removeAllListeners('data').resume()
      }
    })
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(() => server.close())
  const through = new URL(url)
  through.host = `127.0.0.1:${(server.address() as AddressInfo).port}`
  return { url: through.href, frozen: () => frozen }
}

test('a listener whose LISTEN is never answered hears again over another connection', async (t) => {
  const { url, open } = await given(t)
  const line = await freezesAtFirstListen(t, url)
  const listener = openWake({ url: line.url, channel: CHANNEL, name: 'frozen', log })
  t.teardown(() => listener.close())
  const next = listener.next()
  await until(line.frozen)
  let back = false
  void next.then(() => (back = true))
  await until(() => back, { within: 20_000 })
  await heard(open('ringer'), listener)
  t.pass()
})

test('closing ends soon, also while LISTEN is not answered', async (t) => {
  const { url } = await given(t)
  const line = await freezesAtFirstListen(t, url)
  const wake = openWake({ url: line.url, channel: CHANNEL, name: 'frozen', log })
  const next = wake.next()
  await until(line.frozen)
  let closed = false
  void wake.close().then(() => (closed = true))
  await until(() => closed, { within: 2_000 })
  await next
  t.pass()
})
