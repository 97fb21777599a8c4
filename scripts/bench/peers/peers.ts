import { join } from 'node:path'

import { type Peer, PEERS } from '../../commands/bench.ts'
import { embeddedPostgres } from '../../stack/embedded-postgres.ts'
import { naiveRun } from '../naive.ts'
import { atRate, drain } from '../pipeline.ts'
import { makeSteps } from '../changes.ts'
import type { Bench } from '../place.ts'
import type { Measured, RatioRule } from '../result.ts'
import { missingForConnect } from './connect.ts'
import { openDebezium } from './debezium.ts'
import { openNative } from './native.ts'
import { missingForOutboxPackage } from './outbox-package.ts'
import { outboxToKafka } from './outbox-to-kafka.ts'
import { type Ground, PEER_SETTINGS } from './pair.ts'
import { BACKLOGS, measureTablePeer, type TablePeer } from './table-peer.ts'

type Keep = (run: Measured) => void
type PeerRun = { missing: () => string | undefined; run: (ground: Ground, repeat: number, keep: Keep) => Promise<void> }

/** Why a peer has no figures in a run. */
export type NotRun = { peer: Peer; why: string }

/**
 * Deltapost's pipeline and each peer, one after the other on the same servers, as often as asked. A peer that cannot run
 * here, or breaks, is named with the reason and the others go on.
 */
export async function measurePeers(bench: Bench, peers: readonly Peer[], directory: string, keep: Keep): Promise<NotRun[]> {
  const runs = runsIn(directory)
  const notRun = new Map<Peer, string>()
  for (const name of peers) {
    const why = runs[name].missing()
    if (why !== undefined) notRun.set(name, why)
  }
  const target = await embeddedPostgres({ directory: join(directory, 'target'), fresh: true, settings: PEER_SETTINGS })
  try {
    const ground: Ground = { bench, targetUrl: target.url('postgres') }
    for (let repeat = 1; repeat <= bench.options.repeats; repeat += 1) {
      await ours(bench, repeat, keep)
      for (const name of peers.filter((peer) => !notRun.has(peer))) {
        try {
          await runs[name].run(ground, repeat, keep)
        } catch (error) {
          if (bench.signal.aborted) throw error
          notRun.set(name, error instanceof Error ? error.message : String(error))
          bench.tell(`  ${name} ended: ${notRun.get(name)}`)
        }
      }
    }
  } finally {
    await target.stop()
  }
  return [...notRun].map(([peer, why]) => ({ peer, why }))
}

async function ours(bench: Bench, repeat: number, keep: Keep): Promise<void> {
  const { events, rate, seconds } = bench.options
  for (const { mix, ...how } of BACKLOGS) keep(await drain(bench, { ...how, repeat }, makeSteps(events, mix)))
  keep(await atRate(bench, { bytes: 100, repeat, rate, seconds }))
}

function runsIn(directory: string): Record<Peer, PeerRun> {
  const between = (open: (ground: Ground) => Promise<TablePeer>): PeerRun['run'] => async (ground, repeat, keep) => {
    const peer = await open(ground)
    await measureTablePeer(ground, peer, repeat, keep).finally(() => peer.close())
  }
  return {
    naive: {
      missing: () => undefined,
      run: async ({ bench }, repeat, keep) => {
        for (const bytes of [100, 1_000]) keep(await naiveRun(bench, { bytes, repeat }))
        keep(await naiveRun(bench, { bytes: 100, repeat, rate: bench.options.rate }))
      },
    },
    native: { missing: () => undefined, run: between(async (ground) => openNative(ground)) },
    debezium: { missing: missingForConnect, run: between((ground) => openDebezium(ground, join(directory, 'connect'), 'best')) },
    'debezium-json': { missing: missingForConnect, run: between((ground) => openDebezium(ground, join(directory, 'connect-json'), 'json')) },
    'pg-transactional-outbox': { missing: missingForOutboxPackage, run: outboxToKafka },
  }
}

/** Ours against each peer of the same repeat; targets are those of the project. */
export function peerRatios(rate: number): RatioRule[] {
  const drains: Partial<Record<Peer, number>> = { debezium: 1.1, 'debezium-json': 2, naive: 40 }
  return PEERS.flatMap((peer): RatioRule[] => [
    ...BACKLOGS.map(({ variant }): RatioRule => ({
      name: `${variant} to ${peer}`, of: `pipeline: ${variant}`, to: `${peer}: ${variant}`,
      ...(drains[peer] === undefined ? {} : { target: drains[peer] }),
    })),
    // At 1,000/s no longer than Debezium at its best, at 5,000/s half as long.
    {
      name: `p99 at ${rate}/s of ${peer} to ours`, of: `pipeline: ${rate}/s 100 B`, to: `${peer}: ${rate}/s 100 B`, p99: true,
      ...(peer === 'debezium' ? { target: rate >= 5_000 ? 2 : 1 } : {}),
    },
  ])
}
