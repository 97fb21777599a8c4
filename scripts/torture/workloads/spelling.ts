import type { Random } from '../../demo/random.ts'
import type { Workload } from '../workload.ts'
import type { Parts, SourceChange, SourceRow } from './document.ts'
import { mixed, sizeOf } from './postings.ts'
import { openTable, plainly, unlike, type SourceTable } from './table.ts'

/** A table whose key has several spellings. `key` prints the one canonical text of a row's key. */
type Kind = {
  table: string
  tables: string
  key: string
  spell: (key: string, random: Random) => Record<string, string>
  keyOf: (number: number) => string
}

const KEYS = 24

const KINDS: readonly Kind[] = [
  {
    table: 'spelled_decimal',
    tables: 'create table torture.spelled_decimal (code numeric primary key, label text not null, n integer)',
    key: 'trim_scale(code)',
    keyOf: (number) => String(number / 4 - 3),
    spell: (key, random) => ({ code: decimal(key, random) }),
  },
  {
    table: 'spelled_char',
    tables: 'create table torture.spelled_char (code char(8) primary key, label text not null, n integer)',
    key: `rtrim(code::text, ' ')`,
    keyOf: (number) => `C${number}`,
    spell: (key, random) => ({ code: padded(key, 8, random) }),
  },
  {
    table: 'spelled_pair',
    tables: 'create table torture.spelled_pair (branch integer, code varchar(10), label text not null, n integer, primary key (branch, code))',
    key: `branch || '/' || rtrim(code, ' ')`,
    keyOf: (number) => `${number % 5}/B${Math.floor(number / 5)}`,
    spell(key, random) {
      const [branch = '', code = ''] = key.split('/')
      return { branch: `${'0'.repeat(random.below(4))}${branch}`, code: padded(code, 10, random) }
    },
  },
]

/**
 * Rows whose key comes spelled now so, now otherwise: 7, 007 and 7.0 are one number, and Informix ignores blanks at the
 * end. The target's type says what is equal; the spellings of one row lie in different lanes, so its changes overtake each other.
 */
export function spelling({ random, clock }: Parts): Workload {
  const tables = KINDS.map((kind) => ({ ...kind, rows: openTable(kind.table, clock) }))
  let labels = 0

  /** The change with both keys in spellings of their own. */
  function spelled(change: SourceChange, kind: Kind, from: string, to: string): SourceChange {
    const first = kind.spell(from, random)
    const second = from === to && random.chance(0.8) ? first : kind.spell(to, random)
    return { ...change, before: change.before && { ...change.before, ...first }, after: change.after && { ...change.after, ...second } }
  }
  function change(): SourceChange {
    const kind = random.pick(tables)
    const rows: SourceTable = kind.rows
    const some = rows.size() > KEYS / 2 && random.chance(0.8) ? rows.any(random) : kind.keyOf(1 + random.below(KEYS))
    if (!rows.has(some)) {
      const inserted: SourceRow = { ...kind.spell(some, random), label: `label ${labels += 1}`, n: '0' }
      return spelled(rows.insert(some, inserted), kind, some, some)
    }
    const row = rows.get(some)
    const action = random.below(100)
    if (action < 12) return spelled(rows.remove(some), kind, some, some)
    const to = kind.keyOf(1 + random.below(KEYS))
    if (action < 28 && !rows.has(to)) return spelled(rows.move(some, to, row), kind, some, to)
    return spelled(rows.update(some, { ...row, n: String(Number(row['n']) + 1) }), kind, some, some)
  }

  return {
    name: 'spelling',
    tables: KINDS.map((kind) => kind.tables).join(';\n'),
    next: () => mixed(Array.from({ length: labels === 0 ? 2 * KEYS : sizeOf(random, 4) }, change), random),
    async faults(sql) {
      const faults = await Promise.all(tables.map(({ table, key, rows }) => unlike(sql, table, key, rows.rows, plainly('label', 'n'))))
      return faults.flat()
    },
  }
}

function decimal(key: string, random: Random): string {
  const [, sign = '', digits = ''] = /^(-?)(.*)$/.exec(key) ?? []
  const fraction = digits.includes('.') ? '0'.repeat(random.below(4)) : random.pick(['', '', '.0', '.00', '.0000000', '.'])
  return `${sign}${'0'.repeat(random.below(3))}${digits}${fraction}${random.chance(0.1) ? 'e0' : ''}`
}

function padded(key: string, width: number, random: Random): string {
  return key.padEnd(random.chance(0.4) ? key.length : width - random.below(3), ' ')
}
