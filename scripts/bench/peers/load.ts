import postgres, { type Sql } from 'postgres'

import { rowOf, type Step } from '../changes.ts'
import type { Bench } from '../place.ts'
import type { Pair } from './pair.ts'

/**
 * Changes of a backlog in one transaction. Every peer that reads the log does better with large ones, and a subscriber
 * commits once for each, so this is to their advantage.
 */
const TOGETHER = 1_000
/** Writers of a run at a rate: all changes of a row are one writer's, so that they are made in their order. */
const WRITERS = 8

const PLAY = `
  create or replace function bench.play(steps json) returns void language plpgsql as $$
  declare step record;
  begin
    for step in select * from json_to_recordset(steps) as s(before integer, after integer, id bigint, n integer, at timestamp, note text, due bigint) loop
      if step.before = 0 then
        insert into bench.item (id, n, at, note, due) values (step.id, step.n, step.at, step.note, step.due);
      elsif step.after = 0 then
        delete from bench.item where id = step.id;
      else
        update bench.item set n = step.n, at = step.at, note = step.note, due = step.due where id = step.id;
      end if;
    end loop;
  end $$`

/** Makes all changes in the source, in their order, as fast as it takes them. */
export async function playBacklog(bench: Bench, pair: Pair, steps: readonly Step[], bytes: number): Promise<void> {
  await pair.source.sql.unsafe(PLAY)
  for (let at = 0; at < steps.length; at += TOGETHER) {
    bench.signal.throwIfAborted()
    const due = Date.now() * 1_000
    const rows = steps.slice(at, at + TOGETHER).map(({ before, after, id }) => ({ before, after, due, ...rowOf(id, after, bytes) }))
    await pair.source.sql`select bench.play(${JSON.stringify(rows)}::text::json)`
  }
}

/** Makes changes one by one, each a transaction of its own. */
export type Writers = { take: (step: Step, dueMicros: number) => Promise<void>; close: () => Promise<void> }

/** `write` makes one change with one statement. */
export function openWriters(pair: Pair, write: (sql: Sql, step: Step, dueMicros: number) => Promise<void>): Writers {
  const writers = Array.from({ length: WRITERS }, () => ({
    sql: postgres(pair.source.url, { max: 1, onnotice: () => {}, connection: { TimeZone: 'UTC' } }), last: Promise.resolve(),
  }))
  return {
    // One statement after the other: a connection of postgres.js that is handed many while it opens runs some of them out of turn.
    take: async (step, dueMicros) => {
      const writer = writers[step.id % WRITERS]
      if (writer === undefined) throw new Error('no writer')
      writer.last = writer.last.then(() => write(writer.sql, step, dueMicros))
      await writer.last
    },
    close: async () => {
      await Promise.all(writers.map(({ sql }) => sql.end({ timeout: 5 })))
    },
  }
}

/** In the table itself, with the time it was due in the row. */
export async function changeRow(sql: Sql, { id, before, after }: Step, how: { bytes: number; dueMicros: number }): Promise<void> {
  const row = rowOf(id, after, how.bytes)
  const due = String(how.dueMicros)
  if (before === 0) await sql`insert into bench.item (id, n, at, note, due) values (${row.id}, ${row.n}, ${row.at}, ${row.note}, ${due})`
  else if (after === 0) await sql`delete from bench.item where id = ${row.id}`
  else await sql`update bench.item set n = ${row.n}, at = ${row.at}, note = ${row.note}, due = ${due} where id = ${row.id}`
}
