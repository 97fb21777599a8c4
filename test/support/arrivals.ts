import { randomUUID } from 'node:crypto'
import { pino } from 'pino'
import type { Change, Column } from '../../outbox/change.ts'
import { applyArrivals } from '../../services/consumer/apply.ts'
import type { Holding, Outcome } from '../../services/consumer/apply.ts'
import type { Arrival } from '../../services/consumer/element.ts'
import type { Course } from '../../services/consumer/failure.ts'
import { arrivalOf, parkedColumns, takeUp } from '../../services/consumer/parked.ts'
import type { Parked } from '../../services/consumer/parked.ts'
import { raiseTerm } from '../../services/consumer/position.ts'
import { openRelations } from '../../services/consumer/relations.ts'
import { openLending } from '../../services/consumer/lending.ts'
import { resumeRelation, stoppedRelations } from '../../services/consumer/resume.ts'
import { openRounds } from '../../services/consumer/rounds.ts'
import { unparkDue } from '../../services/consumer/unpark.ts'
import { openSlot } from '../../services/runtime/slot.ts'
import type { Slot } from '../../services/runtime/slot.ts'

type Text = string | null
/** A column of a change: its value, or [old, new] in an update. */
export type Values = Record<string, Text | [Text, Text]>

const RECEIVED_AT = 1_000_000_000

let lastSeqId = 0

/** A change as it arrives from Kafka. `time` is microseconds; its seq_id is the next number unless given. */
export function arrival(table: string, operation: Change['operation'], time: number, values: Values, seqId: number = ++lastSeqId, epoch = 1): Arrival {
  const columns = Object.entries(values).map(([name, value]): Column => {
    if (operation === 'DELETE') return { name, old: value as Text }
    if (Array.isArray(value)) return { name, old: value[0], new: value[1] }
    return { name, new: value }
  })
  const change: Change = { dialect: 'v2', time: '', schema: 'app', table, operation, columns, relay: false, cleanText: '' }
  const data = Object.fromEntries(columns.map(({ name, old, new: now }) => [name, operation === 'UPDATE' && old !== undefined ? { old, new: now } : old ?? now ?? null]))
  const value = JSON.stringify({
    SEQ_ID: String(seqId), TOPICNAME: 'test', SOURCE: 'INFORMIX', RECEIVED_AT: new Date(RECEIVED_AT).toISOString(),
    TIME: '2026-01-01T00:00:00.1Z', SCHEMANAME: 'app', TABLENAME: table, OPERATION: operation, DATA: data,
  })
  return {
    identity: { origin: 1, seqId: String(seqId), attempt: 0, epoch, time: String(time), seq: String(seqId) },
    change, offset: String(seqId), receivedAt: RECEIVED_AT,
    record: () => ({ key: JSON.stringify(['app', table]), value, traceparent: null }),
  }
}

export type Rig = {
  slot: Slot
  /** Applies as the holder of a partition of the test's topic; each partition has a slot of its own. */
  apply(partition: number, ...arrivals: Arrival[]): Promise<Outcome>
  holding(partition: number): Promise<Holding>
  /** What a consumer does beside applying: takes up what is due, and stopped relations; until there is nothing left to do. */
  tend(): Promise<void>
  /** Takes up everything that is parked, as an operator would. */
  retryAll(): Promise<void>
  /** Statuses by seq_id. */
  statuses(): Promise<Record<string, string>>
  rows(text: string, args?: (string | number | null)[]): Promise<Record<string, unknown>[]>
  close(): Promise<void>
}

/** No retry within a test's time, and two attempts. */
export const COURSE: Course = { maxRetries: 2, retryBackoff: 3_600_000, errorTopic: 'errors', errorRecipients: ['admin@abc.com'] }

/** `joined`: what partitions have at the same time goes in one call, as in a consumer; else each has a call of its own. */
export type RigOptions = { autoCreate?: boolean; source?: string; course?: Course; joined?: boolean }

/** A consumer without Kafka: the parts of its loop over one database. */
export async function consumerRig(url: string, options: RigOptions = {}): Promise<Rig> {
  const log = pino({ level: 'silent' })
  const slot = openSlot({ url, name: 'rig' })
  const slots = new Map<number, Promise<{ slot: Slot; holding: Holding; relations: ReturnType<typeof openRelations> }>>()
  const topic = `topic-${randomUUID()}`

  async function open(partition: number): Promise<{ slot: Slot; holding: Holding; relations: ReturnType<typeof openRelations> }> {
    const own = openSlot({ url, name: `rig ${partition}`, lockTimeout: 0, deadline: 60_000 })
    const { term } = await own.run((sql) => raiseTerm(sql, 'rig', topic, partition, 'rig'))
    const relations = openRelations({ source: options.source ?? 'INFORMIX', destination: 'POSTGRESQL', autoCreate: options.autoCreate ?? true, log })
    return { slot: own, holding: { group: 'rig', topic, partition, term }, relations }
  }
  function of(partition: number): Promise<{ slot: Slot; holding: Holding; relations: ReturnType<typeof openRelations> }> {
    const known = slots.get(partition) ?? open(partition)
    slots.set(partition, known)
    return known
  }
  // Two slots, so that calls of two meet.
  const joined = options.joined === true ? Array.from({ length: 2 }, (_, at) => openSlot({ url, name: `rig joined ${at}`, lockTimeout: 0, deadline: 60_000 })) : []
  const apart = { clockTolerance: 300_000, course: options.course ?? COURSE, destination: 'POSTGRESQL', log }
  const relations = openRelations({ source: options.source ?? 'INFORMIX', destination: 'POSTGRESQL', autoCreate: options.autoCreate ?? true, log })
  const offer = openRounds(openLending(joined), joined.length, { ...apart, relations })
  async function rows(text: string, args: (string | number | null)[] = []): Promise<Record<string, unknown>[]> {
    return slot.run(async (sql) => [...await sql.unsafe<Record<string, unknown>[]>(text, args)])
  }
  return {
    slot,
    async apply(partition, ...arrivals) {
      const part = await of(partition)
      const next = BigInt(arrivals.at(-1)?.offset ?? -1) + 1n
      if (options.joined === true) return offer({ holding: part.holding, arrivals, nextOffset: next, bytes: 0 })
      return applyArrivals({ slot: part.slot, relations: part.relations, ...apart }, part.holding, arrivals, next)
    },
    holding: async (partition) => (await of(partition)).holding,
    async tend() {
      const parts = { ...await of(0), clockTolerance: 300_000, course: options.course ?? COURSE, log }
      while (await unparkDue(parts) > 0);
      for (const relation of await slot.run(stoppedRelations)) await resumeRelation(parts, relation, new AbortController().signal)
    },
    async retryAll() {
      const parts = { ...await of(0), clockTolerance: 300_000, course: options.course ?? COURSE, log }
      const all = await slot.run((sql) => sql<Parked[]>`
        select ${parkedColumns(sql)} from inbox.parked p join inbox.applied a on a.origin = p.origin and a.seq_id = p.seq_id order by p.epoch, p.time, p.seq_id`)
      const byTable = Map.groupBy(all, (one) => `${one.topic}/${arrivalOf(one).change.table}`)
      for (const changes of byTable.values()) await takeUp(parts, changes, { state: 'ACTIVE', together: false, forced: true })
    },
    rows,
    async statuses() {
      const all = await rows('select seq_id, status from inbox.applied order by seq_id')
      return Object.fromEntries(all.map((row) => [String(row['seq_id']), String(row['status'])]))
    },
    async close() {
      await Promise.all([...slots.values()].map(async (part) => (await part).slot.close()))
      await Promise.all([slot, ...joined].map((one) => one.close()))
    },
  }
}
