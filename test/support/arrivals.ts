import { randomUUID } from 'node:crypto'
import { pino } from 'pino'
import type { Change, Column } from '../../outbox/change.ts'
import { applyArrivals } from '../../services/consumer/apply.ts'
import type { Holding, Outcome } from '../../services/consumer/apply.ts'
import type { Arrival } from '../../services/consumer/element.ts'
import { raiseTerm } from '../../services/consumer/position.ts'
import { openRelations } from '../../services/consumer/relations.ts'
import { openSlot } from '../../services/runtime/slot.ts'
import type { Slot } from '../../services/runtime/slot.ts'

type Text = string | null
/** A column of a change: its value, or [old, new] in an update. */
export type Values = Record<string, Text | [Text, Text]>

let lastSeqId = 0

/** A change as it arrives from Kafka. `time` is microseconds; its seq_id is the next number unless given. */
export function arrival(table: string, operation: Change['operation'], time: number, values: Values, seqId: number = ++lastSeqId, epoch = 1): Arrival {
  const columns = Object.entries(values).map(([name, value]): Column => {
    if (operation === 'DELETE') return { name, old: value as Text }
    if (Array.isArray(value)) return { name, old: value[0], new: value[1] }
    return { name, new: value }
  })
  const change: Change = { dialect: 'v2', time: '', schema: 'app', table, operation, columns, relay: false, cleanText: '' }
  return {
    identity: { origin: 1, seqId: String(seqId), attempt: 0, epoch, time: String(time), seq: String(seqId) },
    change, offset: String(seqId), receivedAt: 1_000_000_000,
  }
}

export type Rig = {
  slot: Slot
  /** Applies as the holder of a partition of the test's topic; each partition has a slot of its own. */
  apply(partition: number, ...arrivals: Arrival[]): Promise<Outcome>
  holding(partition: number): Promise<Holding>
  /** Statuses by seq_id. */
  statuses(): Promise<Record<string, string>>
  rows(text: string, args?: (string | number | null)[]): Promise<Record<string, unknown>[]>
  close(): Promise<void>
}

export type RigOptions = { autoCreate?: boolean; source?: string }

/** A consumer without Kafka: the parts of its loop over one database. */
export async function consumerRig(url: string, options: RigOptions = {}): Promise<Rig> {
  const log = pino({ level: 'silent' })
  const slot = openSlot({ url, name: 'rig' })
  const slots = new Map<number, Promise<{ slot: Slot; holding: Holding; relations: ReturnType<typeof openRelations> }>>()
  const topic = `topic-${randomUUID()}`

  async function open(partition: number): Promise<{ slot: Slot; holding: Holding; relations: ReturnType<typeof openRelations> }> {
    const own = openSlot({ url, name: `rig ${partition}` })
    const { term } = await own.run((sql) => raiseTerm(sql, 'rig', topic, partition, 'rig'))
    const relations = openRelations({ source: options.source ?? 'INFORMIX', destination: 'POSTGRESQL', autoCreate: options.autoCreate ?? true, log })
    return { slot: own, holding: { group: 'rig', topic, partition, term }, relations }
  }
  function of(partition: number): Promise<{ slot: Slot; holding: Holding; relations: ReturnType<typeof openRelations> }> {
    const known = slots.get(partition) ?? open(partition)
    slots.set(partition, known)
    return known
  }
  async function rows(text: string, args: (string | number | null)[] = []): Promise<Record<string, unknown>[]> {
    return slot.run(async (sql) => [...await sql.unsafe<Record<string, unknown>[]>(text, args)])
  }
  return {
    slot,
    async apply(partition, ...arrivals) {
      const part = await of(partition)
      const next = BigInt(arrivals.at(-1)?.offset ?? -1) + 1n
      return applyArrivals({ slot: part.slot, relations: part.relations, clockTolerance: 300_000, log }, part.holding, arrivals, next)
    },
    holding: async (partition) => (await of(partition)).holding,
    rows,
    async statuses() {
      const all = await rows('select seq_id, status from inbox.applied order by seq_id')
      return Object.fromEntries(all.map((row) => [String(row['seq_id']), String(row['status'])]))
    },
    async close() {
      await Promise.all([...slots.values()].map(async (part) => (await part).slot.close()))
      await slot.close()
    },
  }
}
