import { randomBytes } from 'node:crypto'
import postgres, { type Sql } from 'postgres'

import { given } from './given.ts'

/** The address of the database `name` on the server of this test run; without a name the administrator's own. */
export function addressOf(name?: string): string {
  const url = new URL(given('DELTAPOST_TEST_DATABASE_URL'))
  if (name !== undefined) url.pathname = `/${name}`
  return url.href
}

/** A client for tests: numbers of 64 bits as text, as the program reads them; notices are not printed. */
export function connect(url: string, options: { max?: number } = {}): Sql {
  return postgres(url, { max: options.max ?? 4, connect_timeout: 10, onnotice: () => {} })
}

/** A database of its own for a test or a test file, migrated (a copy of the template); `drop` also ends its connections. */
export async function freshDatabase(): Promise<{ url: string; drop: () => Promise<void> }> {
  const name = `test_${process.pid}_${randomBytes(5).toString('hex')}`
  await administrate((sql) => sql`create database ${sql(name)} template ${sql(given('DELTAPOST_TEST_TEMPLATE'))}`)
  return {
    url: addressOf(name),
    drop: async () => administrate((sql) => sql`drop database if exists ${sql(name)} with (force)`),
  }
}

async function administrate(statement: (sql: Sql) => PromiseLike<unknown>): Promise<void> {
  const sql = connect(addressOf(), { max: 1 })
  try {
    await statement(sql)
  } finally {
    await sql.end({ timeout: 5 })
  }
}
