import type { Command } from 'commander'

import { DeltapostError } from '../../outbox/errors.ts'
import { type Trace, traceOf } from '../../outbox/trace.ts'
import { withDatabase } from './database.ts'
import { addEventPublish, noSuchChange } from './event-publish.ts'
import { duration, say, sayFields, sayJson, sayTable, size } from './print.ts'
import { seqId } from './seq-id.ts'
import { bothAddresses } from './target.ts'

const SHOWN = 2_048

export function addEvent(program: Command): void {
  const event = program.command('event').description('one change')
  event.command('show')
    .description('the whole way of one change, with times')
    .argument('<seq_id>', 'the number the listener answered', seqId)
    .option('--full', 'the whole payload, not its first 2 KB')
    .option('--json', 'one JSON document')
    .addHelpText('after', `
Examples:
  deltapost event show 4711
  deltapost event show 4711 --json --full`)
    .action(async (id: string, { full, json }: { full?: true; json?: true }) => {
      const trace = await traceNamed(id)
      if (trace === undefined) throw noSuchChange([id])
      const shown = full === true ? trace : { ...trace, received: { ...trace.received, payload: cut(trace.received.payload) } }
      if (json === true) sayJson(shown)
      else showTrace(shown)
    })
  addEventPublish(event)
}

/** Its way through both databases. Where the target does not answer, what the first knows is told all the same. */
async function traceNamed(id: string): Promise<Trace | undefined> {
  const { first, target } = bothAddresses()
  if (target === undefined) return withDatabase((sql) => traceOf(sql, id), first)
  try {
    return await withDatabase(async (there) => {
      await there`select 1` // a target that is away shows here, under its own address
      return withDatabase((sql) => traceOf(sql, id, there), first)
    }, target)
  } catch (error) {
    if (!(error instanceof DeltapostError && error.code === 'DATABASE_UNREACHABLE')) throw error
    const trace = await withDatabase((sql) => traceOf(sql, id), first)
    process.stderr.write(`${error.message}; what follows is what the first database knows\n`)
    return trace
  }
}

/** Prints the way of one change, step by step. */
export function showTrace(trace: Trace): void {
  const { payload, bytes, ...received } = trace.received
  const { lags } = trace
  say('received')
  sayFields({ ...received, bytes: size(bytes), 'after the source': lag(lags.source_to_received) })
  if (trace.waiting !== null) {
    say('waits to be published')
    sayFields(trace.waiting)
  }
  for (const [at, published] of trace.published.entries()) {
    say(at === 0 ? 'published' : 'published again')
    sayFields({ ...published, 'after receipt': at === 0 ? lag(lags.received_to_published) : null })
  }
  if (trace.applied !== null) {
    const { consumer_query: query, ...applied } = trace.applied
    say('applied')
    sayFields({ ...applied, 'after publishing': lag(lags.published_to_applied), 'after receipt': lag(lags.received_to_applied) })
    say(`statement\n  ${query.replaceAll('\n', '\n  ')}`)
  }
  if (trace.held_up !== null) {
    say('holds up its partition')
    sayFields(trace.held_up)
  }
  if (trace.parked !== null) {
    say('parked')
    sayFields(trace.parked)
  }
  if (trace.row_version !== null) {
    const { newer, ...version } = trace.row_version
    say(`version of its row${newer ? ' (of another change)' : ''}`)
    if (version.epoch === 0) sayFields({ key: version.key, parked: version.parked, version: 'never applied' })
    else sayFields(version)
  }
  if (trace.rejected.length > 0) {
    say('came from the rejected request')
    sayTable(trace.rejected)
  }
  say(`payload\n  ${payload}`)
}

function cut(payload: string): string {
  return payload.length <= SHOWN ? payload : `${payload.slice(0, SHOWN)}... (${payload.length - SHOWN} characters more: --full)`
}

function lag(ms: number | null): string | null {
  return ms === null ? null : duration(ms)
}
