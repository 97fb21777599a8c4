import { readFileSync } from 'node:fs'
import { stripTypeScriptTypes } from 'node:module'
import { join } from 'node:path'
import test from 'ava'
import { connect, freshDatabase } from '../../test/support/database.ts'
import { until } from '../../test/support/until.ts'
import { FAILPOINTS, SQL_FAILPOINTS, SQL_WAITING } from './failpoints.ts'
import { MUTANTS } from './mutants.ts'
import { plantSql, type SqlPlant } from './plant-sql.ts'
import { plantedFile, type Plant } from './plant.ts'

/** What a campaign plants with a mutant: all steps but those whose place it changes. */
function withSteps(plants: readonly Plant[]): Plant[] {
  const free = FAILPOINTS.filter(({ file, find }) => !plants.some((plant) => plant.file === file && (plant.find.includes(find) || find.includes(plant.find))))
  return [...plants, ...free]
}

function parses(plants: readonly Plant[]): void {
  for (const file of new Set(plants.map((plant) => plant.file))) stripTypeScriptTypes(plantedFile(file, plants))
}

test('every labelled step has its place, alone and among all others', (t) => {
  for (const step of FAILPOINTS) t.notThrows(() => parses([step]), step.name)
  t.notThrows(() => parses(FAILPOINTS))
  t.is(new Set(FAILPOINTS.map(({ name }) => name)).size, FAILPOINTS.length)
  for (const { name, replace } of FAILPOINTS) {
    t.regex(name, /^(listener|relay|consumer)\./)
    t.true(replace.includes(`hit?.('${name}')`), name)
  }
})

test('nothing of a step is in the files that ship', (t) => {
  for (const file of new Set(FAILPOINTS.map((step) => step.file))) {
    t.false(readFileSync(join(import.meta.dirname, '..', '..', file), 'utf8').includes('hit?.('), file)
  }
})

for (const { name, plants, sql = [], faults } of MUTANTS) {
  test(`the bug ${name} has its places, also among the steps`, (t) => {
    t.true(plants.length + sql.length > 0)
    const all = withSteps(plants)
    if (plants.length > 0) t.notThrows(() => parses(plants))
    t.notThrows(() => parses(all))
    // A fault that waits for a step needs the step.
    for (const fault of faults.filter((one) => one.startsWith('failpoint:'))) t.true(all.some((plant) => `failpoint:${plant.name}` === fault), fault)
  })
}

test('a plant without a place is refused', async (t) => {
  t.throws(() => plantedFile('services/runtime/slot.ts', [{ name: 'none', file: 'services/runtime/slot.ts', find: 'no such text', replace: '' }]), { message: /0 places/ })
  const { url, drop } = await freshDatabase()
  const sql = connect(url, { max: 1 })
  await t.throwsAsync(plantSql(sql, [{ name: 'none', routine: 'inbox.apply', find: 'no such text', replace: '' }]), { message: /0 places/ })
  await sql.end()
  await drop()
})

test('every plant of the database has its place, behind all steps', async (t) => {
  const { url, drop } = await freshDatabase()
  const sql = connect(url, { max: 1 })
  const undone = new Error('undone')
  async function plantAndUndo(plants: readonly SqlPlant[]): Promise<void> {
    await t.throwsAsync(sql.begin(async (within) => {
      await plantSql(within, plants)
      throw undone
    }), { is: undone }, plants.at(-1)?.name)
  }
  await plantAndUndo(SQL_FAILPOINTS)
  await sql`create schema torture`
  await sql`create table torture.refused (id integer)`
  await plantAndUndo([...SQL_FAILPOINTS, ...SQL_WAITING])
  for (const { sql: plants = [] } of MUTANTS) if (plants.length > 0) await plantAndUndo([...SQL_FAILPOINTS, ...plants])
  await sql.end()
  await drop()
  t.pass()
})

test('a step of the database ends its backend once, at the pass it is armed for', async (t) => {
  const { url, drop } = await freshDatabase()
  const sql = connect(url, { max: 1 })
  const pass = async (): Promise<string> => {
    const passing = connect(url, { max: 1 })
    const outcome = await passing`select torture.hit('apply.guard')`.then(() => 'passed', (error: unknown) => (error instanceof Error && 'code' in error ? String(error.code) : 'lost'))
    await passing.end({ timeout: 1 })
    return outcome
  }
  await plantSql(sql, SQL_FAILPOINTS)
  t.is(await pass(), 'passed')
  await sql`insert into torture.armed (label, "left") values ('apply.guard', 2)`
  t.is(await pass(), 'passed')
  t.deepEqual([...await sql`select torture.fired('apply.guard') as fired`], [{ fired: false }])
  t.not(await pass(), 'passed')
  await until(async () => (await sql<{ fired: boolean }[]>`select torture.fired('apply.guard') as fired`)[0]?.fired === true)
  t.is(await pass(), 'passed')
  await sql.end()
  await drop()
})
