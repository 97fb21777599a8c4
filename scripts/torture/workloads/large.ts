import { hash } from 'node:crypto'
import type { Workload } from '../workload.ts'
import { documentOf, type Parts, type SourceChange, type SourceRow } from './document.ts'
import { singles } from './postings.ts'
import { openTable, unlike } from './table.ts'

const TABLE = 'create table torture.large (id integer primary key, name text, body text)'
const RECORD_LIMIT = 1_048_588
const SIZES = [0.9, 1, 1.1, 2.5]
const NEAR = 400
const ROWS = 8
// 86 letters of a hash, é, which is two bytes, and a line feed, which is printed as two.
const PIECE = 90

/** A text is kept as the numbers it is made from: some dozen of them would fill the memory of a long run. */
type Text = { seed: number; bytes: number }

/**
 * Changes whose body is about as large as a record may be, so that some go in chunks: inserts, updates with both images,
 * updates that leave the large column out, deletes. Bodies near the limit differ by some bytes, so that a few are just at it.
 */
export function large({ random, clock, recordLimit = RECORD_LIMIT }: Parts): Workload {
  const table = openTable('large', clock)
  const texts = new Map<string, Text>()
  let lastId = 0
  let changes = 0

  const budget = (): number => Math.floor(recordLimit * random.pick(SIZES)) + random.below(2 * NEAR) - NEAR
  /** The change with texts in place of what stands for them, and as large as `bytes` with its newest text. */
  function filled(change: SourceChange, id: string, bytes: number): SourceChange {
    const before = change.before && { ...change.before, body: textOf(texts.get(id)) }
    const bare = Buffer.byteLength(documentOf({ ...change, before, after: change.after && { ...change.after, body: '' } }, random))
    texts.set(id, { seed: random.below(2 ** 31), bytes: Math.max(1, bytes - bare) })
    return { ...change, before, after: change.after && { ...change.after, body: textOf(texts.get(id)) } }
  }
  function change(): SourceChange {
    const name = `change ${changes += 1}`
    const kind = random.below(100)
    if (table.size() < 2 || (kind < 40 && table.size() < ROWS)) {
      const id = String(lastId += 1)
      return filled(table.insert(id, { id, name, body: null }), id, budget())
    }
    const id = table.any(random)
    if (kind < 60) return filled(table.update(id, { id, name, body: null }), id, budget())
    if (kind < 80) return table.update(id, { id, name, body: null }, ['body'])
    const before: SourceRow = { ...table.get(id), body: textOf(texts.get(id)) }
    texts.delete(id)
    return { ...table.remove(id), before }
  }

  return {
    name: 'large',
    tables: TABLE,
    next: () => singles([change()], random),
    faults: (sql) => unlike(sql, 'large', 'id', new Map([...table.rows].map(([id, row]) => [id, { ...row, body: digest(textOf(texts.get(id))) }])),
      { name: 'name', body: `encode(sha256(convert_to(body, 'UTF8')), 'hex')` }),
  }
}

/** A text that does not compress well, as large as said where the newer dialect prints it. */
function textOf(text: Text | undefined): string {
  if (text === undefined) throw new Error('the row has no text')
  const { seed, bytes } = text
  const pieces = Array.from({ length: Math.floor(bytes / PIECE) }, (_, at) => `${hash('sha512', `${seed} ${at}`, 'base64url')}é\n`)
  return `${pieces.join('')}${'x'.repeat(bytes % PIECE)}`
}

function digest(text: string): string {
  return hash('sha256', text)
}
