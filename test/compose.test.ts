import { readFileSync } from 'node:fs'
import { dirname, join, matchesGlob, normalize } from 'node:path'
import test from 'ava'

function read(file: string): string {
  return readFileSync(file, 'utf8')
}

function found(text: string, pattern: RegExp): string[] {
  return [...text.matchAll(pattern)].map((match) => String(match[1]))
}

/** As Docker reads it: the last line that fits decides. Folders stand for what they hold. */
function isLeftOut(file: string, lines: readonly string[]): boolean {
  const fitting = lines.filter((line) => {
    const pattern = line.replace(/^!/, '')
    return pattern === '*' || file === pattern || file.startsWith(`${pattern}/`) || matchesGlob(file, pattern)
  })
  return fitting.at(-1)?.startsWith('!') === false
}

// They start servers of their own, from a clone; their modules are imported only when they run.
const needDevelopment = ['scripts/bench/main.ts', 'scripts/demo/main.ts', 'scripts/torture/main.ts', 'scripts/up.ts']

/** Every module that the file can come to import, and what imports it; packages by their names. */
function reachable(entry: string, into = new Map<string, string>()): Map<string, string> {
  // Without brackets before it: the `is distinct from 'FAILED'` of a statement imports nothing.
  const names = found(read(entry), /^(?:import (?!type\b)[^'()]*?|export (?:\*|\{[^}]*\}) )from '([^']+)'/gm).concat(found(read(entry), /\bimport\('([^']+)'\)/g))
  for (const name of names) {
    const target = name.startsWith('.') ? normalize(join(dirname(entry), name)) : name
    if (into.has(target) || target.startsWith('node:') || needDevelopment.includes(target)) continue
    into.set(target, entry)
    if (name.startsWith('.')) reachable(target, into)
  }
  return into
}

test('compose.yaml passes on every setting there is, and no name that nothing reads', (t) => {
  const settings = found(read('services/runtime/config.ts'), /\b(?:read|raw)(?:<[^>]+>)?\('([A-Z_]+)'/g)
  const environment = /^x-environment:.*?^(?=\S)(?!x-environment)/ms.exec(read('compose.yaml'))?.[0] ?? ''
  const passedOn = found(environment, /^ {2}([A-Z_]+?)(?:_FILE)?:/gm)
  // Where it listens is the image's affair, and the stop is bound to stop_grace_period.
  const fixed = ['HOST', 'PORT', 'SHUTDOWN_TIMEOUT']
  t.deepEqual(passedOn.sort(), settings.filter((name) => !fixed.includes(name)).sort())
})

test('the image holds every module its commands import, and its packages are not development ones', (t) => {
  const lines = read('.dockerignore').split('\n').filter((line) => line !== '' && !line.startsWith('#'))
  const { dependencies } = JSON.parse(read('package.json')) as { dependencies: Record<string, string> } // npm's own form
  const modules = [...reachable('scripts/deltapost.ts'), ...reachable('ops/health.mjs')]
  t.true(modules.length > 50, `${modules.length} modules found`)
  for (const [name, importer] of modules) {
    const there = /\.(ts|mjs)$/.test(name) ? !isLeftOut(name, lines) : name in dependencies
    t.true(there, `${importer} imports ${name}`)
  }
})
