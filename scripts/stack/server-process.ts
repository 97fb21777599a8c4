import { readdirSync, readFileSync, readlinkSync } from 'node:fs'

/** The fields of /proc/PID/stat behind the name of the program, which may hold blanks and parentheses. */
export function statOf(pid: number): string[] | undefined {
  const text = readOrNothing(`/proc/${pid}/stat`)
  return text?.slice(text.lastIndexOf(')') + 2).split(' ')
}

/** The numbers of all running processes; none where there is no /proc. */
export function allProcesses(): number[] {
  return entriesOf('/proc').filter((name) => /^\d+$/.test(name)).map(Number)
}

/**
 * The process of this machine that listens on a local address, by the socket it holds. Undefined where it is on another
 * machine, of another user, or there is no /proc: then its CPU time cannot be read either.
 */
export function listeningProcess(host: string, port: number): number | undefined {
  if (!/^(127\.|localhost$|::1$|\[::1\]$)/.test(host)) return undefined
  const wanted = port.toString(16).toUpperCase().padStart(4, '0')
  const sockets = ['/proc/net/tcp', '/proc/net/tcp6'].flatMap((file) => (readOrNothing(file) ?? '').split('\n')).flatMap((line) => {
    const [, local = '', , state, , , , , , inode] = line.trim().split(/\s+/)
    return state === '0A' && local.endsWith(`:${wanted}`) && inode !== undefined ? [`socket:[${inode}]`] : []
  })
  if (sockets.length === 0) return undefined
  // The children of a server inherit its socket; the server is the oldest that holds it.
  return allProcesses().find((pid) => entriesOf(`/proc/${pid}/fd`).some((fd) => sockets.includes(linkOrNothing(`/proc/${pid}/fd/${fd}`) ?? '')))
}

/** Peak resident bytes of a process that still runs. */
export function peakOf(pid: number): number | undefined {
  const kilobytes = /^VmHWM:\s+(\d+) kB/m.exec(readOrNothing(`/proc/${pid}/status`) ?? '')?.[1]
  return kilobytes === undefined ? undefined : Number(kilobytes) * 1_024
}

/** How many files and sockets a process has open; 0 where it has ended, or there is no /proc. */
export function descriptorsOf(pid: number): number {
  return entriesOf(`/proc/${pid}/fd`).length
}

// A process may end between the look at the list and the look at it, and one of another user shows less.
function gone(error: unknown): undefined {
  if (error instanceof Error && 'code' in error && /^(ENOENT|ESRCH|EACCES|EPERM|EINVAL)$/.test(String(error.code))) return undefined
  throw error
}

function readOrNothing(file: string): string | undefined {
  try {
    return readFileSync(file, 'utf8')
  } catch (error) {
    return gone(error)
  }
}

function linkOrNothing(file: string): string | undefined {
  try {
    return readlinkSync(file)
  } catch (error) {
    return gone(error)
  }
}

function entriesOf(folder: string): string[] {
  try {
    return readdirSync(folder)
  } catch (error) {
    return gone(error) ?? []
  }
}
