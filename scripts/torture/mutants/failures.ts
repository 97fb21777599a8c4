import { mutant, type Mutant, REFUSED_AT_FIRST } from './mutant.ts'

/** Bugs in what becomes of changes that the target refuses. */
export const FAILED: readonly Mutant[] = [
  mutant({
    name: 'retry-at-the-tail',
    why: 'a refused change holds up nobody and goes out again: it is applied when newer ones of its row were',
    sql: [
      ...REFUSED_AT_FIRST,
      { routine: 'inbox.set_aside', find: 'update inbox.row_version r set parked = true where', replace: 'update inbox.row_version r set parked = false where' },
      {
        routine: 'inbox.take_out', find: 'perform inbox.apply_item_once(stmt, item, its_partition);',
        replace: `update inbox.row_version v set epoch = 0, time = 0, seq = 0 where v.relation = stmt.relation and v.key = its_key;
  perform inbox.apply_item_once(stmt, item, its_partition);`,
      },
    ],
    workloads: ['skew', 'bank'], faults: [], events: 3_000, expects: ['effects', 'target'],
  }),
  mutant({
    name: 'parked-looked-up-without-the-lock',
    why: 'whether a row is parked is read before its lock is had: a change queues behind one that is just being taken up, and is never looked at again',
    sql: [
      ...REFUSED_AT_FIRST,
      {
        routine: 'inbox.guard', find: 'from c where not exists (select from single where single.key = c.key)\n    order by c.key, c.e desc',
        replace: `from c where not exists (select from single where single.key = c.key)
      and not exists (select from inbox.row_version v where v.relation = stmt.relation and v.key = c.key and v.parked)
    order by c.key, c.e desc`,
      },
      { routine: 'inbox.apply_each', find: 'and r.key = any(keys) order by r.key for update;', replace: 'and r.key = any(keys) order by r.key;' },
      {
        routine: 'inbox.apply_each', find: 'from (select distinct key from unnest(keys) as key order by key) k\n',
        replace: `from (select distinct key from unnest(keys) as key order by key) k
    where not exists (select from inbox.row_version v where v.relation = stmt.relation and v.key = k.key)
`,
      },
      { routine: 'inbox.apply_one', find: 'where v.relation = stmt.relation and v.key = el.key for update;', replace: 'where v.relation = stmt.relation and v.key = el.key;' },
      {
        // The transaction that takes up is open a little longer, when it has looked who is behind it.
        routine: 'inbox.take_out', find: 'where key is not null order by key) k;', replace: 'where key is not null order by key) k;\n  perform pg_sleep(0.1);',
      },
    ],
    workloads: ['partial', 'append'], faults: [], events: 4_000, expects: ['liveness', 'audit', 'target'],
  }),
  mutant({
    name: 'failed-and-told-nobody',
    why: 'a change is given up without a record for the error topic',
    sql: [{ routine: 'inbox.set_aside', find: 'perform inbox.tell_failures(array[c."~o"], array[c."~s"], course);', replace: 'null;' }],
    workloads: ['refused'], faults: [], events: 1_500, expects: ['audit'],
  }),
  mutant({
    name: 'refused-takes-its-batch',
    why: 'a change that is refused is logged and left behind, with all that came in its batch',
    plants: [{
      file: 'services/consumer/apply.ts', find: '      prepared.wary = WARY\n      if (!looked) continue',
      replace: `      if (!looked) return { outcome: 'OK', left: [] }`,
    }],
    workloads: ['refused'], faults: [], events: 2_000, expects: ['audit', 'target', 'liveness'],
  }),
  mutant({
    name: 'stopped-and-dropped',
    why: 'what comes for a table that cannot be written is passed over instead of queued',
    sql: [{ routine: 'inbox.stop', find: 'perform inbox.park_all(stmt, changes, its_partition);', replace: 'null;' }],
    workloads: ['churn', 'skew'], faults: ['target-missing', 'target-altered'], events: 6_000, expects: ['audit', 'target', 'liveness'],
  }),
]
