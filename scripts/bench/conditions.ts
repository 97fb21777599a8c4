import { spawnSync } from 'node:child_process'
import { closeSync, fdatasyncSync, mkdirSync, openSync, rmSync, writeSync } from 'node:fs'
import { cpus, loadavg, totalmem } from 'node:os'
import { join } from 'node:path'
import type { Sql } from 'postgres'

import { KAFKA_VERSION } from '../stack/kafka-jars.ts'
import type { WayName } from '../stack/stack.ts'
import { spreadOf } from './result.ts'

/** What a reader must know to judge the figures. Names are those that are printed. */
export type Conditions = Readonly<Record<string, string>>

const SETTINGS = [
  'fsync', 'synchronous_commit', 'full_page_writes', 'wal_level', 'wal_compression', 'shared_buffers', 'max_wal_size', 'checkpoint_timeout', 'autovacuum', 'jit',
]
const SYNCS = 200
const BLOCK = Buffer.alloc(8_192, 1)

export async function conditionsOf(sql: Sql, way: WayName, folder: string): Promise<Conditions> {
  const [version] = await sql<{ version: string }[]>`select current_setting('server_version') as version`
  const settings = await sql<{ name: string; value: string }[]>`
    select name, current_setting(name) as value from pg_settings where name = any(${SETTINGS}) order by name`
  const [first] = cpus()
  const commit = spawnSync('git', ['rev-parse', '--short', 'HEAD'], { cwd: import.meta.dirname, encoding: 'utf8' })
  const changed = spawnSync('git', ['status', '--porcelain', '--untracked-files=no'], { cwd: import.meta.dirname, encoding: 'utf8' })
  return {
    at: new Date().toISOString(),
    machine: `${cpus().length} cores (${first?.model.trim() ?? 'unknown'}), ${(totalmem() / 2 ** 30).toFixed(0)} GB, everything on it`,
    'load average at the start': loadavg().map((load) => load.toFixed(2)).join(' '),
    fdatasync: syncTimes(folder),
    node: process.versions.node,
    postgres: version?.version ?? 'unknown',
    settings: settings.map(({ name, value }) => `${name}=${value}`).join(', '),
    kafka: way === 'embedded' ? `${KAFKA_VERSION}, one node, acks=all (not fsync), no compression` : 'the one of the environment',
    servers: way,
    ...(commit.status === 0 ? { commit: `${commit.stdout.trim()}${changed.stdout.trim() === '' ? '' : ' with changes'}` } : {}),
  }
}

/** How long the disk takes to make 8 KB durable; in the folder of the servers' data where they are ours. */
export function syncTimes(folder: string): string {
  mkdirSync(folder, { recursive: true })
  const file = join(folder, 'sync-probe')
  const handle = openSync(file, 'w')
  const times: number[] = []
  try {
    for (let n = 0; n < SYNCS; n += 1) {
      const begun = performance.now()
      writeSync(handle, BLOCK, 0, BLOCK.length, 0)
      fdatasyncSync(handle)
      times.push((performance.now() - begun) * 1_000)
    }
  } finally {
    closeSync(handle)
    rmSync(file)
  }
  const { median, min, max } = spreadOf(times)
  return `8 KB in ${median.toFixed(0)} µs (${min.toFixed(0)} to ${max.toFixed(0)})`
}
