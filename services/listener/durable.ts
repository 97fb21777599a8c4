import type { Sql } from '../../outbox/sql.ts'
import { DeltapostError } from '../../outbox/errors.ts'

/**
 * Throws where a commit on this connection would not mean "on disk" (I1).
 *
 * Our connections ask for synchronous_commit themselves, but a pooler in between may drop what they ask for.
 */
export async function checkDurable(sql: Sql): Promise<void> {
  const [row] = await sql<{ fsync: string; synchronousCommit: string }[]>`
    select current_setting('fsync') as fsync, current_setting('synchronous_commit') as "synchronousCommit"`
  if (row?.fsync !== 'on') {
    throw new DeltapostError('FSYNC_OFF', 'Postgres runs with fsync = off: a crash can lose changes that were answered 200',
      "alter system set fsync = on; select pg_reload_conf();")
  }
  if (row.synchronousCommit === 'off') {
    throw new DeltapostError('SYNCHRONOUS_COMMIT_OFF', 'Postgres answers commits before they are on disk',
      'set synchronous_commit = on for this role, and let the pooler pass it on')
  }
}
