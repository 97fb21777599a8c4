import { join } from 'node:path'

import { createDatabase } from './database.ts'
import { embeddedKafka } from './embedded-kafka.ts'
import { embeddedPostgres, packagedPostgres } from './embedded-postgres.ts'
import { missingForKafka } from './kafka-jars.ts'
import type { Servers, StackOptions, Way } from './stack.ts'

/** PostgreSQL from npm and Apache Kafka from Maven as processes of ours, below `directory`/embedded. */
export const embeddedWay: Way = {
  name: 'embedded',
  missing: async () => {
    if (packagedPostgres() === undefined) {
      return `npm has no embedded PostgreSQL for ${process.platform} ${process.arch}, or it is not installed (npm ci --include=dev)`
    }
    return missingForKafka()
  },
  start: startEmbedded,
}

async function startEmbedded(options: StackOptions): Promise<Servers> {
  const directory = join(options.directory, 'embedded')
  const started = await Promise.allSettled([
    embeddedPostgres({ directory: join(directory, 'postgres'), port: options.postgresPort, fresh: options.fresh, settings: options.postgresSettings }),
    embeddedKafka({ directory: join(directory, 'kafka'), port: options.kafkaPort, fresh: options.fresh, log: options.log }),
  ])
  const [postgresServer, kafka] = started
  if (postgresServer.status === 'rejected' || kafka.status === 'rejected') {
    await Promise.all(started.map(async (server) => (server.status === 'fulfilled' ? server.value.stop() : undefined)))
    throw started.find((server) => server.status === 'rejected')?.reason
  }
  await createDatabase(postgresServer.value.url('postgres'), 'deltapost')
  return {
    databaseUrl: postgresServer.value.url('deltapost'),
    kafkaBrokers: kafka.value.brokers,
    stop: async () => {
      await Promise.all([postgresServer.value.stop(), kafka.value.stop()])
    },
    embedded: {
      killPostgres: postgresServer.value.kill,
      startPostgres: postgresServer.value.start,
      killKafka: kafka.value.kill,
      startKafka: kafka.value.start,
    },
  }
}
