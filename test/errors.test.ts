import { globSync, readFileSync } from 'node:fs'
import test from 'ava'

const sources = globSync('{outbox,services,scripts}/**/*.ts').filter((file) => !file.endsWith('.test.ts')).map((file) => readFileSync(file, 'utf8'))
const page = readFileSync('docs/errors.md', 'utf8')

/** Codes given to an error class: as the first argument, or as the field `code`. */
function codesInCode(): string[] {
  const found = sources.flatMap((text) => [
    ...text.matchAll(/(?:new DeltapostError|super)\(\s*'([A-Z][A-Z_]+)'/g), ...text.matchAll(/readonly code = '([A-Z][A-Z_]+)'/g),
  ].map((match) => match[1]!))
  return [...new Set(found)].toSorted()
}

function firstColumn(from: string, to: string): string[] {
  const part = page.slice(page.indexOf(from), to === '' ? undefined : page.indexOf(to))
  return [...part.matchAll(/^\| `(\w+)` \|/gm)].map((match) => match[1]!).toSorted()
}

test('docs/errors.md has every code, and no code that is not there', (t) => {
  t.deepEqual(firstColumn('## Errors of the processes', '## Reasons in'), codesInCode())
})

test('docs/errors.md has every reason of a rejected request and of a parked change', (t) => {
  const union = readFileSync('outbox/bad-change.ts', 'utf8').match(/export type Reason =([^]*?)\n\n/)?.[1] ?? ''
  t.deepEqual(firstColumn('## Reasons in', '## Reasons of parked'), [...union.matchAll(/'(\w+)'/g)].map((match) => match[1]!).toSorted())
  const parked = readFileSync('services/consumer/element.ts', 'utf8').match(/export type ParkedReason = (.*)/)?.[1] ?? ''
  t.deepEqual(firstColumn('## Reasons of parked', ''), [...parked.matchAll(/'(\w+)'/g)].map((match) => match[1]!).toSorted())
})
