import test from 'ava'
import { freshDatabase } from '../test/support/database.ts'
import { outboxConnection } from '../test/support/events.ts'
import { loadRelations, meetRelation, rememberKeys } from './relation.ts'
import type { Sql } from './sql.ts'

const database = await freshDatabase()
const sql = outboxConnection(database.url)

test.after.always(async () => {
  await sql.end({ timeout: 5 })
  await database.drop()
})

test.serial('a relation met at first sight takes the key of a table that exists', async (t) => {
  await sql.unsafe('create schema testdb; create table testdb.test (b text, a integer, c text, primary key (a, b))').simple()
  t.like(await meetRelation(sql, 'INFORMIX', 'testdb', 'test'), { knownFrom: 'target', keyColumns: ['a', 'b'], epoch: 1, state: 'ACTIVE', revision: 1, columns: [] })
  t.like(await meetRelation(sql, 'INFORMIX', 'testdb', 'other'), { knownFrom: 'payload', keyColumns: null })
  t.deepEqual((await loadRelations(sql)).map(({ sourceTable }) => sourceTable), ['test', 'other'])
})

test.serial('keys are remembered, met once by many, and refreshed', async (t) => {
  let statements = 0
  const keys = rememberKeys(async <T>(work: (client: Sql) => PromiseLike<T>) => {
    statements += 1
    return work(sql)
  }, 'INFORMIX')
  t.is(keys.keyOf('testdb', 'test'), undefined)
  t.deepEqual(await Promise.all([keys.meet('testdb', 'test'), keys.meet('testdb', 'test')]), [['a', 'b'], ['a', 'b']])
  t.is(statements, 1)
  await keys.meet('testdb', 'other')
  t.is(keys.keyOf('testdb', 'other'), null)
  await sql`update outbox.relation set key_columns = '{id}' where source_table = 'other'`
  await keys.refresh()
  t.deepEqual(keys.keyOf('testdb', 'other'), ['id'])
})

test.serial('a relation that could not be met is asked for again', async (t) => {
  let away = true
  const keys = rememberKeys(async <T>(work: (client: Sql) => PromiseLike<T>) => {
    if (away) throw new Error('away')
    return work(sql)
  }, 'INFORMIX')
  await t.throwsAsync(keys.meet('testdb', 'test'), { message: 'away' })
  away = false
  t.deepEqual(await keys.meet('testdb', 'test'), ['a', 'b'])
})
