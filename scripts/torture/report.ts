import type { Result } from './campaign.ts'
import type { MutantVerdict } from './mutant-run.ts'
import { hasSteps } from './plan.ts'

/** Every oracle is green, each fault could be done, and every step that was to be passed was. */
export function isGreen(result: Result): boolean {
  return result.findings.every(({ faults }) => faults.length === 0) && undone(result).length === 0
}

/** What was to be done and was not: in a run of steps that is all of the plan. */
function undone({ plan, happened, notes }: Result): string[] {
  const left = hasSteps(plan) ? plan.schedule.length - happened.length : 0
  return [
    ...happened.flatMap(({ fault, failed }) => (failed === undefined ? [] : [`the fault ${fault} could not be done or mended: ${failed}`])),
    ...notPassed(notes),
    ...(left === 0 ? [] : [`${left} of the plan were not begun: give more --events`]),
  ]
}

function notPassed(notes: Record<string, number>): string[] {
  return Object.keys(notes).flatMap((note) => (note.endsWith(' not passed') && notes[note.replace(' not passed', ' hit')] === undefined ? [note] : []))
}

/** The report: what was done, and what each oracle says. */
export function showResult(result: Result): void {
  const { plan, happened, findings, growth } = result
  const lines = [
    `seed ${plan.seed}, ${result.changes} changes in ${result.posts} posts, ${result.seconds.toFixed(0)} s; all through ${result.drainSeconds.toFixed(1)} s after the last post`,
    `answers: ${Object.entries(result.answers).map(([status, n]) => `${n} × ${status}`).join(', ')}`,
    `faults: ${happened.length} (${counted(happened.map(({ kind }) => kind))})`,
    ...[...new Set(happened.map(({ fault }) => fault))].toSorted().map((fault) => `  ${faultLine(fault, result)}`),
    ...Object.entries(result.notes).map(([what, n]) => `  ${what}: ${n}`),
    `peaks: ${Object.entries(growth.peakMegabytes).map(([role, megabytes]) => `${role} ${megabytes} MB, ${growth.peakDescriptors[role]} descriptors`).join('; ')}; ${growth.connections} connections; lag ${growth.worstLag.toFixed(1)} s`,
    ...findings.flatMap(({ oracle, figure, faults }) => [`${faults.length === 0 ? 'green' : 'RED  '} ${oracle}: ${figure}`, ...faults.map((fault) => `        ${fault}`)]),
    ...undone(result).map((what) => `RED   ${what}`),
  ]
  process.stdout.write(`${lines.join('\n')}\n`)
}

function faultLine(fault: string, { happened }: Result): string {
  const all = happened.filter((one) => one.fault === fault)
  const recovered = all.flatMap(({ recovered: ms }) => ms ?? []).toSorted((a, b) => a - b)
  const p95 = recovered[Math.ceil(recovered.length * 0.95) - 1]
  return `${fault} × ${all.length}${p95 === undefined ? '' : `, lag below 1 s again after ${(p95 / 1_000).toFixed(1)} s (p95 of ${recovered.length})`}`
}

function counted(names: readonly string[]): string {
  return [...new Set(names)].map((name) => `${names.filter((one) => one === name).length} ${name}`).join(', ')
}

/** A line for each planted bug, behind that of the control: which oracle turned red, and after how long. */
export function showMutants([control, ...bugs]: readonly MutantVerdict[]): void {
  const lines = bugs.map(({ name, caught, red, seconds, first }) => `${caught ? 'caught' : 'MISSED'} ${name} by ${red.join(', ') || 'nothing'} after ${seconds.toFixed(0)} s${first === undefined ? '' : `: ${first}`}`)
  const green = control?.caught === true ? 'green' : `RED: ${control?.first ?? ''}`
  process.stdout.write(`${lines.join('\n')}\nwithout a bug the oracles are ${green}; ${bugs.filter(({ caught }) => caught).length} of ${bugs.length} planted bugs caught\n`)
}
