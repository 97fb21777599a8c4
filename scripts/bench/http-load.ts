import { connect, type Socket } from 'node:net'

import { now } from '../demo/sender.ts'

/** One connection to the listener with one post under way. */
export type Line = { post: (body: string) => Promise<Reply>; close: () => void }

export type Reply = { status: number; body: string; ms: number }

/**
 * Opens a connection and speaks just the HTTP that a post needs: the usual client takes more CPU time than the listener,
 * and they share a machine. `alive` keeps the connection; otherwise it serves one post.
 */
export async function openLine(url: string, alive: boolean): Promise<Line> {
  const { hostname, port } = new URL(url)
  const head = `POST /events HTTP/1.1\r\nHost: ${hostname}:${port}\r\nContent-Type: application/json\r\n${alive ? '' : 'Connection: close\r\n'}Content-Length: `
  const socket = connect({ host: hostname, port: Number(port), noDelay: true })
  await opened(socket)
  let waiting: { resolve: (reply: Reply) => void; reject: (error: Error) => void; since: number } | undefined
  let text = ''
  socket.setEncoding('latin1')
  socket.on('data', (part: string) => {
    text += part
    const whole = readReply(text)
    if (whole === undefined || waiting === undefined) return
    const { resolve, since } = waiting
    waiting = undefined
    text = ''
    resolve({ ...whole, ms: now() - since })
  })
  const end = (error?: Error): void => {
    waiting?.reject(error ?? new Error('the listener closed the connection before it answered'))
    waiting = undefined
  }
  socket.on('error', end)
  socket.on('close', () => end())
  return {
    post: (body) => {
      const { promise, resolve, reject } = Promise.withResolvers<Reply>()
      waiting = { resolve, reject, since: now() }
      socket.write(`${head}${Buffer.byteLength(body)}\r\n\r\n${body}`)
      return promise
    },
    close: () => socket.destroy(),
  }
}

function readReply(text: string): { status: number; body: string } | undefined {
  const end = text.indexOf('\r\n\r\n')
  if (end < 0) return undefined
  const length = Number(/\r\ncontent-length: (\d+)/i.exec(text.slice(0, end))?.[1] ?? 0)
  if (text.length < end + 4 + length) return undefined
  return { status: Number(text.slice(9, 12)), body: text.slice(end + 4, end + 4 + length) }
}

async function opened(socket: Socket): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  socket.once('connect', resolve)
  socket.once('error', reject)
  await promise
}

/** Lines that posts take in turn; a post that finds none free waits for one, and its time counts from its due time. */
export type Lines = { post: (body: string) => Promise<Reply>; close: () => void }

export async function openLines(url: string, count: number): Promise<Lines> {
  const all = await Promise.all(Array.from({ length: count }, () => openLine(url, true)))
  const free = [...all]
  const queue: ((line: Line) => void)[] = []
  return {
    async post(body) {
      const line = free.pop() ?? await new Promise<Line>((resolve) => queue.push(resolve))
      const reply = await line.post(body)
      const next = queue.shift()
      if (next === undefined) free.push(line)
      else next(line)
      return reply
    },
    close: () => all.forEach((line) => line.close()),
  }
}
