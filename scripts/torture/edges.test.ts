import { execFile } from 'node:child_process'
import { join } from 'node:path'
import { promisify } from 'node:util'
import test from 'ava'

import { freshDatabase } from '../../test/support/database.ts'
import { brokers } from '../../test/support/kafka.ts'
import { startProxy } from './proxy.ts'

/** Connects in every way and says which ports each of them reached. Beneath `routeThrough` it notes where sockets end up. */
const CLIENT = `
import net from 'node:net'
import kafkajs from 'kafkajs'
import pg from 'pg'
import postgres from 'postgres'
import { routeThrough } from './scripts/torture/edges.ts'
import { openKafka } from './services/runtime/kafka.ts'
import { openLog } from './services/runtime/log.ts'
import { openSlot } from './services/runtime/slot.ts'

const { edges, url, brokers } = JSON.parse(process.argv[1])
let reached = new Set()
const direct = net.Socket.prototype.connect
net.Socket.prototype.connect = function (...args) {
  this.once('connect', () => reached.add(this.remotePort))
  return direct.apply(this, args)
}
routeThrough(edges)

const { port } = new URL(url)
const opened = (socket) => new Promise((resolve, reject) => socket.once('connect', resolve).once('error', reject)).finally(() => socket.destroy())
const ways = {
  'postgres.js': async () => {
    const sql = postgres(url, { max: 1 })
    await sql\`select 1\`
    await sql.end()
  },
  'pg': async () => {
    const client = new pg.Client(url)
    await client.connect()
    await client.end()
  },
  'a slot': async () => {
    const slot = openSlot({ url, name: 'edges' })
    await slot.run((sql) => sql\`select 1\`)
    await slot.close()
  },
  'kafkajs': async () => asked(new kafkajs.Kafka({ brokers, logLevel: kafkajs.logLevel.NOTHING })),
  'the kafkajs of the roles': async () => asked(openKafka(brokers, openLog('edges', 'silent'))),
  'net.connect(port)': () => opened(net.connect(Number(port))),
  'net.connect(port, host)': () => opened(net.connect(port, '127.0.0.1')),
  'net.connect(options)': () => opened(net.connect({ port, host: '127.0.0.1' })),
  'connect(port, host) of a socket': () => opened(new net.Socket().connect(Number(port), 'localhost')),
  'connect(options) of a socket': () => opened(new net.Socket().connect({ port: Number(port), host: 'localhost', family: 4 })),
}
async function asked(kafka) {
  const admin = kafka.admin()
  await admin.connect()
  await admin.describeCluster()
  await admin.disconnect()
}
const said = {}
for (const [name, connect] of Object.entries(ways)) {
  reached = new Set()
  await connect()
  said[name] = [...reached]
}
console.log(JSON.stringify(said))
process.exit(0)
`

/** Runs in a process of its own: here it would also send the proxy to itself. */
async function portsReached(edges: Record<string, number>, url: string): Promise<unknown> {
  const given = JSON.stringify({ edges, url, brokers: brokers() })
  const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '--eval', CLIENT, given], { cwd: join(import.meta.dirname, '..', '..') })
  return JSON.parse(stdout)
}

test('every client reaches a server through its proxy, kafkajs also where a broker told it the port, and other servers directly', async (t) => {
  const database = await freshDatabase()
  const real = { postgres: Number(new URL(database.url).port || 5432), kafka: Number(brokers()[0]?.split(':')[1]) }
  const [toPostgres, toKafka] = await Promise.all([startProxy({ host: '127.0.0.1', port: real.postgres }), startProxy({ host: '127.0.0.1', port: real.kafka })])
  t.teardown(async () => {
    await Promise.all([toPostgres.close(), toKafka.close()])
    await database.drop()
  })
  const reached = (postgres: number, kafka: number): Record<string, number[]> => ({
    'postgres.js': [postgres], 'pg': [postgres], 'a slot': [postgres], 'kafkajs': [kafka], 'the kafkajs of the roles': [kafka],
    'net.connect(port)': [postgres], 'net.connect(port, host)': [postgres], 'net.connect(options)': [postgres],
    'connect(port, host) of a socket': [postgres], 'connect(options) of a socket': [postgres],
  })
  t.deepEqual(await portsReached({ [real.postgres]: toPostgres.port, [real.kafka]: toKafka.port }, database.url), reached(toPostgres.port, toKafka.port))
  t.deepEqual(await portsReached({ [real.postgres]: toPostgres.port }, database.url), reached(toPostgres.port, real.kafka))
})
