import type { Command } from 'commander'

import { type WaitingReceipts, waitingReceipts } from '../../outbox/receipt.ts'
import { type Count, type Status, statusOf } from '../../outbox/status.ts'
import { withDatabase } from './database.ts'
import { duration, say, sayFields, sayJson, sayTable, size } from './print.ts'
import { bothAddresses } from './target.ts'

export function addStatus(program: Command): void {
  program.command('status')
    .description('what waits where, who holds what')
    .option('--json', 'one JSON document')
    .addHelpText('after', `
With TARGET_DATABASE_URL both databases are shown. Counts above 100,000 are cut off and shown as "at least"; rows of tables are estimates of the last analyze.

Examples:
  deltapost status
  deltapost status --json | jq .to_publish`)
    .action(async ({ json }: { json?: true }) => {
      const { first, target } = bothAddresses()
      const status = await withDatabase(statusOf, first)
      if (target === undefined) return json === true ? sayJson(status) : show(status)
      const second = await withDatabase(async (sql) => ({ ...await statusOf(sql), receipts: await waitingReceipts(sql) }), target)
      if (json === true) return sayJson({ ...status, target: second })
      say('FIRST DATABASE: takes changes in, has the audit')
      show(status)
      say('SECOND DATABASE: applies')
      showReceipts(second.receipts)
      show(second)
    })
}

function showReceipts({ oldest_age_seconds: oldest, shipper, ...waiting }: WaitingReceipts): void {
  sayFields({
    'receipts waiting': `${counted(waiting)}${oldest === null ? '' : `, the oldest noted ${duration(oldest * 1_000)} ago, of origin ${waiting.origins.join(', ')}`}`,
    'shipped by': shipper ?? 'nobody: deltapost serve consumer',
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
    'oldest unsettled': ago(status.oldest.unsettled_seconds),
    'oldest parked': ago(status.oldest.parked_seconds),
    'oldest rejected': ago(status.oldest.rejected_seconds),
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
    'behind the horizon': status.retention.begun_at === null ? undefined : `up to ${status.retention.behind}, dropped up to ${status.retention.dropped}, last looked at ${status.retention.begun_at}`,
  })
  sayTable(status.partitions.map(({ name, low, high, bytes }) => ({ partition: name, 'seq_id from': low, to: high, size: size(Number(bytes)) })))
  sayTable(status.sizes.map(({ table, bytes, estimated_rows, dead_rows, vacuumed_at }) =>
    ({ table, size: size(Number(bytes)), 'rows (estimate)': estimated_rows, dead: dead_rows, 'last vacuum': vacuumed_at })))
}

function ago(seconds: number | null): string | undefined {
  return seconds === null ? undefined : `${duration(seconds * 1_000)} ago`
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
