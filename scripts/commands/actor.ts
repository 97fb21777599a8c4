import { userInfo } from 'node:os'

/** Who acts, for the audit: the account of the shell, and the name it gives itself. */
export function actorOf(as: string | undefined): string {
  const account = accountName()
  return as === undefined || as === account ? account : `${account} as ${as}`
}

/** A container may run under a number that has no name. */
function accountName(): string {
  try {
    return userInfo().username
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ERR_SYSTEM_ERROR') return `uid ${process.getuid?.() ?? '-'}`
    throw error
  }
}
