import test from 'ava'

import { ack } from '../../outbox/ack.ts'
import { claimLanes } from '../../outbox/claim.ts'
import { nextEvents } from '../../outbox/pending.ts'
import type { Sql } from '../../outbox/sql.ts'
import { freshDatabase } from '../../test/support/database.ts'
import { outboxConnection, writeEvents } from '../../test/support/events.ts'
import { openSlot } from '../runtime/slot.ts'

const HOLDER = 'plans'
const BACKLOG = 60_000
/** Of a read or an ack of some hundred events, over a few lanes and several tables; all of a table would be 60,000. */
const MOST_ENTRIES = 6_000

test('a read and an ack whose plans were made on an empty outbox read no more than they take once it is full', async (t) => {
  const { url, drop } = await freshDatabase()
  const [slot, other] = [openSlot({ url, name: 'plans', plans: 'by index' }), outboxConnection(url)]
  t.teardown(async () => {
    await slot.close()
    await other.end({ timeout: 1 })
    await drop()
  })
  for (const table of ['outbox.event', 'outbox.lane', 'auditlog.publish_log']) await other.unsafe(`alter table ${table} set (autovacuum_enabled = false)`)
  const claims = await claimLanes(other, HOLDER, 64, 60_000)
  const lanes = claims.map(({ lane }) => ({ lane, floor: '0', inflight: new Set<string>() }))
  const publish = async (sql: Sql): Promise<number> => {
    const events = await nextEvents(sql, lanes, { rows: 300, bytes: 8 << 20 })
    const { count } = await ack(sql, HOLDER, claims, events.map(({ lane, position }) => ({ lane, position, partition: 0, offset: position })))
    return count
  }
  const entries = async (sql: Sql): Promise<{ scanned: number; read: number }> => {
    await sql`select pg_stat_force_next_flush()`
    const [row] = await sql<{ scanned: number; read: number }[]>`
      select sum(s.seq_tup_read)::integer as scanned, (select sum(i.idx_tup_read)::integer from pg_stat_user_indexes i where i.schemaname in ('outbox', 'auditlog')) as read
      from pg_stat_user_tables s where s.schemaname in ('outbox', 'auditlog') and s.relname <> 'database'`
    return row ?? { scanned: 0, read: 0 }
  }

  // Each on its own: a slot has one statement at a time.
  await slot.run((sql) => publish(sql as Sql))
  await writeEvents(other, Array.from({ length: 20 }, (_, n) => ({ key: String(n) })))
  t.is(await slot.run((sql) => publish(sql as Sql)), 20)
  for (let at = 0; at < BACKLOG; at += 10_000) await writeEvents(other, Array.from({ length: 10_000 }, (_, n) => ({ key: String(at + n) })))
  const before = await slot.run((sql) => entries(sql as Sql))
  t.is(await slot.run((sql) => publish(sql as Sql)), 300)
  const after = await slot.run((sql) => entries(sql as Sql))
  t.is(after.scanned - before.scanned, 0)
  t.true(after.read - before.read < MOST_ENTRIES, `${after.read - before.read} entries of indexes were read`)
})
