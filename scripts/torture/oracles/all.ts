import pRetry from 'p-retry'

import { audit } from './audit.ts'
import { effects } from './effects.ts'
import { ledger } from './ledger.ts'
import { type Evidence, few, type Finding, type Oracle } from './oracle.ts'
import { published } from './published.ts'

/** I6, I7, I8: the target is what the source is, row by row. */
const target: Oracle = {
  name: 'target',
  async judge({ workloads, target: sql }) {
    const faults: string[] = []
    for (const { name, faults: differences } of workloads) faults.push(...(await differences(sql)).map((difference) => `${name}: ${difference}`))
    return { figure: workloads.map(({ name }) => name).join(', '), faults }
  },
}

/** I10: all of it was through in time, and every process stands. */
const liveness: Oracle = {
  name: 'liveness',
  async judge({ notDrained, incidents, sources, target: sql }) {
    const outboxes = [...sources.map((source) => source.sql), sql]
    const waiting = await Promise.all(outboxes.map(async (one) => (await one<{ n: number }[]>`select count(*)::integer as n from outbox.event`)[0]?.n ?? 0))
    const [bloat] = await outboxes[0]!<{ event: number; lane: number }[]>`
      select pg_relation_size('outbox.event')::integer >> 20 as event, pg_relation_size('outbox.lane')::integer >> 20 as lane`
    const stopped = await sql<{ relation: string }[]>`select source_schema || '.' || source_table as relation from outbox.relation where stop_reason is not null`
    return {
      figure: `outbox.event ${bloat?.event} MB, outbox.lane ${bloat?.lane} MB`,
      faults: [
        ...(notDrained === undefined ? [] : [notDrained]), ...few('incidents', incidents),
        ...(waiting.some((n) => n > 0) ? [`${waiting.join(' and ')} events wait in the outbox`] : []),
        ...few('relations that stand still', stopped.map(({ relation }) => relation)),
        ...((bloat?.lane ?? 0) > 16 ? [`outbox.lane has grown to ${bloat?.lane} MB`] : []),
      ],
    }
  },
}

/** Memory of a process with a record of 20 MB in it stays below this; each role has some ten connections and files. */
const MOST_MEGABYTES = 700
const MOST_DESCRIPTORS = 400
const MOST_CONNECTIONS = 150

/** Memory, files and connections stay within bounds, whatever was cut and begun anew. */
const growth: Oracle = {
  name: 'growth',
  judge: async ({ growth: { peakMegabytes, peakDescriptors, connections } }) => ({
    figure: `${Math.max(...Object.values(peakMegabytes))} MB, ${Math.max(...Object.values(peakDescriptors))} descriptors, ${connections} connections at most`,
    faults: [
      ...Object.entries(peakMegabytes).flatMap(([role, n]) => (n > MOST_MEGABYTES ? [`a ${role} had ${n} MB`] : [])),
      ...Object.entries(peakDescriptors).flatMap(([role, n]) => (n > MOST_DESCRIPTORS ? [`a ${role} had ${n} descriptors`] : [])),
      ...(connections > MOST_CONNECTIONS ? [`Postgres had ${connections} connections of the roles`] : []),
    ],
  }),
}

export const ORACLES: readonly Oracle[] = [ledger, published, audit, effects, target, liveness, growth]

/**
 * Asks every oracle; one that fails itself is red too. Not at its first fault: its connection may be one that a fault has
 * ended, which the library finds out when it uses it.
 */
export async function askAll(evidence: Evidence): Promise<Finding[]> {
  const findings: Finding[] = []
  for (const { name, judge } of ORACLES) {
    const finding = await pRetry(() => judge(evidence), { retries: 4, minTimeout: 200 }).catch((error: unknown) => ({ figure: 'could not look', faults: [error instanceof Error ? error.message : String(error)] }))
    findings.push({ oracle: name, ...finding })
  }
  return findings
}
