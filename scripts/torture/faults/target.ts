import { type Fault, insist, mend, type Rig, wait } from './fault.ts'

const AWAY_MS = 3_000
const LOCKED_MS = 4_000

/** A table that changes have come for. `created`: the service made it, and would mend it itself by adding what it lacks. */
type Table = { name: string; created: boolean; columns: string[] }

/** Any table of the run; undefined where none has come to be yet. */
async function anyTable(rig: Rig, fits: (table: Table) => boolean): Promise<Table | undefined> {
  const tables = (await insist(rig, () => rig.sql<Table[]>`
    select target_table as name, created, columns from outbox.relation
    where target_schema = 'torture' and target_table not in ('late', 'effect') and cardinality(columns) > 0
      and to_regclass(format('torture.%I', target_table)) is not null
    order by target_table`)).filter(fits)
  return tables.length === 0 ? undefined : rig.random.pick(tables)
}

/** Short, so that whoever waits behind this statement does not wait for long. */
async function alter(rig: Rig, statement: string): Promise<void> {
  await rig.sql.begin(async (sql) => {
    await sql`set local lock_timeout = '500ms'`
    await sql.unsafe(statement)
  })
}

/** Done, left so for a while, and undone. */
async function doneAndUndone(rig: Rig, done: string, undone: string): Promise<void> {
  await insist(rig, () => alter(rig, done))
  try {
    await wait(rig, AWAY_MS)
  } finally {
    await mend(rig, () => alter(rig, undone))
  }
}

/** Nobody else writes or reads a table for longer than the effect waits: its relation stops and goes on by itself. */
const locked: Fault = {
  name: 'target-locked', kind: 'target',
  async happen(rig) {
    const table = await anyTable(rig, () => true)
    if (table === undefined) return rig.noted('target-locked: no table yet')
    await rig.sql.begin(async (sql) => {
      await sql`lock table ${sql(`torture.${table.name}`)} in access exclusive mode`
      await wait(rig, LOCKED_MS)
    })
  },
}

/** A column has another name for a while. */
const altered: Fault = {
  name: 'target-altered', kind: 'target',
  async happen(rig) {
    const table = await anyTable(rig, ({ created }) => !created)
    if (table === undefined) return rig.noted('target-altered: no table yet')
    const [name, column, other] = [table.name, rig.random.pick(table.columns), 'torture_away'].map((one) => `"${one.replaceAll('"', '""')}"`)
    await doneAndUndone(rig, `alter table torture.${name} rename column ${column} to ${other}`, `alter table torture.${name} rename column ${other} to ${column}`)
  },
}

/** A table has another name for a while. */
const missing: Fault = {
  name: 'target-missing', kind: 'target',
  async happen(rig) {
    const table = await anyTable(rig, ({ created }) => !created)
    if (table === undefined) return rig.noted('target-missing: no table yet')
    const name = `"${table.name.replaceAll('"', '""')}"`
    await doneAndUndone(rig, `alter table torture.${name} rename to torture_away`, `alter table torture.torture_away rename to ${name}`)
  },
}

export const TARGETS: readonly Fault[] = [locked, altered, missing]
