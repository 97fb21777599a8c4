import { once } from 'node:events'
import { connect, createServer } from 'node:net'
import test from 'ava'

import { until } from '../../../test/support/until.ts'
import { seeded } from '../../demo/random.ts'
import { startProxy } from '../proxy.ts'
import { CUTS } from './cut.ts'
import type { Rig } from './fault.ts'

for (const fault of CUTS) {
  test(`${fault.name} is mended when the campaign is given up in its midst`, async (t) => {
    const server = createServer((socket) => socket.on('error', () => undefined).pipe(socket))
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    const address = server.address()
    const proxy = await startProxy({ host: '127.0.0.1', port: typeof address === 'object' && address !== null ? address.port : 0 })
    t.teardown(async () => {
      await proxy.close()
      server.close()
    })
    const [, kind, to] = /(listener|relay|consumer)-(postgres|kafka)$/.exec(fault.name) ?? []
    const name = `${kind} 0`
    const given = new AbortController()
    const noted: string[] = []
    // What a cut has no use for is not there.
    const rig = { random: seeded(7), roles: [{ name }], edges: [{ from: name, to, proxy }], signal: given.signal, noted: (what: string) => noted.push(what) } as unknown as Rig

    const happened = fault.happen(rig)
    given.abort()
    await t.throwsAsync(happened, { name: 'AbortError' })
    t.deepEqual(noted, [`${fault.name}: nothing was connected`])
    const socket = connect({ host: '127.0.0.1', port: proxy.port })
    socket.write('passes')
    let heard = ''
    socket.on('data', (bytes) => { heard += bytes.toString() })
    await until(() => heard === 'passes')
    socket.destroy()
  })
}
