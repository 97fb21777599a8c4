import { setTimeout as pause } from 'node:timers/promises'
import { DeltapostError } from '../../outbox/errors.ts'
import type { Log } from '../runtime/log.ts'
import { openSlot } from '../runtime/slot.ts'

export type ChangeLanes = {
  databaseUrl: string
  /** 1 to 9999. */
  lanes: number
  /** Milliseconds to wait until few enough changes wait, and for locks. */
  within: number
  signal?: AbortSignal
  log: Log
}

/** More would have to be moved while intake waits: some two seconds for these. */
const MOST_WAITING = 100_000
const LOOK_EVERY = 500
/** The relays' lease: as long as one that does not yet know of the change may go on sending. */
const REST = '2 s'

/**
 * Gives the database another number of lanes while intake, relays and consumers run. Resolves with the number there was.
 *
 * The lane of a row is computed from the number of lanes, so a row that has a waiting event in its old lane must not get
 * one in its new lane that leaves first (I4). Therefore, in one transaction (outbox.set_lanes):
 *
 * 1. The table of events is locked against writers. Intakes and acks under way are waited for; those that come wait before
 *    they take their snapshot, and then see the new number. Nothing can appear in an old lane any more.
 * 2. The changes that wait move to their new lanes, which is why few may wait. They keep their positions, so the order of
 *    each row is what it was.
 * 3. Every lane gets a new term and nobody's name: acks of relays that are sending at this moment are refused, and what they
 *    sent is sent again from the new lane, in order, its first publication being the earlier one (I6 makes it one change).
 *    The lanes rest for one lease, so such a relay has stopped sending before another claims.
 * 4. Each floor becomes the lowest of all. A lane's own floor says nothing of events that came from other lanes.
 *
 * Lanes of retries and error records stay. Throws LANES_BACKLOG where too many changes wait for all of `within`.
 */
export async function changeLanes({ databaseUrl, lanes, within, signal, log }: ChangeLanes): Promise<number> {
  const slot = openSlot({ url: databaseUrl, name: 'lanes', deadline: 60_000 })
  const end = performance.now() + within
  try {
    for (;;) {
      const [row] = await slot.run((sql) => sql<{ outcome: 'OK' | 'SAME' | 'BACKLOG' | 'BUSY'; was: number; waiting: number }[]>`
        select * from outbox.set_lanes(${lanes}::smallint, ${MOST_WAITING}, ${REST}::interval)`)
      if (row === undefined) throw new Error('a function without a row')
      if (row.outcome === 'OK') log.info({ was: row.was, lanes, moved: row.waiting }, 'lanes changed')
      if (row.outcome === 'OK' || row.outcome === 'SAME') return row.was
      if (performance.now() > end) throw notYet(row.outcome)
      await pause(LOOK_EVERY, undefined, { signal })
    }
  } finally {
    await slot.close()
  }
}

function notYet(outcome: 'BACKLOG' | 'BUSY'): DeltapostError {
  if (outcome === 'BUSY') {
    return new DeltapostError('LANES_BUSY', 'somebody held locks on outbox.event or outbox.lane all the time', 'end that session (deltapost status shows the oldest), then the same command', { retry: true })
  }
  return new DeltapostError('LANES_BACKLOG', `more than ${MOST_WAITING} changes wait to be published`, 'the same command when the relays have caught up (deltapost status)', { retry: true })
}
