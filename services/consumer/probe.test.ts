import test from 'ava'
import { pino } from 'pino'
import { arrival, consumerRig } from '../../test/support/arrivals.ts'
import { freshDatabase } from '../../test/support/database.ts'
import { candidatesOf, probe } from './probe.ts'
import { openRelations } from './relations.ts'

test('what the types, NOT NULLs and CHECKs of a table refuse is known before it is sent, in the words of Postgres, and with it the changes of the same rows', async (t) => {
  const database = await freshDatabase()
  const rig = await consumerRig(database.url)
  t.teardown(async () => {
    await rig.close()
    await database.drop()
  })
  if (Number((await rig.rows(`select current_setting('server_version_num')::int as n`))[0]?.['n']) < 160_000) {
    t.log('PostgreSQL 15 cannot be asked: batches that fail are taken one by one there')
    return t.pass()
  }
  await rig.rows('create schema app')
  await rig.rows(`create table app.account (id integer primary key, name varchar(10) not null check (name <> 'bad'), born date,
    amount numeric(5, 2), constraint pair check (amount > 0 or born is null))`)
  const values = { id: '1', name: 'ok', born: '2026-01-01', amount: '1.00' }
  const changes = [
    arrival('account', 'INSERT', 1, values),
    arrival('account', 'INSERT', 2, { ...values, id: 'two' }),
    arrival('account', 'INSERT', 3, { ...values, id: '3', name: 'more than ten characters' }),
    arrival('account', 'INSERT', 4, { ...values, id: '4', name: null }),
    arrival('account', 'INSERT', 5, { ...values, id: '5', name: 'bad' }),
    arrival('account', 'INSERT', 6, { ...values, id: '6', amount: '-1' }),
    arrival('account', 'INSERT', 7, { ...values, id: '7', amount: '-1', born: null }),
    arrival('account', 'INSERT', 8, { ...values, id: '8', born: '30.02.2026' }),
    arrival('account', 'UPDATE', 9, { id: ['3', '3'], name: ['more than ten characters', 'fits'] }),
    arrival('account', 'DELETE', 10, { ...values, id: '10', name: 'more than ten characters' }),
    arrival('account', 'INSERT', 11, { ...values, id: '11', name: 'a\0b' }),
  ]
  const relations = openRelations({ source: 'INFORMIX', destination: 'POSTGRESQL', autoCreate: true, log: pino({ level: 'silent' }) })
  const prepared = await rig.slot.run((sql) => relations.prepare(sql, 'topic', changes))
  const { refused, among } = await probe(rig.slot, prepared, candidatesOf(changes, prepared.shape))
  const said = Object.fromEntries([...refused].map(([{ arrival: { identity } }, { sqlstate, message }]) => [identity.time, `${sqlstate} ${message}`]))
  t.deepEqual([...among].map((one) => one.arrival.identity.time), ['2', '3', '4', '5', '6', '8', '9', '11'])

  // As Postgres says it itself, change by change.
  const own: Record<string, string> = {}
  for (const change of changes.filter(({ change: { operation }, identity }) => operation === 'INSERT' && identity.time !== '11')) {
    const { id, name, born, amount } = Object.fromEntries(change.change.columns.map((column) => [column.name, column.new ?? null]))
    await rig.rows('insert into app.account (id, name, born, amount) values ($1::text::integer, $2::text, $3::text::date, $4::text::numeric(5, 2))', [id!, name!, born!, amount!])
      .catch((error: unknown) => { own[change.identity.time] = `${(error as { code: string }).code} ${(error as Error).message}` })
  }
  t.deepEqual(said, { ...own, 11: '22P05 a value has a character that Postgres cannot store (NUL, or half of a surrogate pair)' })
})
