import type { Workload } from '../workload.ts'
import type { Parts } from './document.ts'
import { batch, mixed } from './postings.ts'
import { openTable, plainly, unlike } from './table.ts'

const TABLE = 'create table torture.bank (id integer primary key, owner text not null, balance numeric(14,2) not null, transfers integer not null)'
const ACCOUNTS = 50
const BEGIN_CENTS = 100_000

/** Transfers between accounts, each a transaction of two rows. Half of one would show in the total, as what was lost or done twice. */
export function bank({ random, clock }: Parts): Workload {
  const table = openTable('bank', clock)
  const account = (id: string, cents: number, transfers: number): Record<string, string> =>
    ({ id, owner: `owner ${id}`, balance: (cents / 100).toFixed(2), transfers: String(transfers) })

  function book(id: string, cents: number): ReturnType<typeof table.update> {
    const { balance, transfers } = table.get(id)
    return table.update(id, account(id, Math.round(Number(balance) * 100) + cents, Number(transfers) + 1))
  }

  return {
    name: 'bank',
    tables: TABLE,
    next() {
      if (table.size() === 0) return batch(Array.from({ length: ACCOUNTS }, (_, at) => table.insert(String(at + 1), account(String(at + 1), BEGIN_CENTS, 0))), random)
      const from = random.below(ACCOUNTS)
      const to = (from + 1 + random.below(ACCOUNTS - 1)) % ACCOUNTS
      const cents = 1 + random.below(20_000)
      return mixed([book(String(from + 1), -cents), book(String(to + 1), cents)], random)
    },
    async faults(sql) {
      const [sum] = await sql<{ total: string }[]>`select coalesce(sum(balance), 0)::text as total from torture.bank`
      const total = (table.size() * BEGIN_CENTS / 100).toFixed(2)
      return [
        ...await unlike(sql, 'bank', 'id', table.rows, plainly('owner', 'balance', 'transfers')),
        ...(Number(sum?.total) === Number(total) ? [] : [`the balances of bank are ${sum?.total ?? ''} together, expected ${total}`]),
      ]
    },
  }
}
