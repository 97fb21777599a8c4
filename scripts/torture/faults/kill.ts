import { anyOf, type Fault, type Kind, KINDS } from './fault.ts'

/** SIGKILL at any moment: what was in flight is repeated or taken over. */
function kill(kind: Kind): Fault {
  return { name: `kill-${kind}`, kind: 'kill', happen: async (rig) => anyOf(rig, kind).kill() }
}

/** SIGTERM at any moment, as at a deployment. */
function term(kind: Kind): Fault {
  return { name: `term-${kind}`, kind: 'kill', happen: async (rig) => anyOf(rig, kind).term() }
}

/** All roles at once, as when their machine goes down. */
const killAll: Fault = {
  name: 'kill-all', kind: 'kill',
  async happen({ roles }) {
    await Promise.all(roles.map((role) => role.kill()))
  },
}

export const KILLS: readonly Fault[] = [...KINDS.map(kill), killAll, ...KINDS.map(term)]
