import { execFile, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, renameSync, rmSync } from 'node:fs'
import { homedir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'

import { DeltapostError } from '../../outbox/errors.ts'

/** Where what is fetched once is kept between runs and clones. */
export function cacheFolder(name: string): string {
  const cache = process.env['XDG_CACHE_HOME'] ?? ''
  return join(cache === '' ? join(homedir(), '.cache') : cache, 'deltapost', name)
}

/** What this machine lacks to have `folder`, in words, or undefined. A folder that is there needs no Maven. */
export function missingForFetch(folder: string, what: string): string | undefined {
  if (existsSync(folder) || spawnSync('mvn', ['-v'], { encoding: 'utf8' }).status === 0) return undefined
  return `no Maven (mvn) to fetch ${what} into ${folder}`
}

/**
 * The folder with what a pom's dependencies are, fetched with Maven the first time.
 *
 * They are fetched beside their place and renamed, so that a download that was cut off is not taken for a good one.
 */
export async function fetchOnce(wanted: {
  folder: string; what: string; size: string; pom: string; code: string
  goal: 'copy-dependencies' | 'unpack-dependencies'; log: (line: string) => void
}): Promise<string> {
  const { folder, what, pom, goal } = wanted
  if (existsSync(folder)) return folder
  wanted.log(`fetching ${what} with Maven into ${folder} (${wanted.size}, once)`)
  const partial = `${folder}.partial-${process.pid}`
  const markers = `${partial}.markers` // of what was unpacked; Maven would keep them beside the pom
  mkdirSync(partial, { recursive: true })
  try {
    await promisify(execFile)('mvn', ['-B', '-q', '-f', pom, `dependency:${goal}`, `-DoutputDirectory=${partial}`, `-DmarkersDirectory=${markers}`])
    renameSync(partial, folder)
  } catch (error) {
    rmSync(partial, { recursive: true, force: true })
    // Another run may have been quicker; its folder is as good.
    if (existsSync(folder)) return folder
    const told = error instanceof Error && 'stdout' in error ? `${error.message}\n${String(error.stdout)}` : String(error)
    throw new DeltapostError(wanted.code, `${what} could not be fetched: ${told}`, `mvn -f ${pom} dependency:${goal}`, { cause: error })
  } finally {
    rmSync(markers, { recursive: true, force: true })
  }
  return folder
}
