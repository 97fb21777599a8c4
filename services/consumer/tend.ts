import type { Log } from '../runtime/log.ts'
import type { TakeUpParts } from './parked.ts'
import { resumeRelation, stoppedRelations } from './resume.ts'
import { unparkDue } from './unpark.ts'

/** Milliseconds between two looks at what is due, and between two tries of a stopped relation: 1 s, doubling up to 15 s. */
const LOOK = 250
const TRY = { first: 1_000, most: 15_000 }

/**
 * Looks after what is set aside, beside the applying and on a connection of its own: changes that wait are tried again,
 * and a relation that was stopped by a failure goes on by itself once its table can be written. Ends with `signal`.
 */
export async function tendParked(parts: TakeUpParts & { log: Log; signal: AbortSignal }): Promise<void> {
  const tries = new Map<number, { next: number; wait: number }>()
  let failures = 0
  while (!parts.signal.aborted) {
    let tried = 0
    try {
      await tryStopped(parts, tries)
      tried = await unparkDue(parts)
      if (failures > 0) parts.log.info('parked changes are looked after again')
      failures = 0
    } catch (error) {
      failures += 1
      if (failures === 1 || failures % 60 === 0) parts.log.warn({ failures, error }, 'parked changes cannot be looked after')
    }
    if (tried === 0 || failures > 0) await rest(Math.min(LOOK * 2 ** Math.min(failures, 10), 10_000), parts.signal)
  }
}

async function tryStopped(parts: TakeUpParts & { log: Log; signal: AbortSignal }, tries: Map<number, { next: number; wait: number }>): Promise<void> {
  const stopped = await parts.slot.run(stoppedRelations)
  for (const id of tries.keys()) if (!stopped.some((relation) => relation.id === id)) tries.delete(id)
  for (const relation of stopped) {
    const known = tries.get(relation.id) ?? { next: performance.now() + TRY.first, wait: TRY.first }
    tries.set(relation.id, known)
    if (relation.stoppedBy === 'operator' || performance.now() < known.next) continue
    if (await resumeRelation(parts, relation, parts.signal)) tries.delete(relation.id)
    else {
      known.wait = Math.min(known.wait * 2, TRY.most)
      known.next = performance.now() + known.wait
    }
  }
}

async function rest(ms: number, signal: AbortSignal): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>()
  const timer = setTimeout(resolve, ms)
  const end = (): void => resolve()
  signal.addEventListener('abort', end)
  await promise
  clearTimeout(timer)
  signal.removeEventListener('abort', end)
}
