import test from 'ava'

import { testBench } from '../../../test/support/bench.ts'
import { given } from '../../../test/support/given.ts'
import { makeSteps } from '../changes.ts'
import { arrival, faultsOfRows } from './arrival.ts'
import { settingsIn } from './connect.ts'
import { changeRow, openWriters, playBacklog } from './load.ts'
import { openPair } from './pair.ts'

const { benchOf, drop } = testBench()
test.after.always(drop)

test('the source that peers are fed from ends as the changes say, from a backlog and one by one', async (t) => {
  const bench = benchOf()
  const steps = makeSteps(500)
  const pair = await openPair({ bench, targetUrl: given('DELTAPOST_TEST_DATABASE_URL') })
  t.teardown(() => pair.drop())
  await playBacklog(bench, pair, steps.slice(0, 250), 100)
  const writers = openWriters(pair, (sql, step, dueMicros) => changeRow(sql, step, { bytes: 100, dueMicros }))
  await Promise.all(steps.slice(250).map((step) => writers.take(step, 1)))
  await writers.close()
  t.deepEqual(await arrival(bench, pair.source.sql, steps, 100), [])
  t.deepEqual(await faultsOfRows(pair.source.sql, steps, 100), [])
})

test('a peer that loses a row, or keeps an older version of one, is shown so', async (t) => {
  const bench = benchOf()
  const steps = makeSteps(60)
  const pair = await openPair({ bench, targetUrl: given('DELTAPOST_TEST_DATABASE_URL') })
  t.teardown(() => pair.drop())
  await playBacklog(bench, pair, steps, 100)
  const [row] = await pair.source.sql<{ id: string }[]>`select min(id)::text as id from bench.item`
  await pair.source.sql`update bench.item set n = n + 1 where id = ${row?.id ?? ''}`
  t.regex((await faultsOfRows(pair.source.sql, steps, 100))[0] ?? '', new RegExp(`the row ${row?.id} is not of version`))
  await pair.source.sql`delete from bench.item where id = ${row?.id ?? ''}`
  t.regex((await faultsOfRows(pair.source.sql, steps, 100)).join('; '), /rows: \d+, expected \d+/)
})

test('the settings of Debezium are files of names and texts', (t) => {
  for (const file of ['worker.json', 'source.json', 'source.drain.json', 'source.rate.json', 'source.unwrap.json', 'sink.json']) {
    t.true(Object.values(settingsIn(file)).every((value) => typeof value === 'string'), file)
  }
})
