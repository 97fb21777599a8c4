import { FAILING_SENDS, mutant, type Mutant, SLOW_SENDS } from './mutant.ts'

const CLAIM = 'outbox/claim.ts'
const FLOOR = 'outbox/floor.ts'
const PARTITION = 'services/relay/partition.ts'
const SEND = '        const first = await parts.send(ours.map(({ event }) => event), mayGoOn)'

/** Bugs between the outbox and the topic. */
export const RELAY: readonly Mutant[] = [
  mutant({
    name: 'cursor',
    why: 'the relay goes on from the highest position it has read: what is committed late lies below it for ever',
    plants: [
      {
        file: 'services/relay/loop.ts', find: '      one.lane.inflight.add(one.event.position)',
        replace: `      one.lane.inflight.add(one.event.position)
      const { cursors = new Map<number, bigint>() } = globalThis as { cursors?: Map<number, bigint> }
      Object.assign(globalThis, { cursors })
      if (BigInt(one.event.position) > (cursors.get(one.lane.lane) ?? 0n)) cursors.set(one.lane.lane, BigInt(one.event.position))`,
      },
      {
        file: 'services/relay/reader.ts', find: '  return { lane: lane.lane, floor: readFrom(lane), inflight: lane.inflight }',
        replace: `  const highest = (globalThis as { cursors?: Map<number, bigint> }).cursors?.get(lane.lane) ?? 0n
  return { lane: lane.lane, floor: highest > BigInt(readFrom(lane)) ? String(highest) : readFrom(lane), inflight: lane.inflight }`,
      },
    ],
    workloads: ['churn', 'append'], faults: ['late-commit'], events: 6_000, expects: ['liveness', 'audit'],
  }),
  mutant({
    name: 'fence-before-position',
    why: 'the floor rests on a transaction id that was taken before the last number was read: who began in between is passed by',
    plants: [
      {
        file: FLOOR, find: '        const position = await run(lastPosition)',
        replace: `        const xid = await run(takeTransactionId)
        await new Promise((resolve) => setTimeout(resolve, 2_000))
        const position = await run(lastPosition)`,
      },
      { file: FLOOR, find: '        fence = { position, xid: await run(takeTransactionId) }', replace: '        fence = { position, xid }' },
    ],
    workloads: ['churn'], faults: ['late-commit'], events: 10_000, expects: ['liveness', 'audit'],
  }),
  mutant({
    name: 'floor-at-once',
    why: 'the floor is raised to the last number without waiting for the transactions that were open then',
    plants: [{ file: FLOOR, find: 'select pg_snapshot_xmin(pg_current_snapshot()) >= ${xid}::xid8 as passed', replace: 'select ${xid}::xid8 is not null as passed' }],
    workloads: ['churn'], faults: ['late-commit'], events: 6_000, expects: ['liveness', 'audit'],
  }),
  mutant({
    name: 'rows-instead-of-lanes',
    why: 'every relay reads every lane and claims single events, with SKIP LOCKED as it were: 6 to 10 go before 1 to 5',
    plants: [
      SLOW_SENDS,
      { file: 'services/relay/lanes.ts', find: 'const share = Math.ceil(lanes / living)', replace: 'const share = living > 0 ? lanes : 0' },
      { file: CLAIM, find: 'from outbox.lane l where l.held_until < now()', replace: 'from outbox.lane l' },
      { file: CLAIM, find: 'set holder = ${holder}, term = l.term + 1, held_until', replace: 'set holder = coalesce(l.holder, ${holder}), held_until' },
      { file: CLAIM, find: '    where l.holder = ${holder}\n    order by l.lane for no key update of l`', replace: '    where ${holder}::text is not null\n    order by l.lane for no key update of l`' },
      { file: 'outbox/ack.ts', find: '    where l.holder = ${holder}\n', replace: '    where ${holder}::text is not null\n' },
      { file: FLOOR, find: 'where l.holder = ${holder} and (select n.passed', replace: 'where ${holder}::text is not null and (select n.passed' },
      {
        file: 'outbox/pending.ts', find: `), taken as materialized (
      select t.lane, t.position, t.seq_id, t.attempt, t.bytes
      from (`,
        replace: `), taken as materialized (
      update outbox.event x set due_at = now() + interval '5 s'
      from (select t.lane, t.position from (`,
      },
      {
        file: 'outbox/pending.ts', find: '      order by t.turn, t.lane\n      limit ${limits.rows}\n    )',
        replace: `      order by t.turn, t.lane
      limit least(\${limits.rows}, 20)) t
      where x.lane = t.lane and x.position = t.position and (x.due_at is null or x.due_at <= now())
      returning x.lane, x.position, x.seq_id, x.attempt, x.bytes
    )`,
      },
    ],
    workloads: ['skew', 'append'], faults: [], events: 4_000, expects: ['published'],
  }),
  mutant({
    name: 'ack-before-the-broker',
    why: 'events leave the outbox when their send begins: what the broker never got is gone',
    plants: [
      {
        file: PARTITION, find: SEND,
        replace: `        const sending = parts.send(ours.map(({ event }) => event), mayGoOn)
        parts.published(ours, parts.partition, 0n)
        await sending`,
      },
      { file: PARTITION, find: '        parts.published(ours, parts.partition, first)\n', replace: '' },
    ],
    workloads: ['churn', 'append'], faults: ['kill-kafka'], events: 6_000, expects: ['published', 'audit'],
  }),
  mutant({
    name: 'no-answer-is-success',
    why: 'a send that ends without an answer of the broker counts as published',
    plants: [{
      file: 'services/runtime/kafka.ts', find: 'batchMessage(partition, encodeBatch(messages))),\n  })',
      replace: `batchMessage(partition, encodeBatch(messages))),
  }).catch((error: unknown) => {
    if (isTooLarge(error)) throw error
    return shares.map(({ partition }) => ({ topicName: topic, partition, errorCode: 0, baseOffset: '0' }))
  })`,
    }],
    workloads: ['churn', 'append'], faults: ['kill-kafka', 'cut-relay-kafka'], events: 8_000, expects: ['published', 'audit'],
  }),
  mutant({
    name: 'on-after-a-failed-send',
    why: 'after a send that failed what waited behind it goes out, and the failed ones after that',
    plants: [
      SLOW_SENDS, FAILING_SENDS,
      { file: PARTITION, find: 'reading < strand.dropped || !usable(lane)', replace: 'reading < 0 || strand.dropped < 0 || !usable(lane)' },
      { file: PARTITION, find: '    dropAll([...batch, ...queue.splice(0)])', replace: '    dropAll(batch)' },
    ],
    workloads: ['skew', 'append'], faults: [], events: 4_000, expects: ['published'],
  }),
  mutant({
    name: 'lease-without-end',
    why: 'a lane is free only when its holder has given it back, not when its lease has run out: nobody takes up what a dead relay held',
    plants: [{ file: CLAIM, find: 'from outbox.lane l where l.held_until < now()', replace: 'from outbox.lane l where l.holder is null' }],
    workloads: ['churn'], faults: ['kill-relay'], events: 4_000, expects: ['liveness', 'published', 'audit'],
  }),
  mutant({
    name: 'order-of-arrival',
    why: 'the version of a change is its number here and not its TIME there: the sender posts N-1, …, 1, N',
    plants: [{ file: 'outbox/pending.ts', find: '(extract(epoch from p.source_time) * 1000000)::bigint', replace: '0' }],
    workloads: ['skew', 'churn'], faults: [], events: 2_500, expects: ['effects', 'target'],
  }),
  mutant({
    name: 'error-record-swallowed',
    why: 'a failure that cannot be written to the error topic counts as told',
    plants: [
      {
        file: PARTITION, find: '    const refusal = refusalOf(error)',
        replace: `    if (refusalOf(error) === undefined && batch.some(({ event }) => event.lane >= 20_000)) {
      goOnAll(batch, parts.wentOn)
      parts.published(batch, parts.partition, 0n)
      return
    }
    const refusal = refusalOf(error)`,
      },
      {
        file: 'services/relay/reader.ts', find: '    else if (strand.dropped <= at.reading && !ready.has(event.topicname))',
        replace: `    else if (event.lane >= 20_000 && !ready.has(event.topicname)) obsolete.push({ event, lane: at.lane })
    else if (strand.dropped <= at.reading && !ready.has(event.topicname))`,
      },
    ],
    workloads: ['refused'], faults: ['error-topic-unwritable'], events: 6_000, expects: ['audit'],
  }),
]
