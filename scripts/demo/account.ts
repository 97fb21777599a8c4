import type { Random } from './random.ts'

/** A row of shop.account as the source prints it; null where the column is null. */
export type AccountRow = {
  id: string
  owner: string
  balance: string | null
  opened: string | null
  changed: string | null
  note: string | null
}

/** The target of the generated changes, made before the service meets it: its types and its key are used as they are. */
export const ACCOUNT_TABLE = `
create schema shop;
create table shop.account (
  id integer primary key,
  owner varchar(60) not null,
  balance numeric(12,2),
  opened date,
  changed timestamp(3),
  note text
)`

const OWNERS = ['Ada', 'Björk', 'Chidi', 'Dolores', 'Émile', 'Farid', 'Grace', '花子', 'Ivan', 'Jorge']
const PLAIN = ['first order', 'asked to call back', 'moved', 'sees the invoice of May', 'prefers e-mail', 'paid — at last']
// What the older dialect cannot send: it escapes nothing, and these would break its JSON.
const AWKWARD = ['4" screen', 'C:\\temp\\new', 'two\nlines', 'tab\there', 'round 1/2 "final"', 'a\r\nb', '{"json": "in text"}']

/** A new row under this id. Even ids are those of the newer dialect, which can carry any character. */
export function newAccount(id: number, random: Random): AccountRow {
  return {
    id: String(id),
    owner: `${random.pick(OWNERS)} ${id}`,
    balance: random.chance(0.1) ? null : amount(random),
    opened: random.chance(0.2) ? null : `20${two(random.below(24))}-${two(1 + random.below(12))}-${two(1 + random.below(28))}`,
    changed: random.chance(0.2) ? null : moment(random),
    note: random.chance(0.4) ? null : note(id, random),
  }
}

/** The row with one to three of its columns changed. */
export function changedAccount(row: AccountRow, random: Random): AccountRow {
  const changed = { ...row }
  for (let times = 1 + random.below(3); times > 0; times -= 1) {
    const column = random.pick(['owner', 'balance', 'changed', 'note'] as const)
    if (column === 'owner') changed.owner = `${random.pick(OWNERS)} ${row.id}`
    if (column === 'balance') changed.balance = random.chance(0.1) ? null : amount(random)
    if (column === 'changed') changed.changed = moment(random)
    if (column === 'note') changed.note = random.chance(0.3) ? null : note(Number(row.id), random)
  }
  return changed
}

function note(id: number, random: Random): string {
  return `${random.pick(id % 2 === 0 ? [...PLAIN, ...AWKWARD] : PLAIN)} ${random.below(1_000)}`
}

function amount(random: Random): string {
  return `${random.chance(0.2) ? '-' : ''}${random.below(1_000_000)}.${two(random.below(100))}`
}

function moment(random: Random): string {
  const day = `2026-${two(1 + random.below(12))}-${two(1 + random.below(28))}`
  return `${day} ${two(random.below(24))}:${two(random.below(60))}:${two(random.below(60))}.${String(random.below(1_000)).padStart(3, '0')}`
}

function two(value: number): string {
  return String(value).padStart(2, '0')
}
