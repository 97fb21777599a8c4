import { mutant, type Mutant } from './mutant.ts'

const COMMIT = 'services/listener/commit.ts'

/** Bugs between a post and the log. */
export const INTAKE: readonly Mutant[] = [
  mutant({
    name: 'answer-before-commit',
    why: 'the post is answered when the rows are inserted, and the transaction is committed 50 ms later',
    plants: [
      {
        file: COMMIT, find: 'await slot.run((sql) => insertGroup(sql, changes))',
        replace: `await slot.run((sql) => sql.unsafe('begin')).then(() => slot.run((sql) => insertGroup(sql, changes)))`,
      },
      {
        file: 'services/listener/group.ts', find: '        else settle(outcome)\n      })',
        replace: `        else settle(outcome)
      })
      await new Promise((resolve) => setTimeout(resolve, 50))
      await slot.run((sql) => sql.unsafe('commit'))`,
      },
    ],
    workloads: ['churn', 'bank'], faults: ['failpoint:listener.answered', 'kill-listener'], events: 4_000, expects: ['ledger', 'published'],
  }),
  mutant({
    name: 'synchronous-commit-off',
    why: 'commits are answered before they are on disk, and nobody looks: a crash of Postgres takes the last half second',
    plants: [
      { file: 'services/runtime/slot.ts', find: `synchronous_commit: 'on',`, replace: `synchronous_commit: 'off',` },
      { file: 'services/listener/durable.ts', find: `if (row.synchronousCommit === 'off') {`, replace: `if (row.synchronousCommit === 'never') {` },
    ],
    workloads: ['churn', 'bank'], faults: ['kill-postgres'], events: 6_000, expects: ['ledger', 'published'],
  }),
  mutant({
    name: 'repeat-gets-a-new-number',
    why: 'the key of an event holds something that no other post has, so a repeat is taken for another change',
    plants: [{ file: 'outbox/event-key.ts', find: 'return uuidOf(`change\\0${canonical(change)}`)', replace: 'return uuidOf(`change\\0${Math.random()}\\0${canonical(change)}`)' }],
    workloads: ['churn', 'keyless'], faults: [], events: 2_500, expects: ['ledger', 'target'],
  }),
  mutant({
    name: 'printed-again',
    why: 'the listener parses the body and prints what it understood: numbers go through floats, blanks and escapes are lost',
    plants: [{ file: 'services/listener/ingest.ts', find: '    payload: piece.payload,', replace: '    payload: JSON.stringify(JSON.parse(piece.payload)),' }],
    workloads: ['churn'], faults: [], events: 300, expects: ['ledger', 'published'],
  }),
  mutant({
    name: 'rejected-and-dropped',
    why: 'a body that is no change is answered as if it were kept, and is not',
    plants: [{
      file: 'services/listener/ingest.ts', find: '  const id = await parts.reject({ path, headers, body: bytes, reason: fault.reason, detail: fault.detail })',
      replace: `  const id = path === '' ? await parts.reject({ path, headers, body: bytes, reason: fault.reason, detail: fault.detail }) : '0'`,
    }],
    workloads: ['churn', 'garbage'], faults: [], events: 1_500, expects: ['ledger'],
  }),
  mutant({
    name: 'log-and-outbox-apart',
    why: 'the log is written in one transaction and the event in the next: ended in between, the repeat is answered and nothing is ever published',
    plants: [
      {
        file: 'outbox/intake.ts',
        find: `), waiting as (
      insert into outbox.event (lane, position, seq_id, bytes)
      select outbox.lane_of(d.lanes, n.schema_name, n.table_name, n.row_key), n.seq_id, n.seq_id,
        octet_length(coalesce(n.clean_change, n.change))
      from numbered n cross join outbox.database d
      order by n.seq_id
    )`,
        replace: ')',
      },
      {
        file: COMMIT, find: '  const keys = changes.filter((_, ordinal) => seqIds[ordinal] === undefined)',
        replace: `  const fresh = seqIds.filter((seqId) => seqId !== undefined)
  if (fresh.length > 0) await slot.run((sql) => sql.unsafe(\`
    insert into outbox.event (lane, position, seq_id, bytes)
    select outbox.lane_of(d.lanes, p.schema_name, p.table_name, p.row_key), p.seq_id, p.seq_id, octet_length(coalesce(p.clean_payload, p.producer_payload::text))
    from auditlog.producer_log p cross join outbox.database d where p.seq_id in (\${fresh.join()}) order by p.seq_id\`))
  const keys = changes.filter((_, ordinal) => seqIds[ordinal] === undefined)`,
      },
    ],
    workloads: ['churn'], faults: ['failpoint:listener.committed'], events: 4_000, expects: ['published', 'audit', 'liveness'],
  }),
  mutant({
    name: 'cached-numbers',
    why: 'each connection draws 50 numbers at a time, so a number is used long after the floor passed it',
    sql: [{ statements: 'alter sequence outbox.position cache 50' }],
    workloads: ['churn'], faults: [], events: 4_000, expects: ['published', 'liveness', 'audit'],
  }),
]
