import type { Random } from '../../demo/random.ts'
import type { Posting, Workload } from '../workload.ts'
import type { Parts, SourceChange, SourceRow } from './document.ts'
import { batch, singles, sizeOf } from './postings.ts'
import { openTable, plainly, unlike } from './table.ts'

const TABLE = `
create table torture.churn (
  id integer primary key, stamp text not null, tag varchar(30) not null,
  amount numeric(12,2), day date, moment timestamp(3), note text
)`
const FEWEST = 40
const MOST = 3_000
const LARGEST_BATCH = 20

const TAGS = ['NULL', 'null', 'Null', '', 'new', 'Émile', '花子', 'ends in blanks  ', ' begins with one', 'error code 5']
const NOTES = [
  'first order', 'sees the invoice of May', 'paid — at last', '', 'trailing  ', '4" screen', 'C:\\temp\\new', 'two\nlines', 'tab\there',
  'round 1/2 "final"', 'a\r\nb', '{"json": "in text"}', '\u{1f40c} and é', "it's", '%s $1 ? :x', 'x', 'back\\',
]

/**
 * Rows are inserted, updated, deleted, inserted again and moved to other keys, in transactions that may touch one row
 * several times. No two rows are alike: of such ones a key change cannot tell which it means (docs/decisions/0002).
 */
export function churn({ random, clock }: Parts): Workload {
  const table = openTable('churn', clock)
  const free: string[] = []
  let lastId = 0
  let stamps = 0

  const freeId = (): string => {
    const again = random.chance(0.4) ? free.splice(random.below(free.length), 1)[0] : undefined
    return again !== undefined && !table.has(again) ? again : String(lastId += 1)
  }
  const remember = (id: string): void => {
    free.push(id)
    if (free.length > 200) free.shift()
  }
  function insert(): SourceChange {
    const id = freeId()
    return table.insert(id, { ...newRow(random), id, stamp: `s${stamps += 1}` })
  }

  function change(): SourceChange {
    const kind = random.below(100)
    if (table.size() < FEWEST || (kind < 25 && table.size() < MOST)) return insert()
    const id = table.any(random, random.chance(0.25) ? 5 : MOST)
    const row = table.get(id)
    if (kind < 42 || table.size() >= MOST) {
      remember(id)
      return table.remove(id)
    }
    // An update writes null as NULL, so the note that says NULL must go with the next one, and not with its row's key.
    if (row['note'] === 'NULL') return table.update(id, { ...row, note: note(random) })
    if (kind < 43) {
      remember(id)
      const to = freeId()
      return table.move(id, to, { ...row, id: to })
    }
    return table.update(id, random.chance(0.03) ? row : { ...row, ...changed(random) })
  }

  return {
    name: 'churn',
    tables: TABLE,
    next(): Posting[] {
      if (random.chance(0.12)) return batch(Array.from({ length: 2 + random.below(LARGEST_BATCH - 1) }, change), random)
      return singles(Array.from({ length: sizeOf(random) }, change), random)
    },
    faults: (sql) => unlike(sql, 'churn', 'id', table.rows, plainly('stamp', 'tag', 'amount', 'day', 'moment', 'note')),
  }
}

/** A row without its key and stamp. An insert leaves nulls out, so its note may say NULL. */
function newRow(random: Random): SourceRow {
  return {
    id: null, stamp: null, tag: random.pick(TAGS), amount: amount(random), day: day(random), moment: moment(random),
    note: random.chance(0.03) ? 'NULL' : note(random),
  }
}

function changed(random: Random): SourceRow {
  const made: Record<string, string | null> = {}
  for (let times = 1 + random.below(3); times > 0; times -= 1) {
    const column = random.pick(['tag', 'amount', 'day', 'moment', 'note'] as const)
    made[column] = column === 'tag' ? random.pick(TAGS) : { amount, day, moment, note }[column](random)
  }
  return made
}

function note(random: Random): string | null {
  return random.chance(0.25) ? null : `${random.pick(NOTES)}${random.chance(0.5) ? ` ${random.below(1_000)}` : ''}`
}

function amount(random: Random): string | null {
  return random.chance(0.15) ? null : `${random.chance(0.2) ? '-' : ''}${1 + random.below(999_999)}.${two(random.below(100))}`
}

function day(random: Random): string | null {
  return random.chance(0.2) ? null : `20${two(random.below(30))}-${two(1 + random.below(12))}-${two(1 + random.below(28))}`
}

/** Ends in a digit that Postgres prints too. */
function moment(random: Random): string | null {
  if (random.chance(0.2)) return null
  return `2026-${two(1 + random.below(12))}-${two(1 + random.below(28))} ${two(random.below(24))}:${two(random.below(60))}:${two(random.below(60))}.${two(random.below(100))}${1 + random.below(9)}`
}

function two(value: number): string {
  return String(value).padStart(2, '0')
}
