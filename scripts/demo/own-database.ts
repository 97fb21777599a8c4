import { randomBytes } from 'node:crypto'
import postgres from 'postgres'

import { openKafka, withAdmin } from '../../services/runtime/kafka.ts'
import { openLog } from '../../services/runtime/log.ts'
import { createDatabase } from '../stack/database.ts'
import { secondDatabase } from '../stack/second-database.ts'
import type { Stack } from '../stack/stack.ts'

/** Where the demo works, and how to leave the servers as they were. `target` is `databaseUrl` unless there are two. */
export type OwnDatabase = Pick<Stack, 'databaseUrl' | 'kafkaBrokers'> & { target: string; topic: string; drop: () => Promise<void> }

/**
 * The servers' own database and the usual topic where the servers are the demo's; on servers of somebody else a database
 * and a topic with names of their own, which `drop` deletes.
 */
export async function ownDatabase(stack: Stack, two: boolean): Promise<OwnDatabase> {
  const { databaseUrl, kafkaBrokers } = stack
  const targetOf = async (databaseUrl: string): Promise<string> => (two ? secondDatabase({ databaseUrl }) : databaseUrl)
  if (stack.way !== 'environment') {
    return { databaseUrl, target: await targetOf(databaseUrl), kafkaBrokers, topic: 'db.informix.delta', drop: async () => {} }
  }
  const name = `deltapost_demo_${randomBytes(4).toString('hex')}`
  await createDatabase(databaseUrl, name)
  const url = new URL(databaseUrl)
  url.pathname = `/${name}`
  return {
    databaseUrl: url.href,
    target: await targetOf(url.href),
    kafkaBrokers,
    topic: name,
    drop: async () => {
      await dropDatabase(databaseUrl, name)
      if (two) await dropDatabase(databaseUrl, `${name}_target`)
      await dropTopic(kafkaBrokers, name)
    },
  }
}

async function dropDatabase(adminUrl: string, name: string): Promise<void> {
  const sql = postgres(adminUrl, { max: 1, connect_timeout: 10, onnotice: () => {} })
  try {
    await sql`drop database if exists ${sql(name)} with (force)`
  } finally {
    await sql.end({ timeout: 5 })
  }
}

async function dropTopic(brokers: string, topic: string): Promise<void> {
  await withAdmin(openKafka(brokers.split(','), openLog('demo', 'silent')), async (admin) => {
    if ((await admin.listTopics()).includes(topic)) await admin.deleteTopics({ topics: [topic] })
  })
}
