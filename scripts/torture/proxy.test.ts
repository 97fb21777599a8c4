import { once } from 'node:events'
import { connect, createServer, type Server, type Socket } from 'node:net'
import test, { type ExecutionContext } from 'ava'

import { until } from '../../test/support/until.ts'
import { shiftClock } from './clock.ts'
import { startProxy, type Proxy } from './proxy.ts'

type Client = { socket: Socket; chunks: Buffer[]; text: () => string; ended: () => string | undefined }
type World = { proxy: Proxy; heard: () => string; served: Client[]; client: () => Promise<Client>; server: Server }

/** Collects what a socket gets and how it ended. */
function listen(socket: Socket): Client {
  const chunks: Buffer[] = []
  let ended: string | undefined
  socket.on('data', (bytes: Buffer) => chunks.push(bytes))
  socket.on('error', (error: NodeJS.ErrnoException) => { ended = error.code })
  socket.on('close', () => { ended ??= 'closed' })
  return { socket, chunks, text: () => Buffer.concat(chunks).toString(), ended: () => ended }
}

/** A server that says back what it hears, behind a proxy. */
async function place(t: ExecutionContext): Promise<World> {
  const served: Client[] = []
  const server = createServer({ noDelay: true }, (socket) => {
    served.push(listen(socket))
    socket.on('data', (bytes) => socket.write(bytes))
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()
  const proxy = await startProxy({ host: '127.0.0.1', port: typeof address === 'object' && address !== null ? address.port : 0 })
  const clients: Client[] = []
  t.teardown(async () => {
    await proxy.close()
    for (const { socket } of [...clients, ...served]) socket.destroy()
    server.close()
  })
  const client = async (): Promise<Client> => {
    const socket = connect({ host: '127.0.0.1', port: proxy.port, noDelay: true })
    clients.push(listen(socket))
    await once(socket, 'connect').catch(() => undefined) // told by `ended`
    return clients.at(-1)!
  }
  return { proxy, server, served, client, heard: () => served.map((one) => one.text()).join('|') }
}

test('what passes is the same on both sides, megabytes of it, and an end is passed on behind it', async (t) => {
  const { client, proxy } = await place(t)
  const sender = await client()
  const sent = Buffer.alloc(5_000_000, 'deltapost ')
  sender.socket.end(sent)
  await until(() => sender.ended() !== undefined, { within: 30_000 })
  t.true(Buffer.concat(sender.chunks).equals(sent))
  t.is(sender.ended(), 'closed')
  await until(() => proxy.connections() === 0)
})

test('a connection that the server resets is reset for the client too', async (t) => {
  const { client, served } = await place(t)
  const one = await client()
  await until(() => served.length === 1)
  served[0]?.socket.resetAndDestroy()
  t.is(await until(() => one.ended()), 'ECONNRESET')
})

test('where the server is away the client is told at once', async (t) => {
  const { client, server } = await place(t)
  server.close()
  const one = await client()
  t.is(await until(() => one.ended()), 'ECONNRESET')
})

test('cut: what is open is reset, what comes is refused, and after mending a new connection passes', async (t) => {
  const { client, proxy, served } = await place(t)
  const before = await client()
  before.socket.write('a')
  await until(() => before.text() === 'a')
  proxy.cut()
  t.is(await until(() => before.ended()), 'ECONNRESET')
  t.is(await until(() => served[0]?.ended()), 'ECONNRESET')
  const during = await client()
  t.is(await until(() => during.ended()), 'ECONNRESET')
  t.is(served.length, 1)
  proxy.mend()
  const after = await client()
  after.socket.write('b')
  await until(() => after.text() === 'b')
})

test('reset: what is open is reset, what comes passes without mending', async (t) => {
  const { client, proxy } = await place(t)
  const before = await client()
  before.socket.write('a')
  await until(() => before.text() === 'a')
  proxy.reset()
  const after = await client()
  after.socket.write('b')
  await until(() => after.text() === 'b')
  t.is(await until(() => before.ended()), 'ECONNRESET')
})

test('stall: nothing passes, nothing ends and nothing is connected; after mending all of it arrives in order', async (t) => {
  const { client, proxy, heard, served } = await place(t)
  const before = await client()
  const leaving = await client()
  for (const one of [before, leaving]) {
    one.socket.write('a')
    await until(() => one.text() === 'a')
  }
  proxy.stall()
  before.socket.write('b')
  leaving.socket.end('last words')
  const during = await client()
  during.socket.write('c')
  // Written behind the others and refused by a line of its own, this one shows that there was time for them.
  const healthy = await place(t)
  const other = await healthy.client()
  other.socket.write('d')
  await until(() => other.text() === 'd')
  t.deepEqual([heard(), before.ended(), leaving.ended(), during.ended(), served.length], ['a|a', undefined, undefined, undefined, 2])
  proxy.mend()
  await until(() => before.text() === 'ab' && during.text() === 'c' && heard() === 'ab|alast words|c')
  t.deepEqual([before.ended(), during.ended()], [undefined, undefined])
})

test('a stalled line that is cut resets what it held back', async (t) => {
  const { client, proxy, heard } = await place(t)
  const one = await client()
  one.socket.write('a')
  await until(() => one.text() === 'a')
  proxy.stall()
  one.socket.write('b')
  proxy.cut()
  t.is(await until(() => one.ended()), 'ECONNRESET')
  t.is(heard(), 'a')
})

test('slice: so many bytes pass one by one, the rest as it comes, all in order', async (t) => {
  const { client, proxy, served } = await place(t)
  const one = await client()
  const sent = Buffer.from(Array.from({ length: 5_000 }, (_, at) => at % 251))
  const sliced = proxy.slice(2_000)
  one.socket.write(sent)
  await sliced
  await until(() => one.text().length > 0 && Buffer.concat(one.chunks).equals(sent), { within: 30_000 })
  const heard = served[0]?.chunks ?? []
  t.true(Buffer.concat(heard).equals(sent))
  t.true(heard.length > 100, `${heard.length} pieces`)
})

test('drop answers: the server hears all, the client nothing, and mending resets it', async (t) => {
  const { client, proxy, heard } = await place(t)
  const one = await client()
  one.socket.write('a')
  await until(() => one.text() === 'a')
  proxy.dropAnswers()
  one.socket.write('commit')
  await until(() => heard() === 'acommit')
  t.deepEqual([one.text(), one.ended()], ['a', undefined])
  proxy.mend()
  t.is(await until(() => one.ended()), 'ECONNRESET')
  t.is(one.text(), 'a')
  const after = await client()
  after.socket.write('b')
  await until(() => after.text() === 'b')
})

test('a shifted clock tells another time of day in every way, and what has a time keeps it', (t) => {
  const before = Date.now()
  const known = new Date(0)
  const begun = performance.now()
  shiftClock(-3_600_000)
  const near = (time: number): boolean => Math.abs(time - (before - 3_600_000)) < 60_000
  t.deepEqual([Date.now(), new Date().getTime(), Date.parse(Date()), performance.timeOrigin + performance.now()].map(near), [true, true, true, true])
  t.true(known instanceof Date && new Date() instanceof Date)
  t.is(new Date('2019-09-16T10:00:00Z').toISOString(), '2019-09-16T10:00:00.000Z')
  t.is(Date.UTC(1970, 0, 1), 0)
  t.true(performance.now() >= begun)
})
