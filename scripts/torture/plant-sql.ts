import type { Sql } from 'postgres'

/** A change of one function of a migrated database, in which `find` stands exactly once, or statements that are run in it. */
export type SqlPlant = { name: string } & ({ routine: string; find: string; replace: string } | { statements: string })

/** Plants into a migrated database, one after the other. Throws where a function has no place, or more than one. */
export async function plantSql(sql: Pick<Sql, 'unsafe'>, plants: readonly SqlPlant[]): Promise<void> {
  for (const plant of plants) await sql.unsafe('statements' in plant ? plant.statements : await plantedRoutine(sql, plant))
}

async function plantedRoutine(sql: Pick<Sql, 'unsafe'>, { name, routine, find, replace }: Extract<SqlPlant, { routine: string }>): Promise<string> {
  const [row] = await sql.unsafe<{ definition: string }[]>('select pg_get_functiondef($1::text::regproc::oid) as definition', [routine])
  const parts = (row?.definition ?? '').split(find)
  if (parts.length !== 2) throw new Error(`the plant "${name}" has ${parts.length - 1} places in ${routine}, not one`)
  return parts.join(replace)
}
