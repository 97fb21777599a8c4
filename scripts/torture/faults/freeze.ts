import { LEASE } from '../../../services/relay/lanes.ts'
import { CONSUMER_TIMES } from '../../../services/runtime/kafka.ts'
import { anyOf, type Fault, type Kind, wait } from './fault.ts'

const LISTENER_MS = 2_000
const UP_TO_MS = 1_000

/** How long each is stopped: a relay past its lease, a consumer past its session, so that both wake as what they no longer are. */
const LENGTHS: Readonly<Record<Kind, number>> = { listener: LISTENER_MS, relay: 2 * LEASE, consumer: CONSUMER_TIMES.sessionTimeout + 1_000 }

function freeze(kind: Kind): Fault {
  return {
    name: `freeze-${kind}`, kind: 'freeze',
    async happen(rig) {
      const role = anyOf(rig, kind)
      const ms = LENGTHS[kind] + rig.random.below(UP_TO_MS)
      role.freeze()
      try {
        await wait(rig, ms)
      } finally {
        role.thaw()
      }
    },
  }
}

export const FREEZES: readonly Fault[] = [freeze('relay'), freeze('consumer'), freeze('listener')]
