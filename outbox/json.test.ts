import test from 'ava'
import fc from 'fast-check'
import { JsonSyntax, parseJson, stringValue, type JsonNode } from './json.ts'

function valueOf(text: string, node: JsonNode): unknown {
  switch (node.kind) {
    case 'object': return Object.fromEntries(node.members.map(({ name, value }) => [name, valueOf(text, value)]))
    case 'array': return node.items.map((item) => valueOf(text, item))
    case 'string': return stringValue(text, node)
    case 'number': return Number(text.slice(node.start, node.end))
    case 'null': return null
    default: return node.kind === 'true'
  }
}

function accepts(text: string, parse: (text: string) => unknown): boolean {
  try {
    parse(text)
    return true
  } catch (error) {
    if (error instanceof SyntaxError || error instanceof JsonSyntax) return false
    throw error
  }
}

test('every document that JSON.stringify writes is read as JSON.parse reads it', (t) => {
  fc.assert(fc.property(fc.jsonValue({ maxDepth: 6, stringUnit: 'binary' }), fc.constantFrom(undefined, 1, '\t'), (value, indent) => {
    const text = JSON.stringify(value, null, indent)
    t.deepEqual(valueOf(text, parseJson(text)), JSON.parse(text))
  }), { numRuns: 500 })
})

test('a document with one character changed is accepted where JSON.parse accepts it, and nowhere else', (t) => {
  const change = fc.tuple(fc.nat(), fc.constantFrom('', '"', '\\', ',', ':', '{', '}', '[', ']', '0', '-', '.', 'e', 'u', '\n', '\u0001', ' ', 'é', '\u2028', '\uFEFF'), fc.boolean())
  fc.assert(fc.property(fc.jsonValue({ maxDepth: 4 }), change, (value, [at, character, replaces]) => {
    const text = JSON.stringify(value)
    const place = at % (text.length + 1)
    const changed = text.slice(0, place) + character + text.slice(replaces ? place + 1 : place)
    if (changed.startsWith('\uFEFF')) return // ours is the laxer one here: a byte order mark is a blank
    t.is(accepts(changed, parseJson), accepts(changed, JSON.parse), changed)
  }), { numRuns: 3_000 })
})

for (const text of ['', ' ', '01', '+1', '.5', '1.', '1e', '-', 'tru', 'nul', 'True', '"\t"', '"\\x"', '"\\u12g4"', '{"a":1,}', '[1,]', '{a:1}', "{'a':1}", '{"a" 1}', '[1 2]', '1 2', '"a', '{"a":1}}', '\u00a01', 'NaN']) {
  test(`not JSON: ${JSON.stringify(text)}`, (t) => {
    t.false(accepts(text, JSON.parse))
    t.throws(() => parseJson(text), { instanceOf: JsonSyntax })
  })
}

test('a document that was cut anywhere is called truncated', (t) => {
  const text = '{"a": [1.5e-3, true, null, "x\\u00e9\\n"], "b": {"c": "d"}}'
  for (let end = 0; end < text.length; end += 1) {
    t.is(t.throws(() => parseJson(text.slice(0, end)), { instanceOf: JsonSyntax })?.kind, 'truncated', text.slice(0, end))
  }
})

test('names that occur twice are reported, also far behind the sixteenth and in another spelling', (t) => {
  const many = Array.from({ length: 40 }, (_, n) => `"n${n}":0`)
  const duplicate = (text: string): string | undefined => {
    const node = parseJson(text)
    return node.kind === 'object' ? node.duplicate : undefined
  }
  t.is(duplicate('{"a":1,"b":2,"\\u0061":3}'), 'a')
  t.is(duplicate(`{${[...many, '"n3":1'].join(',')}}`), 'n3')
  t.is(duplicate(`{${[...many, '"n39":1'].join(',')}}`), 'n39')
  t.is(duplicate(`{${many.join(',')}}`), undefined)
})

test('members keep their order, numbers their text, and every part its place', (t) => {
  const text = ' {"2": 1.500, "1": 90071992547409931234, "__proto__": "x"} '
  const node = parseJson(text)
  if (node.kind !== 'object') return t.fail()
  t.deepEqual(node.members.map(({ name, value }) => [name, text.slice(value.start, value.end)]),
    [['2', '1.500'], ['1', '90071992547409931234'], ['__proto__', '"x"']])
  t.is(text.slice(node.start, node.end), text.trim())
})

test('a hundred thousand brackets are refused and do not end the process', (t) => {
  t.is(t.throws(() => parseJson('['.repeat(100_000)), { instanceOf: JsonSyntax })?.kind, 'too_deep')
  t.is(t.throws(() => parseJson('{"a":'.repeat(100_000)), { instanceOf: JsonSyntax })?.kind, 'too_deep')
})
