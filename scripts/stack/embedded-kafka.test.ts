import kafkajs from 'kafkajs'
import { spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import { testOwnKafka } from '../../test/support/own-servers.ts'
import { until } from '../../test/support/until.ts'
import { embeddedKafka, type EmbeddedKafka } from './embedded-kafka.ts'
import { commandOf } from './process-table.ts'

const TOPIC = 'kept'

function temporary(): string {
  const directory = mkdtempSync(join(tmpdir(), 'deltapost-kafka-'))
  process.once('exit', () => rmSync(directory, { recursive: true, force: true }))
  return directory
}

function client(server: EmbeddedKafka): InstanceType<typeof kafkajs.Kafka> {
  return new kafkajs.Kafka({ brokers: [server.brokers], retry: { retries: 10 }, logLevel: kafkajs.logLevel.NOTHING })
}

async function logEnd(server: EmbeddedKafka): Promise<string | undefined> {
  const admin = client(server).admin()
  await admin.connect()
  const [partition] = await admin.fetchTopicOffsets(TOPIC).finally(async () => admin.disconnect())
  return partition?.high
}

testOwnKafka('a record of 20 MB is taken, and a killed broker comes back on its port with it', async (t) => {
  const server = await embeddedKafka({ directory: temporary(), log: t.log })
  t.teardown(server.stop)
  const admin = client(server).admin()
  await admin.connect()
  await admin.createTopics({ topics: [{ topic: TOPIC, numPartitions: 1 }], waitForLeaders: true })
  await admin.disconnect()
  const producer = client(server).producer({ createPartitioner: kafkajs.Partitioners.DefaultPartitioner })
  await producer.connect()
  await producer.send({ topic: TOPIC, acks: -1, messages: [{ value: randomBytes(20 * 1024 * 1024) }] })
  await producer.disconnect()

  await server.kill()
  await server.start()
  t.is(await until(async () => logEnd(server), { within: 30_000 }), '1')
})

testOwnKafka('a broker that an earlier run left behind is ended, and its data are used', async (t) => {
  const directory = temporary()
  const first = await embeddedKafka({ directory, log: t.log })
  const cluster = readFileSync(join(directory, 'data', 'meta.properties'), 'utf8')
  await first.stop()
  // Something that runs with this broker's settings file; a second broker would only make the test slow.
  const properties = join(directory, 'server.properties')
  const orphan = spawn('sleep', ['600'], { argv0: `sleep ${properties}`, detached: true, stdio: 'ignore' })
  t.teardown(() => orphan.kill('SIGKILL'))
  writeFileSync(join(directory, 'kafka.pid'), `${orphan.pid}\n`)
  await until(() => commandOf(orphan.pid ?? 0)?.includes(properties))

  const second = await embeddedKafka({ directory, port: first.port, log: t.log })
  t.teardown(second.stop)
  t.is(commandOf(orphan.pid ?? 0), undefined)
  t.is(readFileSync(join(directory, 'data', 'meta.properties'), 'utf8'), cluster)
})
