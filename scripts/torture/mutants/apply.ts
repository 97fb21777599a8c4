import { LOST_ANSWERS, mutant, type Mutant, SCATTERED, SMALL_RECORDS, SPREAD, UNEVEN } from './mutant.ts'

const STATEMENT = 'services/consumer/statement.ts'
const ELEMENT = 'services/consumer/element.ts'
const ROUNDS = 'services/consumer/rounds.ts'
const TOGETHER = '      const together = batches.length > 1 && await applyJointly({ ...parts, slot }, batches)'
const APPLY = 'services/consumer/apply.ts'
const NEWER = 'where (excluded.epoch, excluded.time, excluded.seq) > (r.epoch, r.time, r.seq) and not r.parked'
const GUARDED = 'select g.* into winners, partials, singles, lost, touched from inbox.guard(stmt, heads, old_keys, its_partition) as g;'
const EFFECT = 'perform inbox.effect(stmt.consumer_query, changes, winners);'

/** Bugs between the topic and the target's rows. */
export const APPLIED: readonly Mutant[] = [
  mutant({
    name: 'no-version-guard',
    why: 'whatever comes is applied, also what is older than what the row has',
    plants: [SPREAD, UNEVEN],
    sql: [
      { routine: 'inbox.guard', find: NEWER, replace: 'where not r.parked' },
      { routine: 'inbox.apply_one', find: 'newer := (el.e, el.t, el.s) > (r.epoch, r.time, r.seq);', replace: 'newer := true;' },
    ],
    workloads: ['skew', 'churn'], faults: [], events: 3_000, expects: ['effects', 'target'],
  }),
  mutant({
    name: 'no-tombstone',
    why: 'the version of a row goes with the row: an older change that comes after the delete brings it back',
    plants: [SPREAD, UNEVEN],
    sql: [{
      routine: 'inbox.apply', find: `outcome := 'OK';`,
      replace: `if statement_id is not null then
    delete from inbox.row_version v using (
      select d.relation, d.key from inbox.row_version d where d.relation = stmt.relation and d.deleted and not d.parked order by d.key for update skip locked
    ) as d where v.relation = d.relation and v.key = d.key;
  end if;
  outcome := 'OK';`,
    }],
    workloads: ['churn'], faults: [], events: 4_000, expects: ['target'],
  }),
  mutant({
    name: 'single-snapshot',
    why: 'guard and effect are one statement with one snapshot: a delete that waited for the insert of its row does not see it, and the row lives for ever',
    plants: [SPREAD],
    sql: [
      {
        statements: `create function inbox.guard_inside(stmt inbox.statement, heads inbox.heads, old_keys text[], its_partition integer) returns integer[]
language plpgsql volatile as $$
declare
  g record;
begin
  select * into g from inbox.guard(stmt, heads, old_keys, its_partition);
  perform set_config('torture.guard', row_to_json(g)::text, true);
  return g.winners;
end
$$`,
      },
      {
        routine: 'inbox.apply_rows', find: GUARDED,
        replace: `execute replace(stmt.consumer_query, 'any($2)', 'any((select inbox.guard_inside($2, $3, $4, $5))::integer[])') using changes, stmt, heads, old_keys, its_partition;
  select g.* into winners, partials, singles, lost, touched
  from json_to_record(current_setting('torture.guard')::json) as g(winners integer[], partials integer[], singles integer[], lost integer[], touched text[]);`,
      },
      { routine: 'inbox.apply_rows', find: EFFECT, replace: 'perform pg_sleep(0.05); -- the transaction is open a little longer' },
    ],
    workloads: ['churn'], faults: ['freeze-consumer'], events: 8_000, expects: ['target'],
  }),
  mutant({
    name: 'folded-to-the-last-image',
    why: 'of several changes of a row in a batch only the last one is applied, though an earlier one carried columns that it does not',
    sql: [{ routine: 'inbox.guard', find: 'where c.x or (c.n > 1 and c.incomplete > 0)', replace: 'where c.x' }],
    workloads: ['partial', 'append'], faults: ['kill-consumer'], events: 4_000, expects: ['target'],
  }),
  mutant({
    name: 'late-fills-nothing',
    why: 'an older change that comes late is left out whole, also the columns that newer images of its row did not carry',
    plants: [SPREAD, UNEVEN],
    sql: [{ routine: 'inbox.fill', find: `if change ->> '~op' = 'DELETE' then`, replace: 'if true then' }],
    workloads: ['resnapshot'], faults: [], events: 4_000, expects: ['target'],
  }),
  mutant({
    name: 'keys-as-text',
    why: 'rows are told apart by the text of their key: 7, 007 and 7.0 have a version each, and one row in the target',
    plants: [
      UNEVEN,
      {
        file: STATEMENT, find: 'function keyedStatements(shape: StatementShape): Statements {\n',
        replace: 'const typed = definition\nfunction keyedStatements(shape: StatementShape): Statements {\n',
      },
      {
        file: STATEMENT, find: '  const keys = shape.key.map((name) => columnNamed(columns, name))\n',
        replace: `  const keys = shape.key.map((name) => columnNamed(columns, name))
  const definition = (some: readonly TargetColumn[]): string => (some === keys ? some.map((column) => \`\${ident(column.name)} text\`).join(', ') : typed(some))
`,
      },
      { file: STATEMENT, find: 'keys.map((column) => canonical(column, alias, shape.blanksIgnored))', replace: 'keys.map((column) => `${alias}.${ident(column.name)}`)' },
    ],
    workloads: ['spelling'], faults: [], events: 4_000, expects: ['target'],
  }),
  mutant({
    name: 'identity-without-origin',
    why: 'what has an outcome is looked up by its number alone, and another database had that number too',
    sql: [
      { statements: 'create index torture_number on inbox.applied (seq_id)' },
      { routine: 'inbox.guard', find: 'where a.origin = x.o and a.seq_id = x.s) is null', replace: 'where a.seq_id = x.s limit 1) is null' },
    ],
    workloads: ['churn', 'origins'], faults: [], events: 2_000, expects: ['target', 'audit', 'liveness'],
  }),
  mutant({
    name: 'offset-before-apply',
    why: 'the position is stored before the changes are applied: ended in between, nobody reads them again',
    plants: [
      { file: ROUNDS, find: 'import { applyArrivals, applySet } from', replace: 'import { applyArrivals, applySet, storePosition } from' },
      { file: ROUNDS, find: TOGETHER, replace: `      for (const { holding, arrivals, nextOffset } of batches) await storePosition(slot, holding, { nextOffset, last: arrivals.at(-1) })\n${TOGETHER}` },
    ],
    workloads: ['churn'], faults: ['failpoint:consumer.applying', 'kill-consumer'], events: 4_000, expects: ['audit', 'target', 'liveness'],
  }),
  mutant({
    name: 'offset-from-latest',
    why: 'the consumer begins where Kafka says, at the end where Kafka knows nothing, and does not go back to its own position',
    plants: [
      { file: 'services/consumer/supervise.ts', find: 'fromBeginning: true', replace: 'fromBeginning: false' },
      { file: 'services/consumer/loop.ts', find: 'if (!session.sought && first.offset !== last.toString()) {', replace: 'if (session.sought && first.offset !== last.toString()) {' },
    ],
    workloads: ['churn'], faults: ['offsets-deleted'], events: 12_000, expects: ['audit', 'target', 'liveness'],
  }),
  mutant({
    name: 'outcome-gates-nothing',
    why: 'a table without a key takes every delivery of a change, though its outcome is on record',
    sql: [{ routine: 'inbox.apply_counts', find: 'into fresh from c join logged l on l.origin = c.o and l.seq_id = c.s;', replace: 'into fresh from c;' }],
    plants: [LOST_ANSWERS], workloads: ['keyless'], faults: [], events: 3_000, expects: ['target'],
  }),
  mutant({
    name: 'outcome-before-effect',
    why: 'the outcome is written in a transaction of its own, before the effect: ended in between, the change counts as applied and is not',
    plants: [{
      file: APPLY, find: `): Promise<{ outcome: Outcome | 'STALE'; held: Arrival[] }> {`,
      replace: `): Promise<{ outcome: Outcome | 'STALE'; held: Arrival[] }> {
  if (!prepared.statements.keyed) {
    const claimed = await parts.slot.run((sql) => sql.unsafe<{ id: string }[]>(\`
      insert into inbox.applied (origin, seq_id, status, statement, partition, "offset")
      select (c ->> '~o')::smallint, (c ->> '~s')::bigint, 'APPLIED', \${prepared.statementId}, \${stands[0]!.holding.partition}, (c ->> '~f')::bigint
      from json_array_elements($1::text::json) as c on conflict do nothing returning origin || ':' || seq_id as id\`, [documentOf(candidates)]))
    const ours = new Set(claimed.map(({ id }) => id))
    candidates = candidates.filter(({ element }) => ours.has(\`\${String(element['~o'])}:\${String(element['~s'])}\`))
  }`,
    }],
    sql: [{ routine: 'inbox.apply_counts', find: 'into fresh from c join logged l on l.origin = c.o and l.seq_id = c.s;', replace: 'into fresh from c;' }],
    workloads: ['keyless'], faults: ['failpoint:consumer.applying'], events: 4_000, expects: ['target'],
  }),
  mutant({
    name: 'debts-forgotten',
    why: 'without a key: a delete that comes before its insert is done with, and the insert stays',
    plants: [SCATTERED, UNEVEN],
    sql: [{ routine: 'inbox.apply_counts', find: 'o.image = any(images) and o.n = 0;', replace: 'o.image = any(images);' }],
    workloads: ['keyless'], faults: [], events: 3_000, expects: ['target'],
  }),
  mutant({
    name: 'numbers-through-floats',
    why: 'values of numeric columns go through floats (of single precision: those of the workloads have eight digits)',
    plants: [{
      file: ELEMENT, find: `  return type.base === 'bytea' ? toBytea(value) : value`,
      replace: `  if (type.base === 'numeric' && Number.isFinite(Number(value))) return String(Math.fround(Number(value)))
  return type.base === 'bytea' ? toBytea(value) : value`,
    }],
    workloads: ['churn'], faults: [], events: 1_500, expects: ['target'],
  }),
  mutant({
    name: 'null-in-words',
    why: 'the text NULL of an update, which is how the sender says null, is taken for a text',
    plants: [{
      file: ELEMENT, find: `if (operation === 'UPDATE' && value === 'NULL' && !type.notNull && !shape.key.includes(type.name)) return null`,
      replace: `if (operation === 'UPDATE' && value === 'NULL' && type.base !== 'text' && !type.notNull && !shape.key.includes(type.name)) return null`,
    }],
    workloads: ['churn'], faults: [], events: 1_500, expects: ['target'],
  }),
  mutant({
    name: 'whole-without-the-last-chunk',
    why: 'a large change counts as whole when so many chunks have come as it has, whichever they were: a run that was begun anew completes it early',
    plants: [SMALL_RECORDS, { file: 'outbox/chunk.ts', find: 'chunk.total === value.length && chunk.index === joining.next) {', replace: 'chunk.total === value.length && joining.next < count) {' }],
    workloads: ['large'], faults: ['failpoint:relay.chunk'], events: 150, expects: ['target', 'audit', 'liveness'],
  }),
]
