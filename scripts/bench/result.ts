import type { Latency } from './latency.ts'

/** Whose CPU time it is: the servers', the roles' of Deltapost, a peer's, and the bench's own, which makes the load. */
export type Group = 'postgres' | 'kafka' | 'ours' | 'peer' | 'bench'

/** One run of one variant. Where a figure cannot be had on this machine it is left out, never zero. */
export type Measured = {
  scenario: string
  variant: string
  repeat: number
  changes: number
  seconds: number
  perSecond: number
  latency?: Latency
  /** CPU seconds per million changes. */
  cpu: Partial<Record<Group, number>>
  /** All databases of the server, bytes per change. */
  walBytes?: number
  kafkaBytes?: number
  /** Peak resident bytes by process. */
  peak: Record<string, number>
  /** Load average of the last minute, at the end. */
  load: number
  /** What the oracles found. Any makes the run worth nothing. */
  faults: string[]
  /** Figures of one scenario only, by name and unit. */
  more?: Record<string, number>
}

/**
 * A rate against another of the same bench, repeat by repeat, which should be at least `target`. `cpu`: the work that a
 * second of CPU time of Postgres and our roles does, instead of the rate; other load on the machine changes it less.
 * `p99`: how many times longer the other's latency is.
 */
export type RatioRule = { name: string; of: string; to: string; target?: number; cpu?: true; p99?: true }

export type Ratio = { name: string; median: number; min: number; max: number; pairs: number; target?: number }

export type Spread = { median: number; min: number; max: number }

export function spreadOf(values: readonly number[]): Spread {
  const sorted = values.toSorted((a, b) => a - b)
  const middle = sorted.length / 2
  const median = sorted.length % 2 === 1 ? sorted[Math.floor(middle)] ?? NaN : ((sorted[middle - 1] ?? NaN) + (sorted[middle] ?? NaN)) / 2
  return { median, min: sorted[0] ?? NaN, max: sorted.at(-1) ?? NaN }
}

export function nameOf({ scenario, variant }: Pick<Measured, 'scenario' | 'variant'>): string {
  return `${scenario}: ${variant}`
}

/**
 * The ratios whose two sides were measured. Repeats are taken in pairs, because they ran one after the other: a machine
 * that others use is slow for both. A run of ours with a fault counts as a rate of zero, one of the other is left out.
 */
export function ratiosOf(runs: readonly Measured[], rules: readonly RatioRule[]): Ratio[] {
  const rates = Map.groupBy(runs, nameOf)
  return rules.flatMap(({ name, of, to, target, cpu, p99 }) => {
    const worth = (run: Measured | undefined): number => (
      run === undefined ? NaN : p99 === true ? 1 / (run.latency?.p99 ?? NaN) : cpu === true ? 1 / ((run.cpu.postgres ?? NaN) + (run.cpu.ours ?? NaN)) : run.perSecond)
    const above = rates.get(of) ?? []
    const below = rates.get(to) ?? []
    const values = above.slice(0, below.length)
      .map((run, at) => (run.faults.length > 0 ? 0 : below[at]?.faults.length === 0 ? worth(run) / worth(below[at]) : NaN))
      .filter((value) => !Number.isNaN(value))
    return values.length === 0 ? [] : [{ name, ...spreadOf(values), pairs: values.length, ...(target === undefined ? {} : { target }) }]
  })
}
