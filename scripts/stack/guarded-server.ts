import { spawn } from 'node:child_process'
import { closeSync, openSync, readFileSync, statSync } from 'node:fs'
import { createInterface } from 'node:readline'

/** A running server process. `exited` settles with what the shell reports (128 + n for signal n). */
export type GuardedServer = {
  pid: number
  exited: Promise<number>
  /** The stop signal, SIGKILL after 10 seconds; settles when the process is gone. */
  stop: () => Promise<void>
  /** SIGKILL, as a crash would; settles when the process is gone. */
  kill: () => Promise<void>
  /** What the server has written to its log file since it was started. */
  log: () => string
}

/** The account a server runs under where this process is root and the server refuses root. */
export type Account = { uid: number; gid: number }

// The guard waits on a pipe that only the starting process holds open. When that process ends, however it ends, the
// pipe closes and the guard stops the server; a closed pipe is also how stop() asks. $0 is the stop signal.
const GUARD = `
exec 3<&0
"$@" </dev/null >&2 3<&- &
server=$!
echo $server
exec >&-
{
  read -r _ <&3
  kill -$0 $server
  left=100
  while [ $left -gt 0 ] && kill -0 $server; do sleep 0.1; left=$((left - 1)); done
  kill -KILL $server
} 2>/dev/null &
guard=$!
exec 3<&-
wait $server
code=$?
kill $guard 2>/dev/null
exit $code`

/**
 * Starts a server that does not outlive this process, not even when this one is killed.
 *
 * It gets a session of its own, so that Ctrl-C at the terminal reaches only us and the servers go last.
 */
export async function startGuarded(server: {
  command: string
  args: string[]
  directory: string
  logFile: string
  stopSignal: 'INT' | 'TERM'
  environment?: Record<string, string>
  account?: Account | undefined
}): Promise<GuardedServer> {
  const log = openSync(server.logFile, 'a')
  const logBegin = statSync(server.logFile).size
  const child = spawn('/bin/sh', ['-c', GUARD, server.stopSignal, server.command, ...server.args], {
    cwd: server.directory,
    detached: true,
    stdio: ['pipe', 'pipe', log],
    env: { ...process.env, ...server.environment },
    ...server.account,
  })
  closeSync(log)
  const exited = new Promise<number>((resolve, reject) => {
    child.once('error', reject)
    child.once('exit', (code) => resolve(code ?? 128))
  })
  const { stdin, stdout } = child
  if (stdin === null || stdout === null) throw new Error('a child started with pipes has none')
  const pid = await Promise.race([firstNumber(stdout), exited.then(() => 0)])
  const killed = async (): Promise<void> => {
    if (pid > 0 && child.exitCode === null) process.kill(pid, 'SIGKILL')
    await exited
  }
  const stop = async (): Promise<void> => {
    stdin.destroy()
    await exited
  }
  void exited.finally(() => stdin.destroy())
  return {
    pid,
    exited,
    stop,
    kill: killed,
    log: () => readFileSync(server.logFile).subarray(logBegin).toString('utf8'),
  }
}

async function firstNumber(lines: NodeJS.ReadableStream): Promise<number> {
  for await (const line of createInterface({ input: lines })) return Number(line)
  return 0
}
