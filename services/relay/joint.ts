import type { Share } from '../runtime/kafka.ts'
import { refusalOf } from './refusal.ts'

/**
 * Sends what one partition has, some `bytes`; resolves with the offset of its first message. Rejects with Withdrawn where
 * `mayGoOn` says no when its turn comes.
 */
export type Joint = (share: Share, bytes: number, mayGoOn: () => boolean) => Promise<bigint>

/** A share that waited was not sent: meanwhile a lane of it was lost, or the relay is to stop. */
export class Withdrawn extends Error {
  readonly code = 'WITHDRAWN'
  readonly remedy = 'nothing: whoever holds the lane sends its events'
  readonly retry = true
}

/** Requests to the broker at once: while it works on one, kafkajs encodes the next. More only queue in the connection. */
const AT_ONCE = 2
/** Bytes of one request, unless one share alone has more: far below what a broker takes (100 MB), and what is encoded in 10 ms. */
const MOST_BYTES = 8 << 20
/** After a failure of a request with several partitions they go one by one for so long, in milliseconds: the fault may be one's only. */
const APART = 10_000

type Waiting = Share & { bytes: number; mayGoOn: () => boolean; resolve: (first: bigint) => void; reject: (error: unknown) => void }

/**
 * Sends for one topic, joined: what its partitions hand over in the same moment, or while earlier requests are under way,
 * goes out in one request. A broker works on one request of a connection after the other, so twelve partitions with a
 * record each cost it, and us, a fraction of twelve requests.
 *
 * A share may wait for as long as a request lasts, which is longer than a lease: it is asked again before it goes.
 *
 * `request` resolves with the first offset of each share, in their order, and must be sure of each. Where the broker
 * refuses a record for good, nobody knows of which partition: then each share goes again, alone; that repeats at most
 * what was written last. Any other failure is that of every share in the request.
 */
export function openJoint(request: (shares: readonly Share[]) => Promise<readonly bigint[]>): Joint {
  let waiting: Waiting[] = []
  let busy = 0
  let planned = false
  let apartUntil = 0

  function withdraw(): void {
    const gone = waiting.filter(({ mayGoOn }) => !mayGoOn())
    if (gone.length > 0) waiting = waiting.filter((share) => !gone.includes(share))
    for (const { partition, reject } of gone) reject(new Withdrawn(`what waited for partition ${partition} was not sent: its lane is not ours any more`))
  }

  function cut(): Waiting[] {
    const most = performance.now() < apartUntil ? 1 : waiting.length
    let bytes = 0
    let size = 0
    while (size < most && (size === 0 || bytes + waiting[size]!.bytes <= MOST_BYTES)) bytes += waiting[size++]!.bytes
    const shares = waiting.slice(0, size)
    waiting = waiting.slice(size)
    return shares
  }

  async function go(shares: readonly Waiting[]): Promise<void> {
    try {
      const firsts = await request(shares)
      for (const [at, { resolve }] of shares.entries()) resolve(firsts[at]!)
    } catch (error) {
      if (shares.length === 1) return shares[0]!.reject(error)
      apartUntil = performance.now() + APART
      if (refusalOf(error) === undefined) for (const { reject } of shares) reject(error)
      else waiting.unshift(...shares)
    }
  }

  function flush(): void {
    planned = false
    withdraw()
    // Apart, a partition whose leader is away must not hold up the others.
    while (waiting.length > 0 && (busy < AT_ONCE || performance.now() < apartUntil)) {
      busy += 1
      void go(cut()).finally(() => {
        busy -= 1
        plan()
      })
    }
  }

  function plan(): void {
    if (planned || waiting.length === 0) return
    planned = true
    setImmediate(flush) // behind all that this turn hands over
  }

  return (share, bytes, mayGoOn) => new Promise((resolve, reject) => {
    waiting.push({ ...share, bytes, mayGoOn, resolve, reject })
    plan()
  })
}
