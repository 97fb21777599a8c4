import { globSync, readFileSync } from 'node:fs'
import test from 'ava'

/** Titles of tests that name promises, as written in the code; what follows `${` is filled in when they run. */
function titles(): Map<string, string[]> {
  const found = new Map<string, string[]>()
  for (const file of globSync('{outbox,services,scripts,test}/**/*.test.ts')) {
    for (const match of readFileSync(file, 'utf8').matchAll(/^\s*(?:test(?:\.serial)?|testOwnKafka(?:InTurn)?)\((['`])((?:I\d+ )+)(.*?)\1, /gm)) {
      const title = `${match[2]}${match[3]}`.replaceAll("\\'", "'").split('${')[0]!.trimEnd()
      for (const promise of match[2]!.trim().split(' ')) found.set(promise, [...found.get(promise) ?? [], title])
    }
  }
  return found
}

/** The tests that SPEC.md names below each promise. */
function named(): Map<string, string[]> {
  const parts = readFileSync('outbox/SPEC.md', 'utf8').split(/^### (I\d+)\b/m).slice(1)
  const found = new Map<string, string[]>()
  for (let at = 0; at < parts.length; at += 2) {
    found.set(parts[at]!, [...parts[at + 1]!.matchAll(/^- `(.*?)`/gm)].map((match) => match[1]!.replace(/…$/, '').trimEnd()))
  }
  return found
}

test('SPEC.md names every test that holds a promise, and no test that is not there', (t) => {
  const [tests, spec] = [titles(), named()]
  t.deepEqual([...spec.keys()], Array.from({ length: 12 }, (_, at) => `I${at + 1}`))
  for (const promise of spec.keys()) t.deepEqual((spec.get(promise) ?? []).toSorted(), (tests.get(promise) ?? []).toSorted(), promise)
})
