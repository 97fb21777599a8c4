import type { Workload } from '../workload.ts'
import type { Parts, SourceChange } from './document.ts'
import { batch, mixed } from './postings.ts'
import { openTable, plainly, unlike } from './table.ts'

const TABLE = 'create table torture.shift (id integer primary key, label text not null, note text)'
const BLOCKS = 60
const WIDTH = 100
/** The place of a block that no row has but in the midst of a transaction. */
const FREE = 99
const HIGHEST = 40

/**
 * Small runs of rows whose keys move: `id = id + 1` and back, swaps and rotations through a free value, in the order in
 * which a source with a unique key makes them. Blocks are visited again and again.
 *
 * No two rows are alike but for the key: such ones cannot be told apart (docs/decisions/0002). The one promise is that
 * the rows at the end are the source's; how many key changes waited as KEY_SHIFT meanwhile is not said.
 */
export function shift({ random, clock }: Parts): Workload {
  const table = openTable('shift', clock)
  const blocks: { base: number; ids: number[] }[] = []
  let labels = 0

  const move = (from: number, to: number): SourceChange => table.move(String(from), String(to), { ...table.get(String(from)), id: String(to) })

  function newBlock(): SourceChange[] {
    const base = blocks.length * WIDTH + 1
    const ids = Array.from({ length: 3 + random.below(4) }, (_, at) => base + at)
    blocks.push({ base, ids })
    return ids.map((id) => table.insert(String(id), { id: String(id), label: `row ${labels += 1}`, note: null }))
  }
  /** All rows one up, the highest first, or one down, the lowest first: no two have one key at the same moment. */
  function slide(block: (typeof blocks)[number]): SourceChange[] {
    const { base, ids } = block
    const up = ids[0] === base || ((ids.at(-1) ?? 0) < base + HIGHEST && random.chance(0.5))
    const by = up ? 1 : -1
    const moved = (up ? ids.toReversed() : ids).map((id) => move(id, id + by))
    block.ids = ids.map((id) => id + by)
    return moved
  }
  /** Each of some rows takes the key of the next one, the last one that of the first; of two it is a swap. */
  function rotate({ base, ids }: (typeof blocks)[number], size: number): SourceChange[] {
    const begin = random.below(ids.length - size + 1)
    const turn = ids.slice(begin, begin + size)
    const [first = 0] = turn
    const changes = [move(turn.at(-1) ?? 0, base + FREE)]
    for (let at = turn.length - 2; at >= 0; at -= 1) changes.push(move(turn[at] ?? 0, turn[at + 1] ?? 0))
    return [...changes, move(base + FREE, first)]
  }
  function note({ ids }: (typeof blocks)[number]): SourceChange[] {
    const id = String(random.pick(ids))
    return [table.update(id, { ...table.get(id), note: random.chance(0.3) ? null : `note ${random.below(100)}` })]
  }

  return {
    name: 'shift',
    tables: TABLE,
    next() {
      if (blocks.length < BLOCKS && (blocks.length < 3 || random.chance(0.2))) return batch(newBlock(), random)
      const block = random.pick(blocks)
      const kind = random.below(100)
      if (kind < 40) return mixed(slide(block), random)
      if (kind < 60) return mixed(rotate(block, 2), random)
      if (kind < 75) return mixed(rotate(block, block.ids.length), random)
      return mixed(kind < 90 ? note(block) : [...note(block), ...slide(block), ...note(block)], random)
    },
    faults: (sql) => unlike(sql, 'shift', 'id', table.rows, plainly('label', 'note')),
  }
}
