import test from 'ava'
import type { ExecutionContext } from 'ava'
import { arrival, consumerRig } from '../../test/support/arrivals.ts'
import type { Rig } from '../../test/support/arrivals.ts'
import { connect, freshDatabase } from '../../test/support/database.ts'
import { until } from '../../test/support/until.ts'
import { raiseTerm } from './position.ts'

async function rig(t: ExecutionContext, ...ddl: string[]): Promise<Rig & { url: string }> {
  const database = await freshDatabase()
  const made = await consumerRig(database.url)
  t.teardown(async () => {
    await made.close()
    await database.drop()
  })
  for (const statement of ['create schema if not exists app', ...ddl]) await made.rows(statement)
  return { ...made, url: database.url }
}

const account = 'create table app.account (id integer primary key, name varchar(40), photo text)'

test('I7 a delete does not overtake the insert that another partition is applying', async (t) => {
  const { apply, rows, holding, url } = await rig(t, account)
  await apply(0, arrival('account', 'INSERT', 1, { id: '1', name: 'a' }))
  await apply(1, arrival('account', 'DELETE', 2, { id: '1', name: 'a' }))
  const { statement } = (await rows('select max(id) as statement from inbox.statement'))[0]!
  // Partition 0 has applied its insert of row 2 and has not committed yet.
  const sql = connect(url, { max: 1 })
  t.teardown(() => sql.end({ timeout: 1 }))
  const place = await holding(0)
  await sql`begin`
  await sql`select inbox.apply('rig', ${place.topic}, '{0}', array[${place.term}]::bigint[], ${statement as number},
    ${'[{"~i":1,"~op":"INSERT","~o":1,"~e":1,"~t":"10","~s":"900","~f":"900","id":"2","name":"x"}]'}::text::json, '{null}', '{null}', '{null}', '{null}')`
  const deleting = apply(1, arrival('account', 'DELETE', 11, { id: '2', name: 'x' }, 901))
  await until(async () => (await rows(`select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()`)).length > 0)
  await sql`commit`
  t.is(await deleting, 'OK')
  t.deepEqual(await rows('select id from app.account'), [])
})

test('I7 a row that was deleted is not brought back by its late insert, and the late one is superseded', async (t) => {
  const { apply, rows, statuses } = await rig(t, account)
  await apply(0, arrival('account', 'DELETE', 20, { id: '7', name: 'gone' }, 1))
  await apply(1, arrival('account', 'INSERT', 10, { id: '7', name: 'gone' }, 2))
  t.deepEqual(await rows('select id from app.account'), [])
  t.deepEqual(await statuses(), { 1: 'APPLIED', 2: 'SUPERSEDED' })
})

test('I7 id = id + 1 loses no row in any order of its changes', async (t) => {
  const orders = permutations([0, 1, 2])
  for (const [at, order] of orders.entries()) {
    const { apply, rows } = await rig(t, account)
    for (const id of [1, 2, 3]) await apply(0, arrival('account', 'INSERT', id, { id: String(id), name: `row ${id}` }))
    const shifts = [1, 2, 3].map((id) => arrival('account', 'UPDATE', 10 + id,
      { id: [String(id), String(id + 1)], name: [`row ${id}`, `row ${id}`], photo: ['NULL', 'NULL'] }))
    const moved = order.map((index) => shifts[index]!)
    if (at % 2 === 0) await apply(0, ...moved)
    else for (const [partition, one] of moved.entries()) await apply(partition, one)
    t.deepEqual(await rows('select id, name from app.account order by id'),
      [{ id: 2, name: 'row 1' }, { id: 3, name: 'row 2' }, { id: 4, name: 'row 3' }], `order ${order.join()}`)
  }
})

test('a key change that meets another row at its old key is parked as KEY_SHIFT and settles by itself', async (t) => {
  const { apply, rows, statuses } = await rig(t, account)
  await apply(0, arrival('account', 'INSERT', 1, { id: '1', name: 'old' }, 1))
  await apply(0, arrival('account', 'UPDATE', 5, { id: ['1', '2'], name: ['new', 'new'], photo: ['NULL', 'NULL'] }, 2))
  t.deepEqual(await rows('select id, name from app.account order by id'), [{ id: 1, name: 'old' }, { id: 2, name: 'new' }])
  t.is((await statuses())['2'], 'PARKED')
  // The update the source made before moving the row arrives late: now the stored row is the one that moved.
  await apply(1, arrival('account', 'UPDATE', 4, { id: ['1', '1'], name: ['old', 'new'], photo: ['NULL', 'NULL'] }, 3))
  t.deepEqual(await rows('select id, name from app.account order by id'), [{ id: 2, name: 'new' }])
  t.is((await statuses())['2'], 'APPLIED')
  t.deepEqual(await rows('select * from inbox.parked'), [])
})

test('I7 late partial images of a row that has left its key leave no ghost there', async (t) => {
  const { apply, rows } = await rig(t, account)
  const same: [string, string] = ['1', '1']
  await apply(0, arrival('account', 'UPDATE', 50, { id: ['1', '2'], name: ['a', 'a'], photo: ['p', 'p'] }))
  await apply(0, arrival('account', 'INSERT', 10, { id: '1', name: 'a', photo: 'p' }))
  await apply(0, arrival('account', 'UPDATE', 20, { id: same, name: ['a', 'b'] }))
  await apply(0, arrival('account', 'UPDATE', 30, { id: same, name: ['b', 'a'] }))
  t.deepEqual(await rows('select id, name, photo from app.account'), [{ id: 2, name: 'a', photo: 'p' }])
})

test('I7 a partial image erases nothing, in one batch or in several, in any order', async (t) => {
  const { apply, rows } = await rig(t, account)
  for (const [at, order] of permutations([0, 1, 2, 3]).entries()) {
    for (const together of [true, false]) {
      const id = String(at * 2 + Number(together))
      const same: [string, string] = [id, id]
      const changes = [
        arrival('account', 'INSERT', 1, { id, name: 'a', photo: 'large object' }),
        arrival('account', 'UPDATE', 2, { id: same, name: ['a', 'b'] }),
        arrival('account', 'UPDATE', 3, { id: same, photo: ['large object', 'larger'] }),
        arrival('account', 'UPDATE', 4, { id: same, name: ['b', 'c'] }),
      ]
      const arrivals = order.map((index) => changes[index]!)
      if (together) await apply(0, ...arrivals)
      else for (const [place, one] of arrivals.entries()) await apply(place % 2, one)
      t.deepEqual(await rows('select name, photo from app.account where id = $1', [id]), [{ name: 'c', photo: 'larger' }], `${order.join()} ${together}`)
    }
  }
})

test('16 and 016, 10 and 10.0000000, AB and AB with blanks are one row', async (t) => {
  const { apply, rows } = await rig(t, account,
    'create table app.rate (code char(6), level numeric, label varchar(20), primary key (code, level))')
  await apply(0, arrival('account', 'INSERT', 2, { id: '16', name: 'newer' }))
  await apply(0, arrival('account', 'INSERT', 1, { id: '016', name: 'older' }))
  t.deepEqual(await rows('select id, name from app.account'), [{ id: 16, name: 'newer' }])
  await apply(0, arrival('rate', 'INSERT', 2, { code: 'AB', level: '10', label: 'newer' }), arrival('rate', 'INSERT', 1, { code: 'AB    ', level: '10.0000000', label: 'older' }))
  t.deepEqual(await rows('select label from app.rate'), [{ label: 'newer' }])
  await apply(0, arrival('rate', 'UPDATE', 3, { code: ['AB  ', 'AB  '], level: ['1e1', '1e1'], label: ['newer', 'newest'] }))
  t.deepEqual(await rows('select label from app.rate'), [{ label: 'newest' }])
})

test('I7 all orders of five changes of one row, a delete and a key change among them, end in one state', async (t) => {
  const { apply, rows } = await rig(t, account)
  const image = (id: string, name: string): Record<string, string> => ({ id, name })
  const update = (from: [string, string], to: [string, string]) =>
    ({ id: [from[0], to[0]] as [string, string], name: [from[1], to[1]] as [string, string], photo: ['NULL', 'NULL'] as [string, string] })
  const orders = permutations([0, 1, 2, 3, 4])
  for (const [at, order] of orders.entries()) {
    const base = at * 1_000
    const [first, second] = [String(base + 1), String(base + 2)]
    const changes = [
      arrival('account', 'INSERT', 1, image(first, 'a')),
      arrival('account', 'UPDATE', 2, update([first, 'a'], [first, 'b'])),
      arrival('account', 'DELETE', 3, image(first, 'b')),
      arrival('account', 'INSERT', 4, image(first, 'c')),
      arrival('account', 'UPDATE', 5, update([first, 'c'], [second, 'd'])),
    ]
    const arrivals = order.map((index) => changes[index]!)
    if (at % 3 === 0) await apply(0, ...arrivals)
    else for (const [place, one] of arrivals.entries()) await apply(place % 3, one)
    t.deepEqual(await rows('select id, name from app.account where id between $1 and $2', [base, base + 999]),
      [{ id: base + 2, name: 'd' }], `order ${order.join()}`)
  }
})

test('five changes of a table without a key end in one table in all 120 orders', async (t) => {
  const { apply, rows } = await rig(t, 'create table app.log (line text, level text)')
  const changes = () => [
    arrival('log', 'INSERT', 1, { line: 'x', level: '1' }),
    arrival('log', 'INSERT', 2, { line: 'x', level: '1' }),
    arrival('log', 'UPDATE', 3, { line: ['x', 'y'], level: ['1', 'NULL'] }),
    arrival('log', 'DELETE', 4, { line: 'x', level: '1' }),
    arrival('log', 'INSERT', 5, { line: 'z' }),
  ]
  for (const [at, order] of permutations([0, 1, 2, 3, 4]).entries()) {
    await rows('truncate app.log')
    const all = changes()
    const arrivals = order.map((index) => all[index]!)
    if (at % 2 === 0) await apply(0, ...arrivals)
    else for (const [place, one] of arrivals.entries()) await apply(place % 3, one)
    t.deepEqual(await rows('select line, level from app.log order by line'), [{ line: 'y', level: null }, { line: 'z', level: null }], order.join())
    t.deepEqual(await rows('select * from inbox.owed'), [], order.join())
  }
})

test('I6 a change that Kafka delivers again has no second effect, with and without a key', async (t) => {
  const { apply, rows, statuses } = await rig(t, account, 'create table app.log (line text)')
  const first = arrival('account', 'INSERT', 1, { id: '1', name: 'a' }, 1)
  const line = arrival('log', 'INSERT', 1, { line: 'once' }, 2)
  await apply(0, first, line, line)
  await apply(0, arrival('account', 'UPDATE', 2, { id: ['1', '1'], name: ['a', 'b'], photo: ['NULL', 'NULL'] }, 3))
  await apply(1, first, line)
  t.deepEqual(await rows('select name from app.account'), [{ name: 'b' }])
  t.deepEqual(await rows('select line from app.log'), [{ line: 'once' }])
  t.deepEqual(await statuses(), { 1: 'APPLIED', 2: 'APPLIED', 3: 'APPLIED' })
})

test('I6 a change that comes twice in a batch, or that another partition is just logging, has one outcome and holds up nothing', async (t) => {
  const { apply, rows, statuses, holding, url } = await rig(t, account)
  await apply(0, arrival('account', 'INSERT', 1, { id: '1', name: 'a' }, 1))
  const { statement } = (await rows('select max(id) as statement from inbox.statement'))[0]!
  const sql = connect(url, { max: 1 })
  t.teardown(() => sql.end({ timeout: 1 }))
  await apply(1, arrival('account', 'INSERT', 1, { id: '9', name: 'z' }, 9))
  const place = await holding(0)
  await sql`begin`
  await sql`select inbox.apply('rig', ${place.topic}, '{0}', array[${place.term}]::bigint[], ${statement as number},
    ${'[{"~i":1,"~op":"INSERT","~o":1,"~e":1,"~t":"2","~s":"2","~f":"2","id":"2","name":"b"}]'}::text::json, '{null}', '{null}', '{null}', '{null}')`
  const again = arrival('account', 'INSERT', 2, { id: '2', name: 'b' }, 2)
  const applying = apply(1, again, arrival('account', 'INSERT', 3, { id: '3', name: 'c' }, 3), again)
  await until(async () => (await rows(`select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()`)).length > 0)
  await sql`commit`
  t.is(await applying, 'OK')
  t.deepEqual(await rows('select id, name from app.account order by id'), [{ id: 1, name: 'a' }, { id: 2, name: 'b' }, { id: 3, name: 'c' }, { id: 9, name: 'z' }])
  t.deepEqual(await statuses(), { 1: 'APPLIED', 2: 'APPLIED', 3: 'APPLIED', 9: 'APPLIED' })
})

test('I5 a consumer that lost its partition cannot apply', async (t) => {
  const { apply, rows, slot, holding } = await rig(t, account)
  await apply(0, arrival('account', 'INSERT', 1, { id: '1', name: 'a' }))
  const { topic } = await holding(0)
  await slot.run((sql) => raiseTerm(sql, 'rig', topic, 0, 'successor'))
  t.is(await apply(0, arrival('account', 'INSERT', 2, { id: '2', name: 'b' })), 'FENCED')
  t.deepEqual(await rows('select id from app.account'), [{ id: 1 }])
})

test('I9 I10 outcome, effect and position are stored together or not at all, and a disk that is full uses up no attempt', async (t) => {
  const { apply, rows } = await rig(t, account)
  await apply(0, arrival('account', 'INSERT', 1, { id: '1', name: 'a' }, 1))
  await rows(`create function app.refuse_all() returns trigger language plpgsql as $$ begin raise exception 'no space left' using errcode = '53100'; end $$`)
  await rows(`create trigger disk_full before insert on app.account for each row when (new.id = 3) execute function app.refuse_all()`)
  const batch = [arrival('account', 'INSERT', 2, { id: '2', name: 'b' }, 2), arrival('account', 'INSERT', 3, { id: '3', name: 'c' }, 3)]
  await t.throwsAsync(apply(0, ...batch), { code: '53100' })
  t.deepEqual(await rows('select id from app.account'), [{ id: 1 }])
  t.deepEqual(await rows('select seq_id from inbox.applied union all select seq_id from inbox.parked'), [{ seq_id: '1' }])
  t.deepEqual(await rows('select next_offset from inbox.position'), [{ next_offset: '2' }])
  await rows('drop trigger disk_full on app.account')
  await apply(0, ...batch)
  t.deepEqual(await rows('select seq_id, status, attempt from inbox.applied where seq_id > 1 order by 1'), [{ seq_id: '2', status: 'APPLIED', attempt: 0 }, { seq_id: '3', status: 'APPLIED', attempt: 0 }])
})

test('a TIME one year ahead is parked and poisons nothing', async (t) => {
  const { apply, rows, statuses } = await rig(t, account)
  const year = 365 * 86_400 * 1_000_000
  const now = 1_000_000_000 * 1_000
  await apply(0, arrival('account', 'INSERT', now, { id: '1', name: 'a' }, 1))
  await apply(0, arrival('account', 'UPDATE', now + year, { id: ['1', '1'], name: ['a', 'from the future'], photo: ['NULL', 'NULL'] }, 2))
  await apply(0, arrival('account', 'UPDATE', now + 5, { id: ['1', '1'], name: ['a', 'b'], photo: ['NULL', 'NULL'] }, 3))
  t.deepEqual(await rows('select name from app.account'), [{ name: 'b' }])
  t.deepEqual(await statuses(), { 1: 'APPLIED', 2: 'PARKED', 3: 'APPLIED' })
  t.deepEqual(await rows('select reason from inbox.parked'), [{ reason: 'CLOCK_AHEAD' }])
})

test('a superseded update whose before-image is what the target holds is flagged as a clock fault', async (t) => {
  const { apply, rows } = await rig(t, account)
  await apply(0, arrival('account', 'INSERT', 100, { id: '1', name: 'a' }, 1))
  await apply(0, arrival('account', 'UPDATE', 50, { id: ['1', '1'], name: ['a', 'b'], photo: ['NULL', 'NULL'] }, 2))
  const failures = await rows('select seq_id, left(failure, 11) as failure from inbox.applied where failure is not null')
  t.deepEqual(failures, [{ seq_id: '2', failure: 'CLOCK_FAULT' }])
})

test('a later epoch of capture wins over any time of an earlier one', async (t) => {
  const { apply, rows } = await rig(t, account)
  await apply(0, arrival('account', 'INSERT', 5_000_000, { id: '1', name: 'posts' }, 1, 1))
  await apply(0, arrival('account', 'INSERT', 0, { id: '1', name: 'triggers' }, 2, 2))
  await apply(0, arrival('account', 'INSERT', 9_000_000, { id: '1', name: 'late spool' }, 3, 1))
  t.deepEqual(await rows('select name from app.account'), [{ name: 'triggers' }])
})

test('status does not depend on where a batch is cut: what is older than the row was is superseded, what is folded is applied', async (t) => {
  for (const cut of [true, false]) {
    const { apply, statuses } = await rig(t, account)
    await apply(0, arrival('account', 'INSERT', 10, { id: '1', name: 'a' }, 1))
    const changes = [arrival('account', 'INSERT', 5, { id: '1', name: 'older' }, 2), arrival('account', 'INSERT', 11, { id: '1', name: 'b' }, 3),
      arrival('account', 'INSERT', 12, { id: '1', name: 'c' }, 4)]
    if (cut) for (const change of changes) await apply(0, change)
    else await apply(0, ...changes)
    t.deepEqual(await statuses(), { 1: 'APPLIED', 2: 'SUPERSEDED', 3: 'APPLIED', 4: 'APPLIED' })
  }
})

test('two partitions with the same rows in opposite order do not deadlock', async (t) => {
  const { apply, rows } = await rig(t, account)
  await apply(0, arrival('account', 'INSERT', 1, { id: '0', name: 'warm' }))
  await apply(1, arrival('account', 'INSERT', 1, { id: '0', name: 'warm' }))
  const ids = Array.from({ length: 200 }, (_, id) => String(id + 1))
  for (let round = 1; round <= 10; round += 1) {
    await Promise.all([
      apply(0, ...ids.map((id) => arrival('account', 'INSERT', round * 2, { id, name: `even ${round}` }))),
      apply(1, ...ids.toReversed().map((id) => arrival('account', 'INSERT', round * 2 + 1, { id, name: `odd ${round}` }))),
    ])
  }
  t.deepEqual(await rows('select distinct name from app.account where id > 0'), [{ name: 'odd 10' }])
})

test('statements planned on empty tables use the indexes once the tables are large', async (t) => {
  const { apply, rows } = await rig(t, account)
  for (let id = 1; id <= 12; id += 1) await apply(0, arrival('account', 'INSERT', 1, { id: String(id), name: 'warm' }))
  await rows(`insert into app.account select n, 'bulk' from generate_series(1000, 60000) n`)
  await rows(`insert into inbox.row_version (relation, key, origin, epoch, time, seq, deleted) select 1, n::text, 1, 1, 1, n, false from generate_series(1000, 60000) n`)
  const scans = async () => rows(`select relname, seq_scan from pg_stat_xact_user_tables where false union all
    select relname, pg_stat_get_numscans(relid) from pg_stat_user_tables where relname in ('account', 'row_version') order by 1`)
  await rows('select pg_stat_force_next_flush()')
  const before = await scans()
  for (let id = 2_000; id < 2_020; id += 1) {
    await apply(0, arrival('account', 'UPDATE', 5, { id: [String(id), String(id)], name: ['bulk', 'one'], photo: ['NULL', 'NULL'] }), arrival('account', 'DELETE', 6, { id: String(id + 500) }))
  }
  await rows('select pg_stat_force_next_flush()')
  t.deepEqual(await scans(), before)
})

test('a table known from payloads is created with text columns, gains columns, and is rebuilt when a key is declared', async (t) => {
  const { apply, rows } = await rig(t)
  await apply(0, arrival('note', 'INSERT', 1, {}))
  await apply(0, arrival('note', 'INSERT', 2, { id: '1', text: 'a' }))
  await apply(0, arrival('note', 'UPDATE', 3, { id: ['1', '1'], text: ['a', 'b'], extra: ['NULL', 'c'] }))
  t.deepEqual(await rows('select * from app.note order by id nulls first'), [{ id: null, text: null, extra: null }, { id: '1', text: 'b', extra: 'c' }])
  await t.throwsAsync(rows(`select outbox.declare_key('INFORMIX', 'app', 'note', array['idd'])`), { message: /no change of app.note carries the column idd/ })
  t.is((await rows('select 1 from app.note')).length, 2, 'a refused key touches nothing')
  await rows(`select outbox.declare_key('INFORMIX', 'app', 'note', array['text'])`)
  await rows(`select outbox.declare_key('INFORMIX', 'app', 'note', array['id'])`)
  t.deepEqual(await rows('select * from app.note'), [])
  await apply(0, arrival('note', 'INSERT', 2, { id: '1', text: 'a' }), arrival('note', 'INSERT', 4, { id: '1', text: 'again' }), arrival('note', 'INSERT', 1, {}))
  t.deepEqual(await rows('select * from app.note'), [{ id: '1', text: 'again', extra: null }])
  t.deepEqual(await rows('select reason from inbox.parked'), [{ reason: 'NO_KEY' }])
})

function permutations(items: number[]): number[][] {
  if (items.length <= 1) return [items]
  return items.flatMap((item) => permutations(items.filter((other) => other !== item)).map((rest) => [item, ...rest]))
}
