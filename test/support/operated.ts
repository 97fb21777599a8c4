import type { ExecutionContext } from 'ava'

import { arrival, consumerRig, type Rig } from './arrivals.ts'
import { type Cli, cliWith } from './cli.ts'
import { connect, freshDatabase } from './database.ts'

export const ACCOUNT = 'create table app.account (id integer primary key, name varchar(5), n integer)'

/** A consumer's parts over a database, and the operator's commands for it. */
export type Operated = Rig & { url: string; cli: Cli }

/** With MAX_RETRIES 2 for the commands, as COURSE has for the consumer. */
export function cliOn(url: string, environment: Record<string, string> = {}): Cli {
  return cliWith({ DATABASE_URL: url, MAX_RETRIES: '2', ...environment })
}

export async function operated(t: ExecutionContext, ...ddl: string[]): Promise<Operated> {
  const database = await freshDatabase()
  const made = await consumerRig(database.url)
  t.teardown(async () => {
    await made.close()
    await database.drop()
  })
  for (const statement of ['create schema app', ...ddl]) await made.rows(statement)
  return { ...made, url: database.url, cli: cliOn(database.url) }
}

/** Row 1 is refused (name too long), and a partial image of it waits behind. */
export async function refusedAndBehind({ apply }: Rig): Promise<void> {
  await apply(0, arrival('account', 'INSERT', 10, { id: '1', name: 'too long', n: '1' }, 1))
  await apply(0, arrival('account', 'UPDATE', 20, { id: ['1', '1'], n: ['1', '2'] }, 2))
}

/** Copies the parked change `like` to the numbers from `first` to `last`, each setting n to its number. */
export async function copyParked(url: string, like: number, first: number, last: number, padding = 0): Promise<void> {
  const sql = connect(url, { max: 1 })
  await sql`
    insert into inbox.applied (origin, seq_id, status, attempt, statement, partition, "offset", failure)
    select a.origin, g, a.status, a.attempt, a.statement, a.partition, g, a.failure from inbox.applied a, generate_series(${first}::bigint, ${last}::bigint) g where a.seq_id = ${like}`
  await sql`
    insert into inbox.parked (origin, seq_id, relation, key, epoch, time, reason, message, topic, record_key, payload)
    select p.origin, g, p.relation, p.key, p.epoch, g, p.reason, p.message || repeat('x', ${padding}), p.topic, p.record_key,
           replace(p.payload, '"new":"2"', '"new":"' || g || '"') || repeat(' ', ${padding})
    from inbox.parked p, generate_series(${first}::bigint, ${last}::bigint) g where p.seq_id = ${like}`
  await sql`analyze inbox.parked`
  await sql.end({ timeout: 5 })
}
