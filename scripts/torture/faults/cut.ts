import type { Proxy } from '../proxy.ts'
import { anyOf, between, type Edge, type Fault, type Kind, type Rig, wait } from './fault.ts'

type Line = { kind: Kind; to: Edge['to'] }

const LINES: readonly Line[] = [
  { kind: 'listener', to: 'postgres' }, { kind: 'relay', to: 'postgres' }, { kind: 'consumer', to: 'postgres' },
  { kind: 'relay', to: 'kafka' }, { kind: 'consumer', to: 'kafka' },
]

type Injury = (rig: Rig, proxies: readonly Proxy[]) => Promise<void>

/** An injury to the lines between one role and a server: to all of its brokers, or to one of them. */
function injured(what: string, { kind, to }: Line, injure: Injury): Fault {
  const name = `${what}-${kind}-${to}`
  return {
    name, kind: 'cut',
    async happen(rig) {
      const role = anyOf(rig, kind)
      const all = rig.edges.filter((edge) => edge.from === role.name && edge.to === to).map(({ proxy }) => proxy)
      const proxies = all.length > 1 && rig.random.chance(0.5) ? [rig.random.pick(all)] : all
      if (proxies.every((proxy) => proxy.connections() === 0)) rig.noted(`${name}: nothing was connected`)
      try {
        await injure(rig, proxies)
      } finally {
        for (const proxy of proxies) proxy.mend()
      }
    },
  }
}

const cut: Injury = async (rig, proxies) => {
  for (const proxy of proxies) proxy.cut()
  await wait(rig, between(rig, 500, 5_000))
}

/** A storm of resets; a client that has just come back is met again. */
const reset: Injury = async (rig, proxies) => {
  const times = between(rig, 1, 8)
  for (let time = 0; time < times; time += 1) {
    for (const proxy of proxies) proxy.reset()
    await wait(rig, between(rig, 20, 400))
  }
}

const stall: Injury = async (rig, proxies) => {
  for (const proxy of proxies) proxy.stall()
  await wait(rig, between(rig, 3_000, 8_000))
}

/** A line with little on it is not waited for. */
const SLICING_MS = 8_000

const slice: Injury = async (rig, proxies) => {
  const sliced = Promise.all(proxies.map((proxy) => proxy.slice(between(rig, 4_000, 24_000))))
  const ended = new AbortController()
  try {
    await Promise.race([sliced, wait({ signal: AbortSignal.any([rig.signal, ended.signal]) }, SLICING_MS)])
  } finally {
    ended.abort()
  }
}

/** What is done in the meantime is done, and nobody hears of it: a COMMIT, a produce request. */
const dropAnswers: Injury = async (rig, proxies) => {
  for (const proxy of proxies) proxy.dropAnswers()
  await wait(rig, between(rig, 20, 1_000))
}

export const CUTS: readonly Fault[] = LINES.flatMap((line) => [
  injured('cut', line, cut), injured('reset', line, reset), injured('stall', line, stall), injured('slice', line, slice),
  // A consumer only reads from Kafka: what it asks again it gets again.
  ...(line.kind === 'consumer' && line.to === 'kafka' ? [] : [injured('drop-answers', line, dropAnswers)]),
])
