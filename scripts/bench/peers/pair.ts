import { randomBytes } from 'node:crypto'
import postgres, { type Sql } from 'postgres'

import type { Counted } from '../measure.ts'
import { TABLE } from '../changes.ts'
import type { Bench } from '../place.ts'
import { listeningProcess } from '../../stack/server-process.ts'

/**
 * Of every server of a bench. A quarter of a gigabyte of buffers was written out and read back while a run lasted: a tenth
 * of the time of PostgreSQL. A bench loads for minutes: no checkpoint falls into one run and not into another.
 */
export const BENCH_SETTINGS = { shared_buffers: '1GB', max_wal_size: '8GB', checkpoint_timeout: '30min' }

/** What peers need of the servers of their run; both servers have it, and ours is measured on it too. */
export const PEER_SETTINGS = {
  ...BENCH_SETTINGS,
  // Logical replication and Debezium read the log.
  wal_level: 'logical',
  // Latency is to the commit in the target, by the server's own record of it.
  track_commit_timestamp: 'on',
}

/** Two servers: the bench's is the source, a second one with the same settings the target. */
export type Ground = { bench: Bench; targetUrl: string }

/** The bench's table in a database of its own on each server; how rows come from one to the other is the peer's affair. */
export type Pair = {
  name: string
  source: { url: string; sql: Sql }
  target: { url: string; sql: Sql }
  /** For the counters: both servers, the broker, and the peer's process where it has one. */
  counted: (peer?: { name: string; pid: number }) => Counted
  drop: () => Promise<void>
}

/**
 * `due`, microseconds since 1970, is when a change should have been made. `arrived` is for a peer whose commits in the
 * target do not tell when they were made.
 */
const SOURCE_TABLE = `${TABLE}; alter table bench.item add due bigint not null`
const TARGET_TABLE = `${SOURCE_TABLE}; alter table bench.item add arrived timestamptz`

/** Two new databases with empty tables. */
export async function openPair(ground: Ground): Promise<Pair> {
  const name = `deltapost_peer_${randomBytes(4).toString('hex')}`
  const source = databaseOn(ground.bench.stack.databaseUrl, name)
  const target = databaseOn(ground.targetUrl, `${name}_target`)
  const pair: Pair = {
    name, source, target,
    counted: (peer) => ({
      sql: source.sql, roles: [],
      servers: { postgres: postgresOf(source.url), kafka: kafkaOf(ground.bench) },
      second: { sql: target.sql, postgres: postgresOf(target.url) },
      ...(peer === undefined ? {} : { peer }),
    }),
    drop: async () => {
      await Promise.all([source, target].map(async ({ sql, drop }) => {
        await sql.end({ timeout: 5 })
        await drop()
      }))
    },
  }
  try {
    await Promise.all([source.create(SOURCE_TABLE), target.create(TARGET_TABLE)])
    return pair
  } catch (error) {
    await pair.drop()
    throw error
  }
}

function databaseOn(server: string, name: string) {
  const url = new URL(server)
  url.pathname = `/${name}`
  const sql = postgres(url.href, { max: 2, connect_timeout: 10, onnotice: () => {}, connection: { application_name: 'deltapost bench', TimeZone: 'UTC' } })
  const onServer = async (statement: (admin: Sql) => PromiseLike<unknown>): Promise<void> => {
    const admin = postgres(server, { max: 1, connect_timeout: 10, onnotice: () => {} })
    await Promise.resolve(statement(admin)).finally(() => admin.end({ timeout: 5 }))
  }
  return {
    url: url.href, sql,
    create: async (table: string): Promise<void> => {
      await onServer((admin) => admin`create database ${admin(name)}`)
      await sql.unsafe(table)
    },
    drop: () => onServer((admin) => admin`drop database if exists ${admin(name)} with (force)`),
  }
}

function postgresOf(url: string): number | undefined {
  const { hostname, port } = new URL(url)
  return listeningProcess(hostname, port === '' ? 5_432 : Number(port))
}

function kafkaOf({ stack }: Bench): number | undefined {
  const [host = '', port = '9092'] = (stack.kafkaBrokers.split(',')[0] ?? '').split(':')
  return listeningProcess(host, Number(port))
}
