import { FAILPOINTS, type Failpoint, SQL_FAILPOINTS } from './failpoints.ts'
import { type Fault, type Rig, TARGETS_RELAY, wait } from './faults/fault.ts'
import { type Plan, type Planned, STEP } from './plan.ts'

/** So long a step is waited for; one that needs a refused row may take a while. */
const STEP_MS = 60_000
const LOOK_MS = 50
const MOST_PASSES = 12

/** The steps that can be passed under what a campaign does; those of two databases only where there are two. */
export function stepsOf(twoDatabases: boolean): { roles: readonly Failpoint[]; database: readonly string[] } {
  const roles = FAILPOINTS.filter(({ under }) => twoDatabases || under !== 'two databases')
  const database = SQL_FAILPOINTS.filter(({ name }) => name !== 'torture.hit').map(({ name }) => name)
  return { roles, database: twoDatabases ? [] : database }
}

/** A role is killed at a labelled step: `relay.sent` is one of the relay's. `apply.guard` is one of the database, whose backend ends there. */
export function stepFault(label: string): Fault | undefined {
  const name = `${STEP}${label}`
  const step = FAILPOINTS.find((one) => one.name === label)
  if (step !== undefined) return { name, kind: 'kill', happen: (rig) => killAt(rig, step).finally(() => rig.want(undefined)) }
  if (SQL_FAILPOINTS.some((one) => one.name === label)) return { name, kind: 'server', happen: (rig) => endBackendAt(rig, label).finally(() => rig.want(undefined)) }
  return undefined
}

/** Whose changes pass a step that others do not pass. */
const WORKLOAD_UNDER = { refused: 'refused', waiting: 'refused', garbage: 'garbage', large: 'large', 'two databases': undefined }

async function killAt(rig: Rig, { name: label, seldom, under, atTarget }: Failpoint): Promise<void> {
  const kind = label.split('.')[0] ?? ''
  const rare = under !== undefined && kind !== 'consumer' // consumers share the topic, whatever source they tell
  const all = rig.roles.filter(({ name, second }) => name.startsWith(kind) && !(rare && (second === true || name === TARGETS_RELAY)))
  const role = rig.roles.find(({ name }) => atTarget === true && name === TARGETS_RELAY) ?? rig.random.pick(all)
  const nth = seldom === true ? 1 : 1 + rig.random.below(MOST_PASSES)
  rig.want(under && WORKLOAD_UNDER[under])
  const passed = await role.hit(label, 'SIGKILL', nth, STEP_MS)
  rig.noted(`${label} ${passed ? 'hit' : 'not passed'}`)
}

async function endBackendAt(rig: Rig, label: string): Promise<void> {
  rig.want('refused') // the steps around parking are passed by it alone
  await rig.sql`
    insert into torture.armed (label, "left") values (${label}, ${1 + rig.random.below(3)})
    on conflict (label) do update set "left" = excluded."left"`
  const end = performance.now() + STEP_MS
  let fired = false
  while (!fired && performance.now() < end) {
    await wait(rig, LOOK_MS)
    fired = (await rig.sql<{ fired: boolean }[]>`select torture.fired(${label}) as fired`)[0]?.fired === true
  }
  await rig.sql`delete from torture.armed where label = ${label}`
  rig.noted(`${label} ${fired ? 'hit' : 'not passed'}`)
}

/** Between two steps, in milliseconds: the role that was killed is ready, and another kill may fall into its first work. */
const GAP_MS = 300

/** Every labelled step in turn, as often as there are `rounds`. */
export function stepsFor({ seed, twoDatabases }: Pick<Plan, 'seed' | 'twoDatabases'>, rounds: number): Planned[] {
  const { roles, database } = stepsOf(twoDatabases)
  const labels = [...roles.map(({ name }) => name), ...database]
  return Array.from({ length: rounds }, (_, round) => labels.map((label, at) => ({ after: GAP_MS, fault: `${STEP}${label}`, seed: seed + round * 1_000 + at }))).flat()
}
