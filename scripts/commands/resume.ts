import type { Command } from 'commander'

import { beginResume, endActions, type Standing, standingOfRelation, stopByOperator } from '../../outbox/action.ts'
import { DeltapostError } from '../../outbox/errors.ts'
import { faultOf } from '../../services/consumer/failure.ts'
import { openRelations } from '../../services/consumer/relations.ts'
import { resumeRelation } from '../../services/consumer/resume.ts'
import { openLog } from '../../services/runtime/log.ts'
import type { Slot } from '../../services/runtime/slot.ts'
import { interruption } from '../interruption.ts'
import { actorOf } from './actor.ts'
import { say } from './print.ts'
import { type Sides, withSides } from './sides.ts'
import { type TableName, tableName } from './table-name.ts'

export const NOT_DONE = 3

export function addResume(program: Command): void {
  program.command('resume')
    .description('takes up the queue of a stopped table in order, and lets it go on')
    .argument('<schema.table>', 'the table as the source names it', tableName)
    .option('--as <name>', 'who does it, for the audit')
    .addHelpText('after', `
A table that a failure stopped goes on by itself within 15 s once it can be written; one that an operator stopped waits
for this. Exits with 3 where it still cannot be written. Ctrl-C leaves it stopped, with what was taken up applied.

Example:
  deltapost resume guildhall.user_rating`)
    .action((name: TableName, { as }: { as?: string }) => withSides((sides) => resume(sides, name, actorOf(as))))
}

export function addStop(program: Command): void {
  program.command('stop')
    .description('stops a table: its changes queue until resume, others go on')
    .argument('<schema.table>', 'the table as the source names it', tableName)
    .requiredOption('--reason <text>', 'why, for those who look at status')
    .option('--as <name>', 'who does it, for the audit')
    .addHelpText('after', `
Example:
  deltapost stop guildhall.user_rating --reason "columns are being added, back at 9"`)
    .action((name: TableName, { reason, as }: { reason: string; as?: string }) => withSides(async ({ target }) => {
      const relation = await knownRelation(target, name)
      await target.run((sql) => stopByOperator(sql, actorOf(as), relation, reason))
      say(`${named(relation)} is stopped; its changes queue until: deltapost resume ${named(relation)}`)
    }))
}

/** The relation by the name of its source. Throws NO_SUCH_RELATION. */
export async function knownRelation(slot: Slot, { schema, table }: TableName): Promise<Standing> {
  const relation = await slot.run((sql) => standingOfRelation(sql, schema, table))
  if (relation !== undefined) return relation
  throw new DeltapostError('NO_SUCH_RELATION', `no change of ${schema}.${table} was met yet`, 'deltapost schema list shows the tables that were')
}

async function resume({ config, target }: Sides, name: TableName, actor: string): Promise<void> {
  const relation = await knownRelation(target, name)
  if (relation.state === 'ACTIVE') return say(`${named(relation)} is not stopped`)
  const signal = interruption()
  const log = openLog('cli', config.logLevel === 'debug' ? 'debug' : 'silent')
  const relations = openRelations({ source: config.source, destination: config.destination, autoCreate: config.autoCreate, log })
  const action = await target.run((sql) => beginResume(sql, actor, relation))
  const stopped = { id: relation.id, schema: relation.schema, table: relation.table, stoppedBy: relation.stoppedBy ?? 'failure', why: relation.stopReason }
  const tell = everySecond()
  let taken = 0
  let fault: unknown
  // What it came to fail with: resumeRelation says only that it did, and a relation keeps its operator's reason.
  const slot: Slot = { ...target, run: (work) => target.run(work).catch((error: unknown) => {
    fault = error
    throw error
  }) }
  const resumed = await resumeRelation({ slot, relations, clockTolerance: config.clockTolerance, course: config, log }, stopped, signal, (done) => {
    taken = done
    tell(`${done} of ${relation.queued} taken up`)
  })
  const outcome = resumed ? `goes on, ${taken} changes were taken up` : `is still stopped, ${taken} changes were taken up: ${signal.aborted ? 'interrupted' : faultOf(fault)}`
  await target.run((sql) => endActions(sql, [{ id: action, outcome }]))
  say(`${named(relation)} ${outcome}`)
  if (resumed) return
  process.exitCode = NOT_DONE
  process.stderr.write(`Try: ${signal.aborted ? 'deltapost resume' : 'mend what is named, then deltapost resume'} ${named(relation)}\n`)
}

function named({ schema, table }: Standing): string {
  return `${schema}.${table}`
}

/** Tells how far long work is, on stderr, at most once a second. */
export function everySecond(): (line: string) => void {
  let told = performance.now()
  return (line) => {
    if (performance.now() - told < 1_000) return
    told = performance.now()
    process.stderr.write(`${line}\n`)
  }
}
