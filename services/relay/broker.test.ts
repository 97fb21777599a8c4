import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import pino from 'pino'
import { decodeIdentity } from '../../outbox/record.ts'
import { embeddedKafka } from '../../scripts/stack/embedded-kafka.ts'
import { freshDatabase } from '../../test/support/database.ts'
import { outboxConnection, readTopic, writeEvents } from '../../test/support/events.ts'
import { testOwnKafka } from '../../test/support/own-servers.ts'
import { until } from '../../test/support/until.ts'
import { readConfig } from '../runtime/config.ts'
import { openLocalWake } from '../runtime/wake.ts'
import { runRelay } from './main.ts'

testOwnKafka('I3 a broker that is killed and comes back costs time only: everything is published, and the log says it once', async (t) => {
  t.timeout(110_000)
  const directory = mkdtempSync(join(tmpdir(), 'relay-broker-'))
  const broker = await embeddedKafka({ directory, log: () => undefined })
  const { url, drop } = await freshDatabase()
  const sql = outboxConnection(url)
  const lines: { level: number; msg: string }[] = []
  const stop = new AbortController()
  const topic = 'relay.broker'
  const ready = Promise.withResolvers<void>()
  const ended = runRelay({
    config: readConfig({ DATABASE_URL: url, KAFKA_BROKERS: broker.brokers, TOPIC: topic }),
    log: pino({ level: 'info' }, { write: (line: string) => lines.push(JSON.parse(line) as { level: number; msg: string }) }),
    signal: stop.signal, wake: openLocalWake(), onReady: ready.resolve,
  })
  t.teardown(async () => {
    stop.abort()
    await ended
    await sql.end({ timeout: 1 })
    await Promise.all([broker.stop(), drop()])
    rmSync(directory, { recursive: true, force: true })
  })
  await ready.promise

  const seqIds: string[] = []
  const write = async (): Promise<void> => { seqIds.push(...await writeEvents(sql, Array.from({ length: 50 }, (_, key) => ({ topic, key: String(key) })))) }
  const left = async (): Promise<number> => (await sql`select from outbox.event`).length
  for (let n = 0; n < 20; n++) await write()
  await until(async () => (await sql`select from auditlog.publish_log limit 1`).length === 1)
  await broker.kill()
  for (let n = 0; n < 20; n++) await write()
  await until(() => lines.some(({ msg }) => msg.startsWith(`sending to the broker: topic ${topic}: failing`)), { within: 30_000 })
  t.true(await left() > 0)
  await broker.start()
  await until(async () => (await left()) === 0, { within: 60_000 })

  const missing = new Set(seqIds)
  await readTopic(topic, (records) => {
    missing.delete(decodeIdentity(records.at(-1)?.headers)?.seqId ?? '')
    return missing.size === 0
  }, [broker.brokers])
  t.is((await sql`select from auditlog.publish_log`).length, seqIds.length)
  t.true(lines.filter(({ msg }) => msg.startsWith(`sending to the broker: topic ${topic}: failing`)).length <= 2)
  t.true(lines.some(({ msg }) => msg === `sending to the broker: topic ${topic}: works again`))
})
