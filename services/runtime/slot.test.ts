import { connect as tcp } from 'node:net'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { Worker } from 'node:worker_threads'
import test from 'ava'
import { connect, freshDatabase } from '../../test/support/database.ts'
import { until } from '../../test/support/until.ts'
import { openSlot, SlotLost } from './slot.ts'

const database = await freshDatabase()
const sql = connect(database.url)

test.after.always(async () => {
  await sql.end({ timeout: 5 })
  await database.drop()
})

test('arrays go in and come out as they are: text of any kind, numbers, keys, nothing at all', async (t) => {
  const slot = openSlot({ url: database.url, name: 'arrays' })
  t.teardown(() => slot.close())
  const texts = ['a', '', 'null', 'NULL', 'say "yes"', 'back\\slash', '{}', 'a,b', ' ', 'ü\n']
  const uuid = '4b2f6a0e-0000-4000-8000-00000000000a'
  const [row] = await slot.run((tx) => tx`select ${texts}::text[] as texts, ${[]}::text[] as none, ${['9223372036854775807']}::bigint[] as bigints,
    ${[1, -2]}::int[] as ints, ${'{7,8}'}::int[] as written, ${[uuid]}::uuid[] as uuids, array[1, 2]::smallint[] as smallints, array['2026-01-01 00:00:00.123456+00']::timestamptz[] as times`)
  t.deepEqual(row, { texts, none: [], bigints: ['9223372036854775807'], ints: [1, -2], written: [7, 8], uuids: [uuid], smallints: [1, 2], times: ['2026-01-01 00:00:00.123456+00'] })
})

test('I1 a connection ended as soon as it appears is a lost statement and nothing else', async (t) => {
  let killing = true
  const killer = (async () => {
    while (killing) await sql`select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'deltapost early' and datname = current_database()`
  })()
  t.teardown(async () => {
    killing = false
    await killer
  })
  let lost = 0
  for (let at = 0; at < 60; at += 1) {
    const slot = openSlot({ url: database.url, name: 'early' })
    try {
      await slot.run((tx) => tx`select ${['x']}::text[]`)
    } catch (error) {
      t.true(error instanceof SlotLost, String(error))
      lost += 1
    }
    await slot.close()
  }
  t.true(lost > 0)
})

test('a slot does not keep what was read: a relay that runs for weeks would hold all it ever published', async (t) => {
  setFlagsFromString('--expose-gc')
  const collect = runInNewContext('gc') as () => void
  const slot = openSlot({ url: database.url, name: 'reads' })
  t.teardown(() => slot.close())
  const read = new WeakRef(await slot.run((sql) => sql`select repeat('x', 1000000) as text`))
  await slot.run((sql) => sql`select 1`) // the driver keeps its last query
  await until(async () => {
    collect()
    return read.deref() === undefined
  })
  t.pass()
})

/** Listens, and accepts nobody before it is let; from then on it carries every connection to Postgres. */
const BUSY_SERVER = `
  const { parentPort, workerData: { gate, target } } = require('node:worker_threads')
  const net = require('node:net')
  const server = net.createServer((client) => {
    const upstream = net.connect(target)
    for (const [from, to] of [[client, upstream], [upstream, client]]) from.on('error', () => to.destroy()).pipe(to)
  })
  server.listen({ host: '127.0.0.1', port: 0, backlog: 1 }, () => {
    parentPort.postMessage(server.address().port)
    Atomics.wait(gate, 0, 0)
  })`

/** The address of Postgres behind a server whose backlog is full: a connect hangs until \`accept\` and is carried then. */
async function fullBacklog(): Promise<{ url: string; accept: () => void; close: () => Promise<number> }> {
  const gate = new Int32Array(new SharedArrayBuffer(4))
  const url = new URL(database.url)
  const worker = new Worker(BUSY_SERVER, { eval: true, workerData: { gate, target: { host: url.hostname, port: Number(url.port || 5432) } } })
  const port = await new Promise<number>((resolve) => worker.once('message', resolve))
  const fill = Array.from({ length: 3 }, () => tcp(port, '127.0.0.1').on('error', () => undefined))
  await until(() => fill.filter(({ readyState }) => readyState === 'open').length === 2) // the backlog, and one
  url.host = `127.0.0.1:${port}`
  return {
    url: url.href,
    accept() {
      for (const socket of fill) socket.destroy()
      Atomics.store(gate, 0, 1)
      Atomics.notify(gate, 0)
    },
    close: () => worker.terminate(),
  }
}

test('a slot given up while it connects leaves no connection behind, also where the connect could succeed later', async (t) => {
  const server = await fullBacklog()
  t.teardown(server.close)
  const slot = openSlot({ url: server.url, name: 'given up', deadline: 500 })
  const closed = openSlot({ url: server.url, name: 'closed' })
  const lost = slot.run((tx) => tx`select 1`)
  const cut = closed.run((tx) => tx`select 1`)
  // Begun after theirs, so its connect is done after theirs would be: the kernel asks again after 1, 3 and 7 seconds.
  const later = connect(server.url, { max: 1 })
  t.teardown(() => later.end({ timeout: 5 }))
  const answer = later`select 1`.execute()
  await Promise.all([t.throwsAsync(lost, { instanceOf: SlotLost }), t.throwsAsync(cut), closed.close(500)])
  server.accept()
  await answer
  const left = await sql`select application_name from pg_stat_activity where application_name in ('deltapost given up', 'deltapost closed')`
  t.deepEqual([...left], [])
})
