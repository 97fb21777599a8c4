import type { Command } from 'commander'

import { type Count, type Status, statusOf } from '../../outbox/status.ts'
import { withDatabase } from './database.ts'
import { duration, say, sayFields, sayJson, sayTable, size } from './print.ts'

export function addStatus(program: Command): void {
  program.command('status')
    .description('what waits where, who holds what')
    .option('--json', 'one JSON document')
    .addHelpText('after', `
Counts above 100,000 are cut off and shown as "at least"; rows of tables are estimates of the last analyze.

Examples:
  deltapost status
  deltapost status --json | jq .to_publish`)
    .action(async ({ json }: { json?: true }) => {
      const status = await withDatabase(statusOf)
      if (json === true) sayJson(status)
      else show(status)
    })
}

function show(status: Status): void {
  say('changes')
  const { oldest_age_seconds: oldest } = status.to_publish
  sayFields({
    'to publish': `${counted(status.to_publish)}${oldest === null ? '' : `, the oldest received ${duration(oldest * 1_000)} ago`}`,
    'to apply': counted(status.to_apply),
    ...Object.fromEntries(Object.entries(status.outcomes).map(([name, count]) => [name.toLowerCase(), counted(count)])),
    'rejected, waiting': counted(status.rejected_waiting),
  })
  if (status.parked.length > 0) sayTable(status.parked)
  say('positions of this database')
  sayFields({ origin: status.origin, 'last position': status.last_position, 'settled up to': status.settled_up_to, floor: floorText(status) })
  say(`relays (${status.free_lanes} lanes free)`)
  sayTable(status.relays, 'none is alive: deltapost serve relay')
  say('consumers')
  sayTable(status.positions.map(({ waiting_for: why, waiting_since: since, waiting_seq_id: seqId, ...position }) =>
    ({ ...position, waits: why === null ? undefined : `at ${seqId ?? '-'} since ${since ?? '-'}` })), 'none has read yet: deltapost serve consumer')
  for (const { topic, partition, waiting_for: why } of status.positions) if (why !== null) say(`  ${topic}/${partition} waits: ${why}`)
  say('relations')
  sayTable(status.relations.map((relation) => ({ ...relation, key_columns: relation.key_columns?.join(', ') })), 'none was met yet')
  say('storage')
  sayFields({
    'partitions ahead': status.partitions_ahead,
    'default partition': status.default_partition_empty ? 'empty' : 'holds rows: no partition was made ahead of them',
  })
  sayTable(status.sizes.map(({ table, bytes, estimated_rows }) => ({ table, size: size(Number(bytes)), 'rows (estimate)': estimated_rows })))
}

function counted({ count, at_least }: Count): string {
  return at_least ? `at least ${count}` : String(count)
}

function floorText({ floor }: Status): string {
  const where = floor.lowest === floor.highest ? floor.lowest : `${floor.lowest} to ${floor.highest}`
  if (floor.holder === null) return where
  const { kind, name, database, state, age_seconds: age } = floor.holder
  return `${where}, ${floor.behind} behind; held by the ${kind === 'prepared' ? 'prepared transaction' : 'session'} ${name}`
    + ` in ${database ?? 'no database'} (${state ?? 'unknown'}, open for ${duration(age * 1_000)})`
}
