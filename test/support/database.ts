import { randomBytes } from 'node:crypto'
import postgres, { type Sql } from 'postgres'

import { given } from './given.ts'

export type TestDatabase = { url: string; drop: () => Promise<void> }

/** The address of the database `name` on the server of this test run; without a name the administrator's own. */
export function addressOf(name?: string): string {
  const url = new URL(given('DELTAPOST_TEST_DATABASE_URL'))
  if (name !== undefined) url.pathname = `/${name}`
  return url.href
}

/** A client for tests, with postgres's own reading of types (64-bit numbers are text); notices are not printed. */
export function connect(url: string, options: { max?: number } = {}): Sql {
  return postgres(url, { max: options.max ?? 4, connect_timeout: 10, onnotice: () => {} })
}

/** A database of its own for a test or a test file, migrated (a copy of the template); `drop` also ends its connections. */
export async function freshDatabase(): Promise<TestDatabase> {
  return copyOf(given('DELTAPOST_TEST_TEMPLATE'))
}

/** The same without our migrations. */
export async function emptyDatabase(): Promise<TestDatabase> {
  return copyOf('template1')
}

async function copyOf(template: string): Promise<TestDatabase> {
  const name = `test_${process.pid}_${randomBytes(5).toString('hex')}`
  await administrate((sql) => sql`create database ${sql(name)} template ${sql(template)}`)
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
