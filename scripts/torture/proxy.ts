import { once } from 'node:events'
import { connect, createServer, type Socket } from 'node:net'
import { setImmediate as turn } from 'node:timers/promises'

/** A TCP proxy on 127.0.0.1 in front of one server for one client, to injure what passes between the two and nobody else. */
export type Proxy = {
  port: number
  /** How many connections are open: an injury without one proves nothing. */
  connections: () => number
  /** Resets what is open and refuses what comes, until `mend`. */
  cut: () => void
  /** Resets what is open; what comes is let in. */
  reset: () => void
  /** A black hole: nothing passes, no connection ends or begins, until `mend`; what was under way then arrives, late. */
  stall: () => void
  /** The next `bytes`, both directions together, pass one by one. Resolves when they have, at `mend` and at `cut`. */
  slice: (bytes: number) => Promise<void>
  /** The server hears everything and what it says is lost, until `mend`, which resets what is open. */
  dropAnswers: () => void
  mend: () => void
  close: () => Promise<void>
}

type Target = { host: string; port: number }

/** What every connection of a proxy goes by. `flowing` is pending while the line is stalled. */
type Line = { state: 'open' | 'cut' | 'stalled' | 'deaf'; flowing: Promise<void>; slicing: number; sliced: () => void }

/** One client and, once the line let it through, its connection to the server. */
type Pair = { client: Socket; upstream: Socket | undefined }

export async function startProxy(target: Target): Promise<Proxy> {
  const line: Line = { state: 'open', flowing: Promise.resolve(), slicing: 0, sliced: () => undefined }
  const pairs = new Set<Pair>()
  let flow = (): void => undefined

  const server = createServer({ allowHalfOpen: true, noDelay: true }, (client) => {
    client.on('error', ignore)
    if (line.state === 'cut') {
      client.resetAndDestroy()
      return
    }
    const pair: Pair = { client, upstream: undefined }
    pairs.add(pair)
    void carry(pair, target, line).finally(() => pairs.delete(pair))
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()

  function become(state: Line['state']): void {
    if (state !== 'stalled') flow()
    else if (line.state !== 'stalled') ({ promise: line.flowing, resolve: flow } = Promise.withResolvers<void>())
    line.state = state
  }
  function reset(): void {
    for (const { client, upstream } of pairs) for (const socket of [client, upstream]) socket?.resetAndDestroy()
  }
  function wholeAgain(): void {
    line.slicing = 0
    line.sliced()
  }
  function cut(): void {
    reset()
    become('cut')
    wholeAgain()
  }

  return {
    port: typeof address === 'object' && address !== null ? address.port : 0,
    connections: () => pairs.size,
    cut,
    reset,
    stall: () => become('stalled'),
    slice(bytes) {
      wholeAgain()
      line.slicing = bytes
      return new Promise((resolve) => { line.sliced = resolve })
    },
    dropAnswers: () => become('deaf'),
    mend() {
      if (line.state === 'deaf') reset()
      become('open')
      wholeAgain()
    },
    async close() {
      cut()
      server.close()
      if (server.listening) await once(server, 'close')
    },
  }
}

/** A proxy in front of the server of a postgres:// address; `url` is that address with the proxy's port in it. */
export async function openProxy(target: string): Promise<Proxy & { url: string }> {
  const { hostname, port } = new URL(target)
  const proxy = await startProxy({ host: hostname, port: Number(port || 5432) })
  const url = new URL(target)
  url.host = `127.0.0.1:${proxy.port}`
  return { ...proxy, url: url.href }
}

async function carry(pair: Pair, target: Target, line: Line): Promise<void> {
  await passable(line)
  if (pair.client.destroyed) return
  const upstream = connect({ ...target, noDelay: true, allowHalfOpen: true })
  upstream.on('error', ignore)
  pair.upstream = upstream
  await Promise.all([pass(pair.client, upstream, line, () => true), pass(upstream, pair.client, line, () => line.state !== 'deaf')])
}

/** Carries bytes and then the end of one direction, whatever that was. One chunk is under way, so memory is bounded. */
async function pass(from: Socket, to: Socket, line: Line, mayPass: () => boolean): Promise<void> {
  try {
    for await (const bytes of from.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
      await passable(line)
      if (mayPass()) await send(to, bytes, line)
    }
    await passable(line)
    to.end()
  } catch {
    await passable(line)
    to.resetAndDestroy()
  }
}

async function send(to: Socket, bytes: Buffer, line: Line): Promise<void> {
  let at = 0
  for (; line.slicing > 0 && at < bytes.length && !to.destroyed; at += 1) {
    await write(to, bytes.subarray(at, at + 1))
    line.slicing -= 1
    if (line.slicing === 0) line.sliced()
    await turn() // time to read the byte alone
    await passable(line)
  }
  if (at < bytes.length) await write(to, bytes.subarray(at))
}

/** Settles when the bytes are on their way or the socket is gone; the other direction hears of that. */
function write(to: Socket, bytes: Buffer): Promise<void> {
  return new Promise((resolve) => to.write(bytes, () => resolve()))
}

async function passable(line: Line): Promise<void> {
  while (line.state === 'stalled') await line.flowing
}

/** Errors of a socket are told by what reads it. */
function ignore(): void {}
