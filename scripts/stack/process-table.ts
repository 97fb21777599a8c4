import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { setTimeout as pause } from 'node:timers/promises'

/** The command line of a running process, its words joined by blanks, or undefined if there is no such process. */
export function commandOf(pid: number): string | undefined {
  if (process.platform === 'linux') {
    try {
      const words = readFileSync(`/proc/${pid}/cmdline`, 'utf8')
      // A process that has ended and waits for its parent to notice has no words.
      return words === '' ? undefined : words.split('\0').join(' ').trim()
    } catch (error) {
      if (error instanceof Error && 'code' in error && (error.code === 'ENOENT' || error.code === 'ESRCH')) return undefined
      throw error
    }
  }
  const listed = spawnSync('ps', ['-ww', '-o', 'command=', '-p', String(pid)], { encoding: 'utf8' })
  return listed.status === 0 && listed.stdout.trim() !== '' ? listed.stdout.trim() : undefined
}

/** True once the process is gone, false if it is still there after `seconds`. */
export async function gone(pid: number, seconds: number): Promise<boolean> {
  for (const end = Date.now() + seconds * 1000; Date.now() < end; await pause(20)) {
    if (commandOf(pid) === undefined) return true
  }
  return commandOf(pid) === undefined
}

/**
 * Ends a server that an earlier run left behind: `stopSignal`, and after 10 seconds SIGKILL.
 *
 * Process numbers are used again, so nothing is done unless the command line still holds `mark` (the data's path).
 * Returns whether there was one.
 */
export async function endOrphan(pid: number, mark: string, stopSignal: 'SIGINT' | 'SIGTERM'): Promise<boolean> {
  if (!Number.isInteger(pid) || pid < 2 || !commandOf(pid)?.includes(mark)) return false
  process.kill(pid, stopSignal)
  if (!(await gone(pid, 10))) {
    process.kill(pid, 'SIGKILL')
    await gone(pid, 10)
  }
  return true
}
