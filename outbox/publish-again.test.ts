import test from 'ava'
import { freshDatabase } from '../test/support/database.ts'
import { outboxConnection, writeEvents } from '../test/support/events.ts'
import { behindHorizon, publishStored } from './publish-again.ts'
import { publishAgain } from './refused.ts'
import type { Sql } from './sql.ts'

const DAY = 86_400_000

async function given(t: { teardown: (end: () => Promise<void>) => void }): Promise<Sql> {
  const { url, drop } = await freshDatabase()
  const sql = outboxConnection(url)
  t.teardown(async () => {
    await sql.end({ timeout: 1 })
    await drop()
  })
  return sql
}

/** What is left of changes that were published: their rows in producer_log and publish_log. */
async function published(sql: Sql, seqIds: readonly string[], status = 'PUBLISHED'): Promise<void> {
  await sql`delete from outbox.event`
  for (const seqId of seqIds) {
    await sql`insert into auditlog.publish_log (position, seq_id, producer_publish_status, partition, "offset") values (${seqId}, ${seqId}, ${status}, 0, 0)`
  }
  await sql`update auditlog.settled set up_to = ${seqIds.at(-1)!}`
}

async function shown(sql: Sql, seqId: string): Promise<unknown> {
  const rows = await sql`select producer_publish_status as published, consumer_deploy_status as deployed from auditlog.audit_log where seq_id = ${seqId}`
  return rows.map((row) => ({ ...row }))
}

test('I12 a change that was published is put into the outbox again at a new position, and the audit shows it on its way', async (t) => {
  const sql = await given(t)
  const seqIds = await writeEvents(sql, [{ key: '1' }, { key: '2' }])
  const [kept, lost] = seqIds as [string, string]
  await published(sql, seqIds)
  await sql`insert into inbox.applied (origin, seq_id, status, statement, partition, "offset") values (1, ${kept}, 'APPLIED', 0, 0, 0)`
  t.deepEqual([...await publishStored(sql, [lost, kept, '999'], 0)], [
    { origin: 1, seq_id: kept, result: 'AGAIN', deployed: 'APPLIED' }, { origin: 1, seq_id: lost, result: 'AGAIN', deployed: null },
  ])
  const events = await sql<{ seq_id: string; position: string; attempt: number; kind: string; lane: number; own: number }[]>`
    select e.seq_id, e.position, e.attempt, e.kind, e.lane, outbox.lane_of(64::smallint, p.schema_name, p.table_name, p.row_key) as own
    from outbox.event e join auditlog.producer_log p using (seq_id) order by e.seq_id`
  t.deepEqual(events.map(({ seq_id: seqId, attempt, kind }) => [seqId, attempt, kind]), [[kept, 0, 'change'], [lost, 0, 'change']])
  t.true(events.every(({ position, seq_id: seqId, lane, own }) => BigInt(position) > BigInt(lost) && BigInt(position) > BigInt(seqId) && lane === own))
  t.deepEqual([...await sql`select up_to from auditlog.settled`], [{ up_to: String(BigInt(kept) - 1n) }])
  t.deepEqual(await shown(sql, lost), [{ published: 'PENDING', deployed: 'PENDING' }])
  t.deepEqual(await shown(sql, kept), [{ published: 'PENDING', deployed: 'APPLIED' }], 'its outcome stays')
})

test('what waits to be published already is not put there twice', async (t) => {
  const sql = await given(t)
  const [seqId = ''] = await writeEvents(sql, [{ key: '1' }])
  t.deepEqual([...await publishStored(sql, [seqId], 0)], [{ origin: 1, seq_id: seqId, result: 'WAITS', deployed: null }])
  t.is((await sql`select from outbox.event`).length, 1)
})

test('I7 a change from before the horizon is not published again, since the tombstone of its row may be gone, unless somebody says so', async (t) => {
  const sql = await given(t)
  const ago = (ms: number): string => new Date(Date.now() - ms).toISOString()
  const seqIds = await writeEvents(sql, [{ key: '1', sourceTime: ago(10 * DAY) }, { key: '2', sourceTime: ago(DAY) }, { key: '3', sourceTime: ago(1) }])
  const [old, pruned, young] = seqIds as [string, string, string]
  await published(sql, seqIds, 'FAILED')
  await sql`update auditlog.retention set behind = ${pruned}`
  const results = (rows: readonly { result: string }[]): string[] => rows.map(({ result }) => result)
  t.deepEqual([...await behindHorizon(sql, seqIds, 5 * DAY)], [old, pruned])
  t.deepEqual([...await behindHorizon(sql, seqIds, 0)], [old, pruned], 'pruned by another setting')
  t.deepEqual(await publishAgain(sql, seqIds, 5 * DAY), [young])
  t.deepEqual(results(await publishStored(sql, seqIds, 5 * DAY)), ['OLD', 'OLD', 'WAITS'])
  await sql`update auditlog.retention set behind = 0`
  t.deepEqual(results(await publishStored(sql, seqIds, 5 * DAY)), ['OLD', 'AGAIN', 'WAITS'])
  t.deepEqual(results(await publishStored(sql, seqIds, null)), ['AGAIN', 'WAITS', 'WAITS'])
})
