import { randomUUID } from 'node:crypto'
import type { Kafka } from 'kafkajs'
import type { Sql } from 'postgres'

import { DeltapostError } from '../../../outbox/errors.ts'
import { ensureTopic, openKafka, withAdmin } from '../../../services/runtime/kafka.ts'
import { openLog } from '../../../services/runtime/log.ts'
import { bodyOf, makeSteps, type Step } from '../changes.ts'
import { latencyOf } from '../latency.ts'
import { measuredBetween, takeReading } from '../measure.ts'
import { playAtRate, WARM_UP_SECONDS } from '../pipeline.ts'
import type { Bench } from '../place.ts'
import type { Measured } from '../result.ts'
import { reach } from '../wait.ts'
import { outboxPackage, type OutboxProcess, startOutboxProcess } from './outbox-package.ts'
import { openWriters } from './load.ts'
import { type Ground, openPair, type Pair } from './pair.ts'

const PARTITIONS = 12
/** Changes of one segment go one after the other, those of different ones at once. */
const SEGMENTS = 100
/** It moves some 2,000 a second: more would only take longer. */
const MOST_CHANGES = 20_000
const TOGETHER = 1_000

/** As its own setup script makes it, for a user who may replicate. */
const TABLE = `
  create table outbox (id uuid primary key, aggregate_type text not null, aggregate_id text not null, message_type text not null, segment text,
    concurrency text not null default 'sequential', payload jsonb not null, metadata jsonb, locked_until timestamptz not null default to_timestamp(0),
    created_at timestamptz not null default clock_timestamp(), processed_at timestamptz, abandoned_at timestamptz,
    started_attempts smallint not null default 0, finished_attempts smallint not null default 0,
    constraint outbox_concurrency_check check (concurrency in ('sequential', 'parallel')))`

/** From its outbox to Kafka and no further: a backlog at both sizes, and the rate with the time from due to acknowledged. */
export async function outboxToKafka(ground: Ground, repeat: number, keep: (run: Measured) => void): Promise<void> {
  const { events, rate, seconds } = ground.bench.options
  for (const bytes of [100, 1_000]) keep(await runOnce(ground, { bytes, repeat, steps: makeSteps(Math.min(MOST_CHANGES, events)), warm: 0 }))
  keep(await runOnce(ground, { bytes: 100, repeat, steps: makeSteps(rate * (WARM_UP_SECONDS + seconds)), warm: rate * WARM_UP_SECONDS, rate }))
}

type Run = { bytes: number; repeat: number; steps: readonly Step[]; warm: number; rate?: number }

async function runOnce(ground: Ground, run: Run): Promise<Measured> {
  const { bench } = ground
  const { bytes, repeat, steps, rate } = run
  const variant = rate === undefined ? `drain ${bytes} B` : `${rate}/s ${bytes} B`
  bench.tell(`pg-transactional-outbox: ${variant}, run ${repeat}`)
  const packageFolder = await outboxPackage(bench.tell)
  const pair = await openPair(ground)
  const kafka = openKafka(bench.stack.kafkaBrokers.split(','), openLog('bench', 'silent'))
  const [topic, { sql }] = [pair.name, pair.source]
  let peer: OutboxProcess | undefined
  const start = async (): Promise<OutboxProcess> => (peer = await startOutboxProcess({
    packageFolder, databaseUrl: pair.source.url, brokers: bench.stack.kafkaBrokers, topic, partitions: PARTITIONS, slot: pair.name, logFile: `${bench.logFile}.outbox-package`,
  }))
  try {
    await sql.unsafe(TABLE)
    await sql`create publication ${sql(pair.name)} for table outbox with (publish = 'insert')`
    await sql`select pg_create_logical_replication_slot(${pair.name}, 'pgoutput')`
    await ensureTopic(kafka, topic, PARTITIONS, openLog('bench', 'silent'))
    const parts = { bench, pair, kafka, topic, start }
    const { before, after, late } = rate === undefined ? await drain(parts, run) : await atRate(parts, { ...run, rate })
    return measuredBetween(pair.counted({ name: 'pg-transactional-outbox', pid: peer?.pid ?? 0 }), before, after, {
      scenario: 'pg-transactional-outbox', variant, repeat, changes: steps.length - run.warm, seconds: (after.at - before.at) / 1_000,
      faults: [...await fedOutOfOrder(sql), ...await faultsOnTopic(kafka, topic, steps, peer?.lost() ?? 0)], ...(rate === undefined ? {} : { latency: latencyOf(late) }),
    })
  } finally {
    await peer?.stop()
    await sql`select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = ${pair.name}`
    await withAdmin(kafka, (admin) => admin.deleteTopics({ topics: [topic] })).catch(() => undefined) // it may not have come into being
    await pair.drop()
  }
}

type Parts = { bench: Bench; pair: Pair; kafka: Kafka; topic: string; start: () => Promise<OutboxProcess> }
type Taken = { before: Awaited<ReturnType<typeof takeReading>>; after: Awaited<ReturnType<typeof takeReading>>; late: number[] }

/** From its first record to the last. */
async function drain({ bench, pair, kafka, topic, start }: Parts, { steps, bytes }: Run): Promise<Taken> {
  for (let at = 0; at < steps.length; at += TOGETHER) {
    bench.signal.throwIfAborted()
    await insertMessages(pair.source.sql, steps.slice(at, at + TOGETHER).map((step, n) => ({ step, at: at + n, due: Date.now() * 1_000 })), bytes)
  }
  const peer = await start()
  await published(bench, kafka, topic, 1, peer)
  const counted = pair.counted({ name: 'pg-transactional-outbox', pid: peer.pid })
  const before = await takeReading(counted)
  await published(bench, kafka, topic, steps.length, peer)
  return { before, after: await takeReading(counted), late: [] }
}

async function atRate({ bench, pair, kafka, topic, start }: Parts, { steps, bytes, warm, rate }: Run & { rate: number }): Promise<Taken> {
  const peer = await start()
  let at = 0
  const writers = openWriters(pair, (sql, step, due) => insertMessages(sql, [{ step, at: at++, due }], bytes))
  try {
    await playAtRate(bench, steps.slice(0, warm), rate, writers.take)
    await published(bench, kafka, topic, warm, peer)
    peer.takeLate()
    const counted = pair.counted({ name: 'pg-transactional-outbox', pid: peer.pid })
    const before = await takeReading(counted)
    await playAtRate(bench, steps.slice(warm), rate, writers.take)
    await published(bench, kafka, topic, steps.length, peer)
    return { before, after: await takeReading(counted), late: peer.takeLate() }
  } finally {
    await writers.close()
  }
}

async function insertMessages(sql: Sql, messages: readonly { step: Step; at: number; due: number }[], bytes: number): Promise<void> {
  const rows = messages.map(({ step, at, due }) => ({
    id: randomUUID(), aggregate_id: String(step.id), segment: String(step.id % SEGMENTS), payload: JSON.parse(bodyOf(step, due, bytes)) as unknown, metadata: { at, due },
  }))
  await sql`
    insert into outbox (id, aggregate_type, aggregate_id, message_type, segment, payload, metadata)
    select id, 'item', aggregate_id, 'change', segment, payload, metadata
    from json_to_recordset(${JSON.stringify(rows)}::text::json) as r(id uuid, aggregate_id text, segment text, payload jsonb, metadata jsonb)`
}

/** The bench's own fault if any: changes of a row are inserted by one connection, one after the other. */
async function fedOutOfOrder(sql: Sql): Promise<string[]> {
  const [row] = await sql<{ n: number }[]>`
    select count(*)::integer as n from (
      select (metadata->>'at')::integer as at, max((metadata->>'at')::integer) over (partition by aggregate_id order by created_at rows between unbounded preceding and 1 preceding) as before
      from outbox) x
    where before > at`
  return row?.n === 0 ? [] : [`the bench put ${row?.n} changes into the outbox before an earlier one of their row`]
}

async function published(bench: Bench, kafka: Kafka, topic: string, goal: number, peer: OutboxProcess): Promise<void> {
  await withAdmin(kafka, (admin) => reach({
    what: 'records of pg-transactional-outbox', goal, everyMs: 20, signal: bench.signal,
    ask: async () => ({ count: (await admin.fetchTopicOffsets(topic)).reduce((sum, { high }) => sum + Number(high), peer.lost()) }),
  }))
}

/** Every change is on the topic but those that it gave up, those of a row in their order. Once is not asked: it promises at least once. */
async function faultsOnTopic(kafka: Kafka, topic: string, steps: readonly Step[], lost: number): Promise<string[]> {
  // The first group of a broker waits until the broker has made its own topic for groups.
  const consumer = kafka.consumer({ groupId: `${topic}.check`, maxWaitTimeInMs: 100, retry: { retries: 20 } })
  const seen = new Set<number>()
  const last = new Map<string, number>()
  let disordered = 0
  const all = Promise.withResolvers<void>()
  const timer = setTimeout(() => all.reject(new DeltapostError('BENCH_STILL', `records read back: ${seen.size} of ${steps.length} after a minute`, 'npm run bench again')), 60_000)
  try {
    await consumer.connect()
    await consumer.subscribe({ topic, fromBeginning: true })
    await consumer.run({
      eachMessage: async ({ message }) => {
        const [key, at] = [String(message.key), Number(message.headers?.['at'])]
        if (!seen.has(at) && at < (last.get(key) ?? -1)) disordered += 1
        seen.add(at)
        last.set(key, Math.max(at, last.get(key) ?? -1))
        if (seen.size >= steps.length - lost) all.resolve()
      },
    })
    await all.promise
    return [
      ...disordered === 0 ? [] : [`${disordered} changes before an earlier one of their row`],
      ...seen.size === steps.length ? [] : [`${steps.length - seen.size} changes of ${steps.length} are not on the topic`],
    ]
  } catch (error) {
    if (error instanceof DeltapostError && error.code === 'BENCH_STILL') return [error.message]
    throw error
  } finally {
    clearTimeout(timer)
    await consumer.disconnect()
  }
}
