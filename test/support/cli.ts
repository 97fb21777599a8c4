import { spawn } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

export const PROGRAM = join(import.meta.dirname, '..', '..', 'scripts', 'deltapost.ts')

/** Without a stack.json, from which a command would learn where the servers are. */
export const EMPTY_FOLDER = mkdtempSync(join(tmpdir(), 'deltapost-cli-'))
process.on('exit', () => rmSync(EMPTY_FOLDER, { recursive: true, force: true }))

export type Ended = { code: number | null; out: string; err: string }
export type Cli = (...args: string[]) => Promise<Ended>

/** Runs `deltapost` with these variables and no others; resolves when it has ended. */
export async function deltapost(args: readonly string[], environment: Record<string, string> = {}, folder = EMPTY_FOLDER): Promise<Ended> {
  const child = spawn(process.execPath, [PROGRAM, ...args], { cwd: folder, env: { PATH: process.env['PATH'], ...environment }, stdio: ['ignore', 'pipe', 'pipe'] })
  const told = { out: '', err: '' }
  child.stdout.setEncoding('utf8').on('data', (text: string) => (told.out += text))
  child.stderr.setEncoding('utf8').on('data', (text: string) => (told.err += text))
  const code = await new Promise<number | null>((resolve) => child.once('close', resolve))
  return { code, ...told }
}

/** `deltapost` with the same variables at each call. */
export function cliWith(environment: Record<string, string>): Cli {
  return (...args) => deltapost(args, environment)
}
