import type { Sql } from 'postgres'

import { few, type Oracle } from './oracle.ts'

/** Tables whose rows count their own changes, and the column that does; their images are always full. */
const COUNTED: Readonly<Record<string, string>> = { skew: 'n', bank: 'transfers' }

/**
 * Watches tables of a run from inside: every effect on their rows is kept in the order in which it happened, with the
 * number that the change carried. A trigger flags and never blocks.
 */
export async function watchEffects(target: Sql, workloads: readonly string[]): Promise<void> {
  await target.unsafe(`
    create table torture.effect (at bigint generated always as identity, relation text not null, key text not null, n integer not null);
    create function torture.note() returns trigger language plpgsql as $$
    begin
      insert into torture.effect (relation, key, n) values (tg_table_name, to_jsonb(new) ->> 'id', (to_jsonb(new) ->> tg_argv[0])::integer);
      return null;
    end $$`)
  for (const [table, column] of Object.entries(COUNTED)) {
    if (!workloads.includes(table)) continue
    await target.unsafe(`create trigger note after insert or update on torture.${table} for each row execute function torture.note('${column}')`)
  }
}

/** I6, I7: no change has its effect on a row twice, and none has it after a newer one had. */
export const effects: Oracle = {
  name: 'effects',
  async judge({ target }) {
    const [count] = await target<{ n: number }[]>`select count(*)::integer as n from torture.effect`
    const wrong = await target<{ relation: string; key: string; n: string; newest: string }[]>`
      select relation, key, n::text, newest::text from (
        select relation, key, n, max(n) over (partition by relation, key order by at rows between unbounded preceding and 1 preceding) as newest
        from torture.effect
      ) as e where n <= newest order by relation, key limit 1000`
    const say = ({ relation, key, n, newest }: (typeof wrong)[number]): string => `${relation} ${key}: ${n} after ${newest}`
    return {
      figure: `${count?.n} effects`,
      faults: [
        ...few('effects that came twice', wrong.filter(({ n, newest }) => n === newest).map(say)),
        ...few('effects older than one before', wrong.filter(({ n, newest }) => n !== newest).map(say)),
      ],
    }
  },
}
