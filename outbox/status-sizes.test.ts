import test from 'ava'
import { freshDatabase } from '../test/support/database.ts'
import { outboxConnection, writeEvents } from '../test/support/events.ts'
import { until } from '../test/support/until.ts'
import { statusOf } from './status.ts'

test('status tells how old the oldest is of what somebody waits for, and what each table holds', async (t) => {
  const { url, drop } = await freshDatabase()
  const sql = outboxConnection(url)
  t.teardown(async () => {
    await sql.end({ timeout: 1 })
    await drop()
  })
  t.like(await statusOf(sql), {
    oldest: { unsettled_seconds: null, parked_seconds: null, rejected_seconds: null }, retention: { behind: '0', dropped: '0', begun_at: null },
  })
  const [first = ''] = await writeEvents(sql, [{ key: '1' }, { key: '2' }])
  await sql`update auditlog.producer_log set received_at = clock_timestamp() - interval '1 hour' where seq_id = ${first}`
  await sql`insert into inbox.parked (origin, seq_id, relation, epoch, time, reason, message, topic, payload, parked_at)
    values (1, ${first}, 1, 1, 0, 'NO_KEY', 'none', 't', '{}', clock_timestamp() - interval '2 hours')`
  await sql`insert into auditlog.rejected_request (path, headers, body, reason, received_at) values ('/events', '{}', '', 'empty', clock_timestamp() - interval '3 hours')`
  await sql`delete from outbox.event`
  await sql`vacuum outbox.event`
  const status = await until(async () => {
    const now = await statusOf(sql)
    return now.sizes.some(({ table, vacuumed_at }) => table === 'outbox.event' && vacuumed_at !== null) ? now : undefined
  })
  const near = (seconds: number | null, hours: number): boolean => t.true(Math.abs((seconds ?? 0) - hours * 3_600) < 60, String(seconds))
  near(status.oldest.unsettled_seconds, 1)
  near(status.oldest.parked_seconds, 2)
  near(status.oldest.rejected_seconds, 3)
  t.deepEqual(status.partitions.map(({ name, low, high }) => [name, low, high])[1], ['producer_log_000001', '5000000', '9999999'])
  await sql`update auditlog.settled set up_to = 2`
  t.is((await statusOf(sql)).oldest.unsettled_seconds, null)
})
