import { Socket } from 'node:net'

/** Ports of servers on 127.0.0.1, each with the port of the proxy that this process is to reach it through. */
export type Edges = Readonly<Record<string, number>>

type Options = { port?: number | string; host?: string | undefined; path?: string }

/**
 * Sends every connection of this process to one of these ports through its proxy, whoever makes it and however it learned
 * the address: a Kafka client connects to what the brokers advertise.
 */
export function routeThrough(edges: Edges): void {
  const direct = Socket.prototype.connect
  Socket.prototype.connect = function (this: Socket, ...args: unknown[]) {
    return Reflect.apply(direct, this, routed(args, edges)) as Socket
  }
}

/** The arguments of Socket.connect in any of its forms: (port, host, ...), (options, ...) or node's own ([options, callback]). */
function routed(args: unknown[], edges: Edges): unknown[] {
  const [first, host] = args
  if (Array.isArray(first)) {
    first[0] = redirected(first[0] as Options, edges) // its own array, marked by a symbol: a copy would not be known
    return args
  }
  if (typeof first === 'object' && first !== null) return [redirected(first, edges), ...args.slice(1)]
  const port = proxyOf({ port: first as string | number, host: typeof host === 'string' ? host : undefined }, edges)
  return port === undefined ? args : [port, ...args.slice(1)]
}

function redirected(options: Options, edges: Edges): Options {
  const port = proxyOf(options, edges)
  return port === undefined ? options : { ...options, port }
}

function proxyOf({ port, host, path }: Options, edges: Edges): number | undefined {
  return path === undefined && (host === undefined || host === '127.0.0.1' || host === 'localhost') ? edges[String(port)] : undefined
}
