import { APPLIED } from './mutants/apply.ts'
import { FAILED } from './mutants/failures.ts'
import { INTAKE } from './mutants/intake.ts'
import type { Mutant } from './mutants/mutant.ts'
import { RELAY } from './mutants/relay.ts'

export type { Mutant }

/**
 * Bugs for the campaign to find, as others wrote them or as earlier shapes of the design had them, one for
 * each kind of loss. Of some (a lease without a term, a consumer without one) nothing can be seen and none are here: what
 * a second relay sends again, or a second consumer applies again, is recognised behind them. Nor is a key change here that
 * deletes whatever row stands at the key it left: the sender's key changes carry whole rows, so that row comes back.
 */
export const MUTANTS: readonly Mutant[] = [...INTAKE, ...RELAY, ...APPLIED, ...FAILED]
