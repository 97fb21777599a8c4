import { createServer } from 'node:net'

// Below the range from which systems draw the local ports of outgoing connections (32768 on Linux, 49152 elsewhere): a
// server that is killed and started again must find its port free, and a client that retries against a closed port of
// that range can even connect to itself and keep the port.
const LOWEST = 15_000
const HIGHEST = 32_000
const TRIES = 200

/** True if a server could listen on this port of 127.0.0.1 now. */
export async function isFree(port: number): Promise<boolean> {
  const server = createServer()
  return new Promise((resolve) => {
    server.once('error', () => resolve(false))
    server.listen({ port, host: '127.0.0.1', exclusive: true }, () => server.close(() => resolve(true)))
  })
}

/** `count` different ports of 127.0.0.1 on which nothing listens now. */
export async function freePorts(count: number): Promise<number[]> {
  const ports = new Set<number>()
  for (let tries = 0; ports.size < count; tries += 1) {
    if (tries === TRIES) throw new Error(`no ${count} free ports between ${LOWEST} and ${HIGHEST} in ${TRIES} tries`)
    const port = LOWEST + Math.floor(Math.random() * (HIGHEST - LOWEST))
    if (await isFree(port)) ports.add(port)
  }
  return [...ports]
}
