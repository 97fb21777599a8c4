import test from 'ava'

import { connect, freshDatabase } from './database.ts'
import { administrate, freshTopic } from './kafka.ts'
import { until } from './until.ts'

test('a fresh database is migrated, is nobody else’s, and is gone after drop', async (t) => {
  const one = await freshDatabase()
  const two = await freshDatabase()
  t.not(one.url, two.url)
  const sql = connect(one.url)
  t.is((await sql`select from pg_namespace where nspname = 'outbox'`).length, 1)
  await one.drop()
  await two.drop()
  await sql.end({ timeout: 0 })
  await t.throwsAsync(async () => connect(one.url, { max: 1 })`select 1`, { message: /does not exist/ })
})

test('a fresh topic has the partitions asked for, and is gone after drop', async (t) => {
  const { topic, drop } = await freshTopic('support', 3)
  await administrate(async (admin) => {
    const { topics } = await admin.fetchTopicMetadata({ topics: [topic] })
    t.is(topics[0]?.partitions.length, 3)
  })
  await drop()
  await administrate(async (admin) => {
    await until(async () => !(await admin.listTopics()).includes(topic))
  })
})

test('until gives the first true answer, and names what it waited for when there is none', async (t) => {
  let asked = 0
  t.is(await until(() => (asked += 1) === 3 && 'third'), 'third')
  await t.throwsAsync(
    until(() => Promise.reject(new Error('refused')), { within: 50, what: 'an open door' }),
    { message: 'not within 50 ms: an open door; last answer: refused' },
  )
})
