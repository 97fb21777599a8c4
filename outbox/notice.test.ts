import test from 'ava'
import { freshDatabase } from '../test/support/database.ts'
import { outboxConnection, writeEvents } from '../test/support/events.ts'
import { claimChannel, closeFailed, closeTold, foldNotices, giveChannelBack, TRIES, type Batch, type ChannelClaim } from './notice.ts'
import type { Sql } from './sql.ts'

type Teardown = { teardown: (end: () => Promise<void>) => void }

async function given(t: Teardown): Promise<{ one: Sql; two: Sql }> {
  const { url, drop } = await freshDatabase()
  const [one, two] = [outboxConnection(url), outboxConnection(url)]
  t.teardown(async () => {
    await Promise.all([one, two].map((sql) => sql.end({ timeout: 1 })))
    await drop()
  })
  return { one, two }
}

/** A channel that is known, and free. */
async function known(sql: Sql, channel: 'webhook' | 'mail' = 'webhook'): Promise<void> {
  await giveChannelBack(sql, await claimed(sql, channel))
}

async function claimed(sql: Sql, channel: 'webhook' | 'mail' = 'webhook', holder = 'a'): Promise<ChannelClaim> {
  const claim = await claimChannel(sql, channel, holder)
  if (claim === undefined) throw new Error('the channel is not free')
  return claim
}

/** The record of a failure, as the apply writes it. */
async function fail(sql: Sql, seqId: string, error: Record<string, unknown> = {}): Promise<void> {
  const head = { message: 'value "ada" too long, "code":"FAKE" \u0000', code: 'REFUSED', sqlstate: '22001', side: 'deploy', attempts: 3, ...error }
  await sql`
    insert into outbox.event (lane, position, seq_id, attempt, kind, bytes, topic, head)
    select outbox.side_lane('error', ${seqId}::bigint), nextval('outbox.position'), ${seqId}::bigint, 3, 'error', 10, 'db.postgres.error',
           '"recipients":["a@b.com"],"error":' || ${JSON.stringify(head)}`
}

async function waiting(sql: Sql): Promise<number> {
  return (await sql`select from outbox.notice`).length
}

async function foldOnce(sql: Sql, channel: 'webhook' | 'mail' = 'webhook'): Promise<{ claim: ChannelClaim; batch: Batch | undefined }> {
  const claim = await claimed(sql, channel)
  return { claim, batch: await foldNotices(sql, claim) }
}

test('a failure is put down for each channel, in the transaction of its cause', async (t) => {
  const { one } = await given(t)
  await known(one)
  await known(one, 'mail')
  const [seqId] = await writeEvents(one, [{ key: '1', table: 'account' }])
  t.is(await waiting(one), 0, 'a change is no failure')
  await one`begin`
  await fail(one, seqId!)
  await one`rollback`
  t.is(await waiting(one), 0)
  await fail(one, seqId!)
  t.is(await waiting(one), 2)
  for (const channel of ['webhook', 'mail'] as const) {
    const { batch } = await foldOnce(one, channel)
    t.deepEqual(batch?.groups, [{ kind: 'FAILED', relation: 'app.account', side: 'deploy', reason: 'REFUSED', sqlstate: '22001', count: 1 }])
    t.deepEqual(batch?.seq_ids, [seqId!])
  }
})

test('where no channel was ever asked for, or none for a week, nothing is kept', async (t) => {
  const { one } = await given(t)
  const [seqId] = await writeEvents(one, [{ key: '1' }])
  await fail(one, seqId!)
  t.is(await waiting(one), 0)
  await known(one)
  await fail(one, seqId!)
  t.is(await waiting(one), 1)
  await one`update outbox.notice_channel set asked_at = now() - interval '8 days'`
  await fail(one, seqId!)
  t.is(await waiting(one), 1)
  await foldNotices(one, await claimed(one, 'mail'))
  t.is(await waiting(one), 0, 'what waits for a channel that is gone is forgotten')
})

test('what is older than a week is no news: it is removed and not told', async (t) => {
  const { one } = await given(t)
  await known(one)
  const [old, fresh] = await writeEvents(one, [{ key: '1' }, { key: '2' }])
  await fail(one, old!)
  await one`update outbox.notice set made_at = now() - interval '8 days'`
  await fail(one, fresh!)
  t.deepEqual((await foldOnce(one)).batch?.seq_ids, [fresh!])
  t.is(await waiting(one), 0)
})

test('one batch counts what is alike, names 20 changes, and holds no value of a row', async (t) => {
  const { one } = await given(t)
  await known(one)
  const seqIds = await writeEvents(one, Array.from({ length: 30 }, (_, key) => ({ key: String(key), table: key < 25 ? 'account' : 'entry', payload: '{"DATA":{"name":"ada"}}' })))
  for (const seqId of seqIds) await fail(one, seqId)
  await fail(one, seqIds[0]!, { side: 'publish', code: 'TOO_LARGE', sqlstate: null })
  await one`insert into auditlog.rejected_request (path, headers, body, reason) select '/events', '{}', 'ada', 'json_syntax' from generate_series(1, 3)`
  await one`insert into outbox.relation (source, source_schema, source_table, target_schema, target_table, known_from) select 'INFORMIX', 'app', n, 'app', n, 'payload' from unnest('{account,entry}'::text[]) n`
  await one`update outbox.relation set state = 'STOPPED', stopped_by = 'failure', stop_reason = 'ada' where source_table = 'account'`
  await one`update outbox.relation set state = 'STOPPED', stopped_by = 'operator' where source_table = 'entry'`
  const { batch } = await foldOnce(one)
  t.deepEqual(batch?.counts, { failed: 31, stopped: 1, rejected: 3 })
  t.deepEqual(batch?.groups.map(({ kind, relation, side, reason, sqlstate, count }) => [kind, relation, side, reason, sqlstate, count]), [
    ['STOPPED', 'app.account', null, 'RELATION_STOPPED', null, 1],
    ['FAILED', 'app.account', 'deploy', 'REFUSED', '22001', 25],
    ['FAILED', 'app.entry', 'deploy', 'REFUSED', '22001', 5],
    ['FAILED', 'app.account', 'publish', 'TOO_LARGE', null, 1],
    ['REJECTED', null, null, null, null, 3],
  ])
  t.deepEqual(batch?.seq_ids, seqIds.slice(0, 20))
  t.notRegex(JSON.stringify(batch), /ada|FAKE/)
  t.is(await waiting(one), 0)
})

test('what is parked knows its relation where producer_log does not: the target in a database of its own', async (t) => {
  const { one } = await given(t)
  await known(one)
  await one`insert into outbox.relation (source, source_schema, source_table, target_schema, target_table, known_from) values ('INFORMIX', 'app', 'account', 'x', 'y', 'payload')`
  await one`insert into inbox.parked (origin, seq_id, relation, key, epoch, time, reason, sqlstate, message, topic, payload) select 7, 4711, id, '["1"]', 1, 1, 'REFUSED', '23514', 'm', 't', '{}' from outbox.relation`
  await one`insert into outbox.event (lane, position, seq_id, kind, bytes, origin, head) values (20000, nextval('outbox.position'), 4711, 'error', 1, 7, null)`
  const { batch } = await foldOnce(one)
  t.like(batch?.groups[0], { relation: 'app.account', reason: 'REFUSED', sqlstate: '23514' })
})

test('a channel has one holder; a claim that ran out cannot close the batch', async (t) => {
  const { one, two } = await given(t)
  await known(one)
  const [seqId] = await writeEvents(one, [{ key: '1' }])
  await fail(one, seqId!)
  const slept = await foldOnce(one)
  t.is(await claimChannel(two, 'webhook', 'b'), undefined)
  await one`update outbox.notice_channel set held_until = now() - interval '1 s'`
  const successor = await claimed(two, 'webhook', 'b')
  t.is(await closeTold(one, slept.claim, 1_000), false)
  t.is(await closeFailed(one, slept.claim, 1_000), undefined)
  t.is(await foldNotices(one, slept.claim), undefined)
  const again = await foldNotices(two, successor)
  t.deepEqual(again, slept.batch, 'the same batch under the same id')
  t.true(await closeTold(two, successor, 1_000))
})

test('what fails while a batch is being told is in the next one', async (t) => {
  const { one, two } = await given(t)
  await known(one)
  const [first, second] = await writeEvents(one, [{ key: '1' }, { key: '2' }])
  await fail(one, first!)
  const { claim, batch } = await foldOnce(one)
  await fail(two, second!)
  t.deepEqual(batch?.seq_ids, [first!])
  t.deepEqual((await foldNotices(one, claim))?.seq_ids, [first!])
  await closeTold(one, claim, 0)
  t.deepEqual((await foldOnce(one)).batch?.seq_ids, [second!])
})

test('while things go on failing the pause doubles up to 15 minutes; half an hour of calm and it is short again', async (t) => {
  const { one } = await given(t)
  await known(one)
  const [seqId] = await writeEvents(one, [{ key: '1' }])
  async function pauseAfterOne(ago: string): Promise<number> {
    await one`update outbox.notice_channel set next_at = now(), told_at = told_at - ${ago}::interval`
    await fail(one, seqId!)
    await closeTold(one, (await foldOnce(one)).claim, 60_000)
    t.is(await claimChannel(one, 'webhook', 'a'), undefined)
    const [row] = await one<{ minutes: number }[]>`select (extract(epoch from next_at - told_at) / 60)::integer as minutes from outbox.notice_channel`
    return row?.minutes ?? -1
  }
  const pauses: number[] = []
  for (const _ of Array.from({ length: 6 })) pauses.push(await pauseAfterOne('1 minute'))
  t.deepEqual(pauses, [1, 2, 4, 8, 15, 15])
  t.is(await pauseAfterOne('20 minutes'), 15)
  t.is(await pauseAfterOne('31 minutes'), 1)
})

test('a batch that cannot be told is dropped after 8 tries, the pause doubling; what failed meanwhile is told next', async (t) => {
  const { one } = await given(t)
  await known(one)
  const [first, second] = await writeEvents(one, [{ key: '1' }, { key: '2' }])
  await fail(one, first!)
  const pauses: number[] = []
  for (const tries of Array.from({ length: TRIES }, (_, at) => at + 1)) {
    const { claim, batch } = await foldOnce(one)
    t.deepEqual(batch?.seq_ids, [first!])
    if (tries === 1) await fail(one, second!)
    t.deepEqual({ ...await closeFailed(one, claim, 60_000) }, { tries, dropped: tries === TRIES })
    const [row] = await one<{ minutes: number }[]>`select round(extract(epoch from next_at - now()) / 60)::integer as minutes from outbox.notice_channel`
    pauses.push(row?.minutes ?? -1)
    await one`update outbox.notice_channel set next_at = now()`
  }
  t.deepEqual(pauses, [1, 2, 4, 8, 15, 15, 15, 15])
  const next = await foldOnce(one)
  t.deepEqual(next.batch?.seq_ids, [second!])
  t.is((await closeFailed(one, next.claim, 60_000))?.tries, 1)
})
