// Loaded before everything else in a role process of a campaign (node --import). The service itself knows nothing of it.
import { readFileSync } from 'node:fs'

import { shiftClock } from './clock.ts'
import { routeThrough } from './edges.ts'
import { plantAll, type Plant } from './plant.ts'

/** What a campaign wants of one process; a file, because it changes while the process runs. */
export type RoleOrders = {
  /** Ports of the servers → ports of the proxies in front of them. */
  edges: Readonly<Record<string, number>>
  plants: readonly Plant[]
  clockMs: number
  armed: Armed | null
}

/** At the n-th time from now that the step is passed, the process kills or stops itself. */
export type Armed = { label: string; signal: 'SIGKILL' | 'SIGSTOP'; nth: number }

const file = new URL(import.meta.url).searchParams.get('orders')
if (file === null) throw new Error('a role of a campaign is started with the file of its orders')
const orders = read(file)
let armed = orders.armed

process.on('SIGUSR2', () => { armed = read(file).armed })

/** Called by the planted steps. SIGKILL and SIGSTOP to oneself take effect before the call returns. */
Object.assign(globalThis, {
  hit(label: string): void {
    if (armed?.label !== label) return
    armed = { ...armed, nth: armed.nth - 1 }
    if (armed.nth > 0) return
    const { signal } = armed
    armed = null
    process.kill(process.pid, signal)
  },
})

if (orders.clockMs !== 0) shiftClock(orders.clockMs)
routeThrough(orders.edges)
plantAll(orders.plants)

function read(path: string): RoleOrders {
  return JSON.parse(readFileSync(path, 'utf8')) as RoleOrders // written by rig.ts
}
