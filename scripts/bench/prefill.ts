import type { Repeat } from '../../outbox/intake.ts'
import { rememberKeys } from '../../outbox/relation.ts'
import { openGroups } from '../../services/listener/group.ts'
import { ingest, type IngestParts, type Post } from '../../services/listener/ingest.ts'
import { openLog } from '../../services/runtime/log.ts'
import { openSlot, type Slot } from '../../services/runtime/slot.ts'
import { bodyOf, type Step, type Unfit } from './changes.ts'
import type { Bench, Place } from './place.ts'
import { reach } from './wait.ts'

const POST: Post = { path: '/events', headers: {}, idempotencyKey: undefined, firstOrdinal: 0, acceptOld: false, traceparent: undefined }
/** Documents in one body: as many as the intake takes in a window. */
const TOGETHER = 1_024
/** A prefilled change is an hour old, each a microsecond after the one before. */
const AGE_MICROS = 3_600e6

/** The listener's intake without HTTP in front of it. */
export type Intake = { take: (body: string) => Promise<void>; close: () => Promise<void> }

/**
 * The very code by which the listener puts changes on disk. With `inOrder` one group is in flight, so that positions are
 * in the order of the changes; otherwise two, as in the listener. `take` rejects where anything of a body is rejected.
 */
export function openIntake(place: Place, parts: { inOrder: boolean; ring: () => void }): Intake {
  const log = openLog('bench', 'warn')
  const open = (name: string): Slot => openSlot({ url: place.databaseUrl, name: `bench ${name}`, deadline: 60_000, ...(name.startsWith('group') && { plans: 'kept' }) })
  const slots = parts.inOrder ? [open('group 1')] : [open('group 1'), open('group 2')]
  const others = [open('big'), open('look-up')] as const
  const ingestParts: IngestParts = {
    settings: { topic: place.topic, source: 'INFORMIX', sourceTimeZone: 'UTC', defaultSchema: undefined, horizon: 0 },
    keys: rememberKeys((work) => others[1].run(work), 'INFORMIX'),
    groups: openGroups({ slots, bigSlot: others[0], wake: { ring: parts.ring }, log }),
    reject: async ({ reason, detail }) => {
      throw new Error(`the bench made a change that intake rejects: ${reason} ${detail ?? ''}`)
    },
    lookUp: async (): Promise<Repeat[]> => [],
  }
  return {
    async take(body) {
      await ingest(Buffer.from(body), POST, ingestParts)
    },
    async close() {
      await Promise.all([...slots, ...others].map((slot) => slot.close()))
    },
  }
}

/** Puts all changes into the outbox, in their order. Returns the seconds it took. */
export async function fillOutbox(bench: Bench, place: Place, steps: readonly Step[], row: { bytes: number; unfit?: Unfit }): Promise<number> {
  const intake = openIntake(place, { inOrder: true, ring: () => undefined })
  const begin = Math.floor(Date.now() * 1_000 - AGE_MICROS)
  const begun = performance.now()
  try {
    for (let at = 0; at < steps.length; at += TOGETHER) {
      bench.signal.throwIfAborted()
      await intake.take(steps.slice(at, at + TOGETHER).map((step, n) => bodyOf(step, begin + at + n, row.bytes, row.unfit)).join('\n'))
    }
  } finally {
    await intake.close()
  }
  return (performance.now() - begun) / 1_000
}

/** Fills the topic: the outbox, and a relay that publishes all of it and then ends. */
export async function fillTopic(bench: Bench, place: Place, steps: readonly Step[], row: { bytes: number; unfit?: Unfit }): Promise<void> {
  bench.tell(`filling a topic with ${steps.length} changes`)
  await fillOutbox(bench, place, steps, row)
  await place.start('relay')
  await drained(bench, place, steps.length)
  await place.stopRoles()
}

/** Waits until `goal` records lie on the topic and nothing waits in the outbox. */
export async function drained(bench: Bench, place: Place, goal: number): Promise<void> {
  await reach({ what: 'records on the topic', goal, everyMs: 50, signal: bench.signal, ask: async () => ({ count: await place.records() }) })
  await reach({
    what: 'acks', goal: 0, everyMs: 50, signal: bench.signal,
    ask: async () => ({ count: -((await place.sql<{ n: number }[]>`select count(*)::integer as n from outbox.event`)[0]?.n ?? 0) }),
  })
}

