import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { chownSync, cpSync, existsSync, mkdirSync, renameSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'

import type { Account } from './guarded-server.ts'

/**
 * The account for a server that refuses to run as root: none unless we are root, else `postgres`, else `nobody`.
 *
 * No account is created: a development server is no reason to change the machine.
 */
export function serverAccount(): Account | undefined {
  if (process.getuid?.() !== 0) return undefined
  for (const name of ['postgres', 'nobody']) {
    const [uid, gid] = ['-u', '-g'].map((what) => Number(spawnSync('id', [what, name], { encoding: 'utf8' }).stdout || NaN))
    if (uid !== undefined && gid !== undefined && uid > 0 && gid > 0) return { uid, gid }
  }
  throw new Error('PostgreSQL does not run as root, and this machine has neither the account postgres nor nobody')
}

/**
 * `directory`, made for the account, or a stand-in under the temporary folder where the account cannot reach it (a clone
 * below /root). A file beside it then tells where the data is.
 */
export function directoryFor(directory: string, account: Account | undefined): string {
  mkdirSync(directory, { recursive: true })
  if (account === undefined) return directory
  chownSync(directory, account.uid, account.gid)
  if (spawnSync('test', ['-w', directory], { cwd: '/', ...account }).status === 0) return directory
  const elsewhere = join(tmpdir(), `deltapost-${hash(directory)}-${basename(directory)}`)
  mkdirSync(elsewhere, { recursive: true, mode: 0o700 })
  chownSync(elsewhere, account.uid, account.gid)
  writeFileSync(`${directory}.elsewhere`, `${elsewhere}\n`)
  return elsewhere
}

/** `folder` of programs, or a copy under the temporary folder where the account may not run `program` in it. */
export function programsFor(folder: string, program: string, account: Account | undefined): string {
  if (account === undefined) return folder
  if (spawnSync(join(folder, program), ['--version'], { cwd: '/', ...account }).status === 0) return folder
  const copy = join(tmpdir(), `deltapost-${hash(folder)}-programs`)
  // The name can be foretold: a folder that someone else put there is not used.
  if (existsSync(copy) && statSync(copy).uid === process.getuid?.()) return copy
  const partial = `${copy}.partial-${process.pid}`
  cpSync(folder, partial, { recursive: true, verbatimSymlinks: true })
  renameSync(partial, copy)
  return copy
}

function hash(text: string): string {
  return createHash('sha256').update(text).digest('hex').slice(0, 12)
}
