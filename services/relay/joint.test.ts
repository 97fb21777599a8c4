import test from 'ava'

import type { Share } from '../runtime/kafka.ts'
import { openJoint, Withdrawn } from './joint.ts'

const share = (partition: number, ...texts: string[]): Share => ({
  partition, messages: texts.map((text) => ({ key: Buffer.from(''), value: Buffer.from(text), timestamp: '0' })),
})

/** A broker that keeps what it takes, by request and by partition; `fails` says with what it answers instead. */
function broker(fails: (shares: readonly Share[], nth: number) => Error | undefined = () => undefined) {
  const requests: number[][] = []
  const logs = new Map<number, string[]>()
  const atOnce = { now: 0, most: 0 }
  async function request(shares: readonly Share[]): Promise<bigint[]> {
    requests.push(shares.map(({ partition }) => partition))
    const error = fails(shares, requests.length)
    atOnce.most = Math.max(atOnce.most, atOnce.now += 1)
    await new Promise(setImmediate)
    atOnce.now -= 1
    if (error !== undefined) throw error
    return shares.map(({ partition, messages }) => {
      const log = logs.get(partition) ?? []
      logs.set(partition, log)
      return BigInt(log.push(...messages.map(({ value }) => value.toString())) - messages.length)
    })
  }
  const joint = openJoint(request)
  return { requests, logs, atOnce, joint: (one: Share, bytes: number, mayGoOn = () => true) => joint(one, bytes, mayGoOn) }
}

test('what partitions hand over in one moment goes in one request, and each learns its own offset', async (t) => {
  const { joint, requests } = broker()
  t.deepEqual(await Promise.all([joint(share(0, 'a', 'b'), 10), joint(share(1, 'c'), 10)]), [0n, 0n])
  t.deepEqual(await Promise.all([joint(share(0, 'd'), 10), joint(share(2, 'e'), 10), joint(share(1, 'f'), 10)]), [2n, 0n, 1n])
  t.deepEqual(requests, [[0, 1], [0, 2, 1]])
})

test('two requests are under way at most, and what is handed over meanwhile goes in the next', async (t) => {
  const { joint, requests, atOnce } = broker()
  const large = 6 << 20
  await Promise.all([joint(share(0, 'a'), large), joint(share(1, 'b'), large), joint(share(2, 'c'), large), joint(share(3, 'd'), 10)])
  t.deepEqual(requests, [[0], [1], [2, 3]])
  t.is(atOnce.most, 2)
})

test('a refused record fails its own partition only: the shares of its request go again, alone', async (t) => {
  const refusal = Object.assign(new Error('too large'), { type: 'MESSAGE_TOO_LARGE' })
  const { joint, logs, requests } = broker((shares) => (shares.some(({ partition }) => partition === 1) ? refusal : undefined))
  const [one, other, third] = await Promise.allSettled([joint(share(0, 'a'), 10), joint(share(1, 'b'), 10), joint(share(2, 'c'), 10)])
  t.deepEqual([one.status, other.status, third.status], ['fulfilled', 'rejected', 'fulfilled'])
  t.deepEqual(requests, [[0, 1, 2], [0], [1], [2]])
  t.deepEqual([...logs], [[0, ['a']], [2, ['c']]])
})

test('any other failure is that of every share, and then a partition that fails holds up no other', async (t) => {
  const { joint, requests } = broker((shares) => (shares.some(({ partition }) => partition === 1) ? new Error('its leader is away') : undefined))
  const together = await Promise.allSettled([joint(share(0, 'a'), 10), joint(share(1, 'b'), 10)])
  t.deepEqual(together.map(({ status }) => status), ['rejected', 'rejected'])
  const again = await Promise.allSettled([joint(share(1, 'b'), 10), joint(share(0, 'a'), 10)])
  t.deepEqual(again.map(({ status }) => status), ['rejected', 'fulfilled'])
  t.deepEqual(requests, [[0, 1], [1], [0]])
})

test('I5 what waits for a request is asked again before it goes: of a lost lane nothing is sent', async (t) => {
  const { joint, logs } = broker()
  const large = 6 << 20
  let held = true
  const first = [joint(share(0, 'a'), large), joint(share(1, 'b'), large)]
  const waiting = joint(share(2, 'c'), large, () => held)
  const other = joint(share(3, 'd'), 10)
  held = false
  t.true(await waiting.then(() => false, (error) => error instanceof Withdrawn))
  await Promise.all([...first, other])
  t.deepEqual([...logs.keys()].toSorted(), [0, 1, 3])
})
