import { spawnSync } from 'node:child_process'
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'

import { DeltapostError } from '../../outbox/errors.ts'
import { embeddedKafka } from '../stack/embedded-kafka.ts'
import { embeddedPostgres } from '../stack/embedded-postgres.ts'
import { embeddedCluster } from '../stack/kafka-cluster.ts'
import type { Servers } from './rig.ts'
import { type ServerClock, serverClocks } from './server-clock.ts'

/** What a file system has that is to be filled: enough for a short run. */
const SMALL_MEGABYTES = 1_500

export type ServerOptions = {
  directory: string
  brokers: number
  /** Postgres gets a disk that can be filled. */
  small: boolean
  /** The servers get a time of day that can be shifted, where that can be had. */
  shifted: boolean
  log: (line: string) => void
}

/** A PostgreSQL and a Kafka of this process, with one node or three. */
export async function startServers(options: ServerOptions): Promise<Servers & { stop: () => Promise<void> }> {
  const { directory, log } = options
  const begun = performance.now()
  const place = join(directory, 'postgres')
  if (options.small) mountSmall(place)
  const clocks = options.shifted ? serverClocks(directory, ['postgres', 'kafka']) : undefined
  if (typeof clocks === 'string') log(`the clocks of PostgreSQL and Kafka cannot be stepped here, and the faults that do so will say so: ${clocks}`)
  const { postgres: ofPostgres, kafka: ofKafka } = typeof clocks === 'object' ? clocks : {}
  const [postgres, kafka] = await Promise.all([embeddedPostgres({ directory: place, environment: ofPostgres?.environment ?? {} }), startKafka(join(directory, 'kafka'), options, ofKafka)])
  log(`servers: PostgreSQL and ${options.brokers === 1 ? 'a Kafka of one node' : `${options.brokers} Kafka nodes`}, ready in ${((performance.now() - begun) / 1_000).toFixed(1)} s`)
  return {
    postgres, directory, kafka: kafka.nodes, ports: kafka.ports, clocks: typeof clocks === 'object' ? clocks : undefined,
    async stop() {
      await Promise.all([postgres.stop(), kafka.stop()])
      if (options.small) spawnSync('umount', [place])
    },
  }
}

async function startKafka(directory: string, { brokers, log }: ServerOptions, clock: ServerClock | undefined): Promise<{ ports: readonly number[]; nodes: Servers['kafka']; stop: () => Promise<void> }> {
  if (brokers > 1) return embeddedCluster({ directory, nodes: brokers, environment: clock?.environment, log })
  const kafka = await embeddedKafka({ directory, environment: clock?.environment, log })
  return { ports: [kafka.port], nodes: [kafka], stop: kafka.stop }
}

function mountSmall(place: string): void {
  mkdirSync(place, { recursive: true })
  const done = spawnSync('mount', ['-t', 'tmpfs', '-o', `size=${SMALL_MEGABYTES}m`, 'none', place], { encoding: 'utf8' })
  if (done.status === 0) return
  throw new DeltapostError('NO_SMALL_DISK', `a disk that can be filled cannot be mounted: ${done.error?.message ?? done.stderr.trim()}`, 'run as root on Linux, or leave out the fault disk-full')
}
