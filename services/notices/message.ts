import type { Batch, FailureGroup } from '../../outbox/notice.ts'

/** One message as every channel takes it: a line, a text, and the same as members. */
export type Notice = { id: string; title: string; text: string; members: Readonly<Record<string, unknown>> }

/** The message of a batch: what failed how often, which changes, and what to type. Values of rows are not in a batch. */
export function noticeOf(batch: Batch): Notice {
  const { id, database, since, until, counts, groups, left_out: leftOut, seq_ids: seqIds } = batch
  const title = `Deltapost: ${batch.at_least ? 'at least ' : ''}${summary(counts)}`
  const commands = commandsFor(batch)
  const lines = [
    title,
    `database ${database}, ${since} to ${until}`,
    '',
    ...groups.filter(({ kind }) => kind !== 'REJECTED').map((group) => `${group.count} × ${describe(group)}`),
    ...(leftOut > 0 ? [`and ${leftOut} other kinds`] : []),
    ...(seqIds.length > 0 ? [`changes: ${seqIds.join(', ')}${seqIds.length < counts.failed ? ' …' : ''}`] : []),
    '',
    ...commands,
  ]
  return { id, title, text: lines.join('\n'), members: { ...batch, commands, status: 'firing', alerts: groups.map((group) => alertOf(group, batch)) } }
}

/** What `deltapost notice test` sends: the same members, and nothing in them. */
export function testNotice(id: string): Notice {
  const title = 'Deltapost: a test notice, nothing failed'
  const members = { id, counts: { failed: 0, stopped: 0, rejected: 0 }, groups: [], seq_ids: [], commands: ['deltapost status'], status: 'resolved', alerts: [] }
  return { id, title, text: `${title}\n\ndeltapost status`, members }
}

function summary({ failed, stopped, rejected }: Batch['counts']): string {
  const parts = [
    ...(failed > 0 ? [`${failed} ${failed === 1 ? 'change' : 'changes'} failed`] : []),
    ...(stopped > 0 ? [`${stopped} ${stopped === 1 ? 'relation' : 'relations'} stopped`] : []),
    ...(rejected > 0 ? [`${rejected} ${rejected === 1 ? 'request' : 'requests'} rejected`] : []),
  ]
  return parts.join(', ')
}

function describe({ kind, relation, side, reason, sqlstate }: FailureGroup): string {
  const what = kind === 'STOPPED' ? 'stopped' : side ?? 'failed'
  return [shown(relation), what, reason, sqlstate === null ? null : `SQLSTATE ${sqlstate}`].filter((part) => part !== null).join(', ')
}

/** A posted name may hold anything; what a chat would read as a link or a call to everybody is taken out of the text. */
function shown(relation: string | null): string {
  return relation === null ? 'unknown relation' : relation.replaceAll(/[<>&@*`\\]/g, '?')
}

/** Said once each. A name that a shell could take for something else is not put into a command. */
function commandsFor({ groups, counts }: Batch): string[] {
  const commands = groups.map(({ kind, relation }) => {
    const plain = relation !== null && /^[\p{L}\p{N}_]+\.[\p{L}\p{N}_]+$/u.test(relation) ? relation : undefined
    if (kind === 'STOPPED') return plain === undefined ? 'deltapost schema list' : `deltapost resume ${plain}`
    if (kind === 'REJECTED') return undefined
    return plain === undefined ? 'deltapost parked list' : `deltapost parked list --table ${plain}`
  })
  const told = new Set(commands.filter((command) => command !== undefined))
  if (counts.rejected > 0) told.add('deltapost rejected list')
  return [...told]
}

/** The form in which Alertmanager hands over, so that what receives from it can receive this. */
function alertOf({ kind, relation, side, reason, sqlstate, count }: FailureGroup, { since }: Batch): Record<string, unknown> {
  const labels = { alertname: `DELTAPOST_${kind}`, relation, side, reason, sqlstate }
  return {
    status: 'firing',
    labels: Object.fromEntries(Object.entries(labels).filter(([, value]) => value !== null)),
    annotations: { count: String(count) },
    startsAt: since,
  }
}
