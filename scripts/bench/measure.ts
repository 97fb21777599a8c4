import { readdirSync, statSync } from 'node:fs'
import { loadavg } from 'node:os'
import { join } from 'node:path'
import type { Sql } from 'postgres'

import type { Latency } from './latency.ts'
import type { Place } from './place.ts'
import type { Group, Measured } from './result.ts'
import { allProcesses, peakOf, statOf } from '../stack/server-process.ts'

/** Linux counts the time of processes in hundredths of a second, whatever the kernel's own clock is. */
const TICKS = 100

/** Whose counters are read: a place, or two databases on two servers with a peer between them. */
export type Counted = Pick<Place, 'sql' | 'servers' | 'roles'> & {
  second?: { sql: Sql; postgres: number | undefined }
  peer?: { name: string; pid: number }
}

/** Where the counters stand at one moment. */
export type Reading = { at: number; cpu: Partial<Record<Group, number>>; wal: bigint }

export async function takeReading(place: Counted): Promise<Reading> {
  const wal = await walOf(place.sql) + (place.second === undefined ? 0n : await walOf(place.second.sql))
  const cpu: Reading['cpu'] = { bench: (process.cpuUsage().user + process.cpuUsage().system) / 1e6 }
  const { postgres, kafka } = place.servers
  const { second, peer } = place
  if (postgres !== undefined) cpu.postgres = secondsOfTree(postgres) + (second?.postgres === undefined ? 0 : secondsOfTree(second.postgres))
  const broker = kafka === undefined ? undefined : secondsOf(kafka, false)
  if (broker !== undefined) cpu.kafka = broker
  const roles = place.roles.map(({ pid }) => secondsOf(pid, false))
  if (roles.length > 0 && roles.every((seconds) => seconds !== undefined)) cpu.ours = roles.reduce((sum, seconds) => sum + seconds, 0)
  const theirs = peer === undefined ? undefined : secondsOf(peer.pid, false)
  if (theirs !== undefined) cpu.peer = theirs
  return { at: performance.now(), cpu, wal }
}

async function walOf(sql: Sql): Promise<bigint> {
  const [row] = await sql<{ lsn: string }[]>`select pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::text as lsn`
  return BigInt(row?.lsn ?? 0)
}

/** What one run comes to: `changes` between the two readings, of which `seconds` are those the rate is taken from. */
export function measuredBetween(place: Counted, before: Reading, after: Reading, run: {
  scenario: string; variant: string; repeat: number; changes: number; seconds: number; faults: string[]
  latency?: Latency; more?: Record<string, number>; kafkaBytes?: number
}): Measured {
  const { kafkaBytes, ...rest } = run
  const perMillion = Object.fromEntries(Object.entries(after.cpu).flatMap(([group, seconds]) => {
    const begun = before.cpu[group as Group] // the names of after.cpu are groups
    return begun === undefined ? [] : [[group, (seconds - begun) * 1e6 / run.changes]]
  }))
  return {
    ...rest,
    perSecond: run.changes / run.seconds,
    cpu: perMillion,
    walBytes: Number(after.wal - before.wal) / run.changes,
    ...(kafkaBytes === undefined ? {} : { kafkaBytes: kafkaBytes / run.changes }),
    peak: peaks(place),
    load: loadavg()[0] ?? 0,
  }
}

function peaks(place: Counted): Record<string, number> {
  const programs = [...place.roles.map(({ role, pid }) => ({ name: String(role), pid })), ...(place.peer === undefined ? [] : [place.peer])]
  const named = [...programs, { name: 'kafka', pid: place.servers.kafka ?? 0 }]
  return Object.fromEntries(named.flatMap(({ name, pid }) => {
    const bytes = peakOf(pid)
    return bytes === undefined ? [] : [[name, bytes]]
  }))
}

function secondsOf(pid: number, ended: boolean): number | undefined {
  const fields = statOf(pid)
  if (fields === undefined) return undefined
  // utime, stime, and the same of children that have ended and were waited for.
  const [user, system, endedUser, endedSystem] = fields.slice(11, 15).map(Number)
  return ((user ?? 0) + (system ?? 0) + (ended ? (endedUser ?? 0) + (endedSystem ?? 0) : 0)) / TICKS
}

/** A server with a process per connection: those that run, and those that have ended since it began. */
function secondsOfTree(root: number): number {
  const children = allProcesses().filter((pid) => Number(statOf(pid)?.[1]) === root)
  return children.reduce((sum, pid) => sum + (secondsOf(pid, false) ?? 0), secondsOf(root, true) ?? 0)
}

/** Bytes of a topic's records on disk; undefined where the broker's files are not ours to read. */
export function topicBytes(kafkaData: string | undefined, topic: string): number | undefined {
  if (kafkaData === undefined) return undefined
  const partitions = readdirSync(kafkaData).filter((name) => name.startsWith(`${topic}-`) && /^\d+$/.test(name.slice(topic.length + 1)))
  return partitions
    .flatMap((name) => readdirSync(join(kafkaData, name)).filter((file) => file.endsWith('.log')).map((file) => join(kafkaData, name, file)))
    .reduce((sum, file) => sum + statSync(file).size, 0)
}
