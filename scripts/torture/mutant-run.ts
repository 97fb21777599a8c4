import { DeltapostError } from '../../outbox/errors.ts'
import { campaign, type CampaignOptions } from './campaign.ts'
import { FAILPOINTS, SQL_FAILPOINTS } from './failpoints.ts'
import { type Mutant, MUTANTS } from './mutants.ts'
import { makePlan, type Plan } from './plan.ts'

/**
 * `caught`: an oracle is red that this bug turns red, and not just any. `red` are all that are, `first` what one of them
 * said; `seconds` of the whole run.
 */
export type MutantVerdict = { name: string; caught: boolean; red: string[]; seconds: number; first: string | undefined }

/** The service as it is, under faults that all kinds of mutants meet: were an oracle red here, red would prove nothing. */
const CONTROL: Mutant = {
  name: 'control (no bug)', why: 'the oracles are green where nothing is planted', plants: [], workloads: ['churn', 'append', 'keyless', 'refused', 'partial', 'shift'],
  faults: ['kill-relay', 'kill-consumer', 'kill-listener', 'late-commit', 'freeze-relay', 'kill-postgres'], events: 4_000, expects: [],
}

const RATE = 400
const SESSIONS = 16
const MOST_MINUTES = 1
/** In seconds: what a bug has lost never comes, so waiting longer proves no more. */
const PATIENCE = 12

/** Plants each bug in turn into fresh databases on the same servers. Throws TORTURE_UNKNOWN. */
export async function runMutants(names: readonly string[] | undefined, seed: number, parts: Pick<CampaignOptions, 'servers' | 'signal' | 'progress'>): Promise<MutantVerdict[]> {
  const unknown = names?.filter((name) => !MUTANTS.some((mutant) => mutant.name === name)) ?? []
  if (unknown.length > 0) throw new DeltapostError('TORTURE_UNKNOWN', `there is no planted bug ${unknown.join(', ')}`, `give one or more of ${MUTANTS.map(({ name }) => name).join(', ')}`)
  const chosen = [CONTROL, ...MUTANTS.filter(({ name }) => names?.includes(name) ?? true)]
  const verdicts: MutantVerdict[] = []
  for (const [at, mutant] of chosen.entries()) {
    parts.progress(`${at} of ${chosen.length - 1}: ${mutant.name}`)
    const verdict = await runMutant(mutant, seed, `torture_${at}`, parts)
    parts.progress(`  ${verdict.caught ? 'caught' : 'MISSED'} by ${verdict.red.join(', ') || 'nothing'} after ${verdict.seconds.toFixed(0)} s`)
    verdicts.push(verdict)
  }
  return verdicts
}

async function runMutant(mutant: Mutant, seed: number, name: string, parts: Pick<CampaignOptions, 'servers' | 'signal' | 'progress'>): Promise<MutantVerdict> {
  const begun = performance.now()
  const { findings } = await campaign({
    ...parts, name, plan: planFor(mutant, seed), counts: { listener: 1, relay: 2, consumer: 2 }, patience: mutant === CONTROL ? 60 : PATIENCE,
    plants: [...mutant.plants, ...FAILPOINTS.filter((step) => !mutant.plants.some((plant) => plant.file === step.file && (plant.find.includes(step.find) || step.find.includes(plant.find))))],
    sqlPlants: [...SQL_FAILPOINTS, ...mutant.sql ?? []], ...(mutant.settings === undefined ? {} : { settings: mutant.settings }),
  })
  const red = findings.filter(({ faults }) => faults.length > 0)
  const caught = mutant === CONTROL ? red.length === 0 : red.some(({ oracle }) => mutant.expects.includes(oracle))
  return { name: mutant.name, caught, red: red.map(({ oracle }) => oracle), seconds: (performance.now() - begun) / 1_000, first: red[0]?.faults[0] }
}

function planFor({ faults, workloads, events }: Mutant, seed: number): Plan {
  return makePlan({ seed, minutes: MOST_MINUTES, events, rate: RATE, sessions: SESSIONS, brokers: 1, twoDatabases: false, workloads, faults })
}
