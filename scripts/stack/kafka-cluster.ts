import { join } from 'node:path'

import { kafkaNode, newCluster, type EmbeddedKafka, type Place } from './embedded-kafka.ts'
import { freePorts } from './free-port.ts'
import { kafkaJars } from './kafka-jars.ts'

/** Several KRaft nodes of this process, each broker and controller. */
export type EmbeddedCluster = {
  /** All of them, separated by commas. */
  brokers: string
  ports: number[]
  /** In the order of their ids, which begin with 1. */
  nodes: Pick<EmbeddedKafka, 'kill' | 'start' | 'stop'>[]
  /** Ends all of them at once: a node that leaves in good order waits for the others to take over. */
  stop: () => Promise<void>
}

// Nodes share a machine with everything else that is under test.
const HEAP = ['-Xms128m', '-Xmx384m']
const COPIES = 3
const COPIES_OF_AN_ACK = 2

/**
 * Starts `nodes` new nodes on 127.0.0.1 with data below `directory`. Every topic has three copies, and acks=all means two
 * of them: with three nodes one may be away. Each takes up to 384 MB of heap and about half a minute of a core to start.
 */
export async function embeddedCluster(options: { directory: string; nodes: number; environment?: Record<string, string> | undefined; log: (line: string) => void }): Promise<EmbeddedCluster> {
  await kafkaJars(options.log) // fetched once, where they are not there, and not by every node
  const ports = await freePorts(options.nodes * 2)
  const places = Array.from({ length: options.nodes }, (_, at): Place => ({ port: ports[at * 2] ?? 0, controllerPort: ports[at * 2 + 1] ?? 0 }))
  const settings = clusterSettings(places)
  const cluster = newCluster()
  const started = await Promise.allSettled(places.map((place, at) => kafkaNode({
    directory: join(options.directory, `node-${at + 1}`), place, cluster, heap: HEAP, fresh: true, environment: options.environment, log: options.log,
    settings: { ...settings, 'node.id': String(at + 1) },
  })))
  const nodes = started.flatMap((one) => (one.status === 'fulfilled' ? [one.value] : []))
  const stop = async (): Promise<void> => {
    await Promise.all(nodes.map((node) => node.kill()))
    await Promise.all(nodes.map((node) => node.stop()))
  }
  const failed = started.find((one) => one.status === 'rejected')
  if (failed !== undefined) {
    await stop()
    throw failed.reason
  }
  return { brokers: nodes.map(({ brokers }) => brokers).join(), ports: nodes.map(({ port }) => port), nodes, stop }
}

function clusterSettings(places: readonly Place[]): Record<string, string> {
  const copies = String(Math.min(COPIES, places.length))
  const least = String(Math.min(COPIES_OF_AN_ACK, places.length))
  return {
    'controller.quorum.voters': places.map(({ controllerPort }, at) => `${at + 1}@127.0.0.1:${controllerPort}`).join(),
    'default.replication.factor': copies,
    'min.insync.replicas': least,
    'offsets.topic.replication.factor': copies,
    'transaction.state.log.replication.factor': copies,
    'transaction.state.log.min.isr': least,
    'share.coordinator.state.topic.replication.factor': copies,
    'share.coordinator.state.topic.min.isr': least,
    // A follower that froze holds up every acks=all write for so long; the default is 30 s, longer than any fault here.
    'replica.lag.time.max.ms': '5000',
  }
}
