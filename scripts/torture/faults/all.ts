import { CLOCKS } from './clock.ts'
import { CUTS } from './cut.ts'
import type { Fault } from './fault.ts'
import { FREEZES } from './freeze.ts'
import { KAFKA } from './kafka.ts'
import { KILLS } from './kill.ts'
import { OTHERS } from './other.ts'
import { SERVERS } from './servers.ts'
import { TARGETS } from './target.ts'

/** Every fault by its name. */
export const FAULTS: Readonly<Record<string, Fault>> = Object.fromEntries(
  [...KILLS, ...FREEZES, ...SERVERS, ...CUTS, ...KAFKA, ...TARGETS, ...OTHERS, ...CLOCKS].map((fault) => [fault.name, fault]))
