import type { Sql } from './sql.ts'

/** Bytes that could not be read as a change. `headers` without credentials; `detail` without values of a row. */
export type Unreadable = {
  path: string
  headers: Readonly<Record<string, string>>
  body: Buffer
  reason: string
  detail: string
}

/** An entry of the work list; `bytes` is the size of the body. */
export type RejectedEntry = {
  id: string
  receivedAt: string
  path: string
  reason: string
  detail: string | null
  state: 'WAITING' | 'RETRIED'
  retriedAt: string | null
  seqIds: string[] | null
  bytes: number
}

export type RejectedWhole = RejectedEntry & { headers: Record<string, string>; body: Buffer }

// The driver writes bytes as hex, and a string of V8 ends at 512 MB: 256 MB in one parameter would not fit.
const MOST_BYTES_A_PARAMETER = 64 << 20

/** Keeps bytes that are no change, for a person to look at; returns the id of the entry. */
export async function keepRejected(sql: Sql, { path, headers, body, reason, detail }: Unreadable): Promise<string> {
  const parts = [0, 1, 2, 3].map((n) => body.subarray(n * MOST_BYTES_A_PARAMETER, (n + 1) * MOST_BYTES_A_PARAMETER))
  const [a, b, c, d] = parts
  const [row] = await sql<{ id: string }[]>`
    insert into auditlog.rejected_request (path, headers, body, reason, detail)
    values (${path}, ${JSON.stringify(headers)}::text::jsonb, ${a ?? ''}::bytea || ${b ?? ''}::bytea || ${c ?? ''}::bytea || ${d ?? ''}::bytea,
            ${reason}, ${detail.replaceAll('\0', '\\u0000')})
    returning id`
  if (row === undefined) throw new Error('rejected_request returned no id')
  return row.id
}

/** The newest `limit` entries of a state, newest first; of all states when none is given. */
export async function listRejected(sql: Sql, { state, limit = 100 }: { state?: 'WAITING' | 'RETRIED'; limit?: number } = {}): Promise<RejectedEntry[]> {
  return sql<RejectedEntry[]>`
    select id, received_at as "receivedAt", path, reason, detail, state, retried_at as "retriedAt", seq_ids as "seqIds",
           octet_length(body) as bytes
    from auditlog.rejected_request where ${state ?? null}::text is null or state = ${state ?? null}::text
    order by rejected_request.id desc limit ${limit}`
}

/** One entry with its body and headers, undefined where there is none. */
export async function showRejected(sql: Sql, id: string): Promise<RejectedWhole | undefined> {
  const [row] = await sql<RejectedWhole[]>`
    select id, received_at as "receivedAt", path, reason, detail, state, retried_at as "retriedAt", seq_ids as "seqIds",
           octet_length(body) as bytes, headers, body
    from auditlog.rejected_request where rejected_request.id = ${id}::bigint`
  return row
}

/** Closes a waiting entry; false where it was not waiting. */
export async function markRetried(sql: Sql, id: string, seqIds: readonly string[]): Promise<boolean> {
  const rows = await sql`
    update auditlog.rejected_request set state = 'RETRIED', retried_at = clock_timestamp(), seq_ids = ${seqIds}::bigint[]
    where id = ${id}::bigint and state = 'WAITING' returning id`
  return rows.length === 1
}

/** What a post of the bytes came to: seq_ids of what was accepted, ids of new entries for what was rejected again. */
export type Posted = { seqIds: string[]; rejected: string[] }

/** How a retry reaches the intake: a client of the database, and a post to the listener that throws when it is away. */
export type Intake = { sql: Sql; post: (path: string, headers: Readonly<Record<string, string>>, body: Buffer) => Promise<Posted> }

/**
 * Posts a waiting entry again: `bytes`, or the kept body where none are given. Undefined where the entry is not waiting.
 *
 * The entry is closed after the post was answered. What was rejected again has become a new entry with its newer reason, so
 * the work list neither grows nor forgets; after a crash in between the second post is recognised as a repeat.
 */
export async function retryRejected(id: string, bytes: Buffer | undefined, { sql, post }: Intake): Promise<Posted | undefined> {
  const entry = await showRejected(sql, id)
  if (entry === undefined || entry.state !== 'WAITING') return undefined
  const posted = await post(entry.path, entry.headers, bytes ?? entry.body)
  await markRetried(sql, id, posted.seqIds)
  return posted
}
