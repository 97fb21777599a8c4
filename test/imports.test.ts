import { readFileSync } from 'node:fs'
import { globSync } from 'node:fs'
import { dirname, join, normalize } from 'node:path'
import test from 'ava'

/** Which folder may import which; node: and packages are named where they are limited. Tests are free. */
const rules: { folder: string; allowed: RegExp; never?: RegExp }[] = [
  { folder: 'outbox/', allowed: /^(outbox\/|node:|postgres$)/ },
  { folder: 'services/runtime/', allowed: /^(services\/runtime\/|node:|[a-z@])/, never: /^(outbox|services\/(?!runtime))/ },
  { folder: 'services/listener/', allowed: /^(services\/(listener|runtime)\/|outbox\/|node:|[a-z@])/, never: /^services\/(?!listener|runtime)/ },
  { folder: 'services/relay/', allowed: /^(services\/(relay|runtime)\/|outbox\/|node:|[a-z@])/, never: /^services\/(?!relay|runtime)/ },
  { folder: 'services/consumer/', allowed: /^(services\/(consumer|runtime)\/|outbox\/|node:|[a-z@])/, never: /^services\/(?!consumer|runtime)/ },
  { folder: 'services/notices/', allowed: /^(services\/(notices|runtime)\/|outbox\/|node:|[a-z@])/, never: /^services\/(?!notices|runtime)/ },
  { folder: 'services/jobs/', allowed: /^(services\/(jobs|runtime)\/|outbox\/|node:|[a-z@])/, never: /^services\/(?!jobs|runtime)/ },
]

function importsOf(file: string): string[] {
  const text = readFileSync(file, 'utf8')
  return [...text.matchAll(/^(?:import [^'"()]*?|export (?:\*|\{[^}]*\}) )from '([^']+)'|^import '([^']+)'/gm)].map((match) => {
    const name = String(match[1] ?? match[2])
    return name.startsWith('.') ? normalize(join(dirname(file), name)) : name
  })
}

test('services meet only in tables, topics and files of outbox/', (t) => {
  for (const { folder, allowed, never } of rules) {
    const files = globSync(`${folder}**/*.ts`).filter((file) => !file.endsWith('.test.ts'))
    t.true(files.length > 0, folder)
    for (const file of files) {
      for (const name of importsOf(file)) {
        t.true(allowed.test(name) && never?.test(name) !== true, `${file} imports ${name}`)
        t.false(/^(scripts|test)\//.test(name), `${file} imports ${name}`)
      }
    }
  }
})

test('only the configuration reads the environment', (t) => {
  const readers = globSync('{outbox,services}/**/*.ts').filter((file) => !file.endsWith('.test.ts') && /process\.env\b/.test(readFileSync(file, 'utf8')))
  t.deepEqual(readers, ['services/runtime/config.ts'])
})
