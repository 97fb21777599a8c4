import { readFileSync } from 'node:fs'
import test from 'ava'
import type { Sql } from 'postgres'
import { connect, freshDatabase } from './support/database.ts'

const rows = 200_000

/** A database with a history: one change of a thousand is parked; of every ten thousandth the publishing failed, and half of those have no outcome. */
async function filled(): Promise<{ sql: Sql; drop: () => Promise<void> }> {
  const database = await freshDatabase()
  const sql = connect(database.url, { max: 1 })
  await sql`insert into inbox.statement (relation, revision, topicname, destination, schema_name, table_name, keyed, consumer_query, guard, leave)
    values (1, 1, 't', 'POSTGRESQL', 'app', 'account', true, 'insert', 'guard', 'leave')`
  await sql`insert into auditlog.producer_log (seq_id, origin, topicname, source, schema_name, table_name, operation, producer_payload, dialect, source_time)
    select n, 1, 't', 'INFORMIX', 'app', 'account', 'INSERT', '{}', 'v1', now() from generate_series(1, ${rows}::int) n`
  await sql`insert into auditlog.publish_log (position, seq_id, producer_publish_status)
    select n, n, case when n % 10000 = 0 then 'FAILED' else 'PUBLISHED' end from generate_series(1, ${rows}::int) n`
  await sql`insert into inbox.applied (origin, seq_id, status, statement, partition, "offset")
    select 1, n, case when n % 1000 = 0 then 'PARKED' else 'APPLIED' end, 1, 0, n from generate_series(1, ${rows}::int) n where n <= ${rows - 10} and n % 20000 <> 0`
  await sql`update auditlog.settled set up_to = ${rows - 20}`
  await sql`analyze`
  return { sql, drop: async () => { await sql.end({ timeout: 5 }); await database.drop() } }
}

test('I12 audit_log has one row per change, and the filters an administrator needs read no table from end to end', async (t) => {
  const { sql, drop } = await filled()
  t.teardown(drop)
  const [count] = await sql`select count(*)::int as n, count(distinct seq_id)::int as distinct from auditlog.audit_log`
  t.deepEqual({ ...count }, { n: rows, distinct: rows })
  const questions: [string, number][] = [
    [`select * from auditlog.audit_log where seq_id = 4242`, 1],
    [`select * from auditlog.audit_log where consumer_deploy_status = 'PARKED'`, 190],
    [`select * from auditlog.audit_log where producer_publish_status = 'FAILED' and consumer_deploy_status is null`, 10],
    [`select * from auditlog.audit_log where seq_id = 40000`, 1],
    [`select * from auditlog.audit_log where producer_publish_status = 'FAILED'`, 20],
    [`select * from auditlog.audit_log where consumer_deploy_status = 'PENDING'`, 9],
    [`select * from auditlog.pending`, 9],
  ]
  for (const [question, found] of questions) {
    t.is((await sql.unsafe(question)).length, found, question)
    const plan = (await sql.unsafe(`explain ${question}`)).map((row) => String(row['QUERY PLAN'])).join('\n')
    t.notRegex(plan, /Seq Scan on (producer_log_000000|publish_log|applied)|JIT/, `${question}\n${plan}`)
  }
})

test('the five questions of the README run', async (t) => {
  const { sql, drop } = await filled()
  t.teardown(drop)
  const block = readFileSync('README.md', 'utf8').match(/Five questions[^]*?```sql\n([^]*?)```/)?.[1] ?? ''
  const questions = block.split(';').filter((part) => part.trim() !== '')
  t.is(questions.length, 5)
  for (const question of questions) await t.notThrowsAsync(async () => sql.unsafe(question), question)
})
