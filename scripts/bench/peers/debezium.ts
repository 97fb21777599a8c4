import { DeltapostError } from '../../../outbox/errors.ts'
import { openKafka, withAdmin, ensureTopic } from '../../../services/runtime/kafka.ts'
import { openLog } from '../../../services/runtime/log.ts'
import { makeSteps } from '../changes.ts'
import { reach } from '../wait.ts'
import { arrival } from './arrival.ts'
import { type Connect, settingsIn, startConnect, type Settings } from './connect.ts'
import { playBacklog } from './load.ts'
import type { Ground, Pair } from './pair.ts'
import { type Link, linked, type Purpose, type TablePeer } from './table-peer.ts'

/** As on the reference box; a peer's topic is not ours, which has 12 because it scales by them. */
const PARTITIONS = 4
/** A JVM gets faster for about a minute: so long it moves rows that are not counted. */
const WARM_SECONDS = 60
const WARM_CHANGES = 40_000

/** `best`: rows alone, with the SMT that unwraps them; the before image is lost. `json`: the envelope with its schemas, what most people run. */
export type Kind = 'best' | 'json'

/** Debezium's source and JDBC sink on one worker of Kafka Connect, warmed up. */
export async function openDebezium(ground: Ground, directory: string, kind: Kind): Promise<TablePeer> {
  const { bench } = ground
  const connect = await startConnect({ brokers: bench.stack.kafkaBrokers, directory, signal: bench.signal, log: bench.tell, logFile: `${bench.logFile}.connect` })
  const peer: TablePeer = {
    name: kind === 'best' ? 'debezium' : 'debezium-json',
    process: { name: 'connect', pid: connect.pid },
    link: (pair, purpose) => linkPair(ground, connect, pair, { purpose, kind }),
    close: () => connect.close(),
  }
  try {
    await warmUp(ground, peer)
    return peer
  } catch (error) {
    await connect.close()
    throw error
  }
}

async function warmUp(ground: Ground, peer: TablePeer): Promise<void> {
  const { bench } = ground
  bench.tell(`${peer.name}: warming the JVM for ${WARM_SECONDS} s`)
  const end = performance.now() + WARM_SECONDS * 1_000
  const steps = makeSteps(WARM_CHANGES)
  while (performance.now() < end) {
    await linked(ground, peer, 'drain', async (pair, link) => {
      await playBacklog(bench, pair, steps, 100)
      const late = await arrival(bench, pair.target.sql, steps, 100)
      if (late.length > 0) throw new DeltapostError('BENCH_PEER', [...late, ...await link.trouble()].join('; '), 'mend its settings in scripts/bench/peers/debezium')
    })
  }
}

async function linkPair({ bench }: Ground, connect: Connect, pair: Pair, how: { purpose: Purpose; kind: Kind }): Promise<Link> {
  const topic = `${pair.name}.bench.item`
  const [source, sink] = [`${pair.name}_source`, `${pair.name}_sink`]
  const kafka = openKafka(bench.stack.kafkaBrokers.split(','), openLog('bench', 'silent'))
  // Before the sink, which would look for it again only after five minutes.
  await ensureTopic(kafka, topic, PARTITIONS, openLog('bench', 'silent'))
  await connect.put(sink, { ...settingsIn('sink.json'), ...sinkAddress(pair), topics: topic }, 2)
  await connect.put(source, {
    ...settingsIn('source.json'), ...settingsIn(`source.${how.purpose}.json`), ...(how.kind === 'best' ? settingsIn('source.unwrap.json') : {}), ...sourceAddress(pair),
  }, 1)
  await streaming(pair, true)
  let records = 0
  return {
    hold: async () => {
      await connect.stop(source)
      await streaming(pair, false)
      records = await withAdmin(kafka, async (admin) => recordsOn(await admin.fetchTopicOffsets(topic)))
    },
    // The task needs seconds to begin again; the clock of a drain begins with its first record.
    release: async () => {
      await connect.resume(source)
      await withAdmin(kafka, async (admin) => reach({
        what: 'first records', goal: records + 1, everyMs: 10, signal: bench.signal,
        ask: async () => ({ count: recordsOn(await admin.fetchTopicOffsets(topic)) }),
      }))
    },
    trouble: () => connect.failures([source, sink]),
    close: async () => {
      await connect.remove(source)
      await connect.remove(sink)
      await streaming(pair, false)
      await pair.source.sql`select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = ${pair.name}`
      await withAdmin(kafka, (admin) => admin.deleteTopics({ topics: [topic] }))
    },
  }

  async function streaming(at: Pair, wanted: boolean): Promise<void> {
    await reach({
      what: wanted ? 'slots in use' : 'slots let go', goal: wanted ? 1 : 0, everyMs: 50, signal: bench.signal,
      ask: async () => {
        const [row] = await at.source.sql<{ n: number }[]>`select count(*)::integer as n from pg_replication_slots where slot_name = ${at.name} and active`
        return { count: wanted ? row?.n ?? 0 : -(row?.n ?? 0) }
      },
    })
  }
}

function recordsOn(offsets: readonly { high: string }[]): number {
  return offsets.reduce((sum, { high }) => sum + Number(high), 0)
}

function sourceAddress({ source, name }: Pair): Settings {
  const { hostname, port, username, password } = new URL(source.url)
  return {
    'database.hostname': hostname, 'database.port': port, 'database.user': username, 'database.password': password, 'database.dbname': name,
    'topic.prefix': name, 'slot.name': name, 'publication.name': name,
  }
}

function sinkAddress({ target }: Pair): Settings {
  const { host, pathname, username, password } = new URL(target.url)
  return { 'connection.url': `jdbc:postgresql://${host}${pathname}`, 'connection.username': username, 'connection.password': password }
}
