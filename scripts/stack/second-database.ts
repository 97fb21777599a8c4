import { createDatabase } from './database.ts'
import type { Stack } from './stack.ts'

/** A second database on the server of the first, made where it is not there yet; its address. */
export async function secondDatabase({ databaseUrl }: Pick<Stack, 'databaseUrl'>): Promise<string> {
  const url = new URL(databaseUrl)
  const name = `${decodeURIComponent(url.pathname.slice(1))}_target`
  await createDatabase(databaseUrl, name)
  url.pathname = `/${encodeURIComponent(name)}`
  return url.href
}
