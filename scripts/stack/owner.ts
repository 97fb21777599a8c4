import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import { DeltapostError } from '../../outbox/errors.ts'
import { commandOf } from './process-table.ts'

/**
 * Reserves a data directory for this process, so that a second `up` does not end the servers of the first.
 *
 * The file names the process and its command line; one whose process is gone, or whose number now belongs to another
 * command, is stale and replaced. Returns the function that gives the directory back.
 */
export function ownDirectory(directory: string): () => void {
  mkdirSync(directory, { recursive: true })
  const file = join(directory, 'owner')
  const mine = `${process.pid}\n${commandOf(process.pid) ?? ''}\n`
  for (;;) {
    try {
      writeFileSync(file, mine, { flag: 'wx' })
      return () => rmSync(file, { force: true })
    } catch (error) {
      if (!(error instanceof Error && 'code' in error && error.code === 'EEXIST')) throw error
    }
    const [pid = '', command] = readFileSync(file, 'utf8').split('\n')
    if (command !== undefined && command !== '' && commandOf(Number(pid)) === command) {
      throw new DeltapostError(
        'STACK_IN_USE',
        `process ${pid} runs its servers in ${directory}`,
        `stop it first (Ctrl-C where it runs, or: kill ${pid})`,
      )
    }
    rmSync(file, { force: true })
  }
}
