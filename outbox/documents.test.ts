import test from 'ava'
import { documentsOf } from './documents.ts'

function split(text: string): string[] {
  return [...documentsOf(text)].map(({ start, end, fault }) => `${fault?.kind ?? 'ok'} ${text.slice(start, end).trim()}`)
}

test('one object, an array, lines, and objects with nothing between them', (t) => {
  t.deepEqual(split(' {"a":1} \n'), ['ok {"a":1}'])
  t.deepEqual(split('[{"a":1}, 2 ,"x"]'), ['ok {"a":1}', 'ok 2', 'ok "x"'])
  t.deepEqual(split('{"a":1}\r\n{"b":\n 2}\n\n{"c":3}\n'), ['ok {"a":1}', 'ok {"b":\n 2}', 'ok {"c":3}'])
  t.deepEqual(split('{"a":1}{"b":2} {"c":3}'), ['ok {"a":1}', 'ok {"b":2}', 'ok {"c":3}'])
  t.deepEqual(split('\uFEFF{"a":1}'), ['ok {"a":1}'])
  t.deepEqual(split(' \n\t'), [])
  t.deepEqual(split('[]'), ['ok []'])
})

test('I11 a broken line takes no good line with it', (t) => {
  t.deepEqual(split('{"a":1}\n{"b":"x"y"}\n{"c":3}'), ['ok {"a":1}', 'syntax {"b":"x"y"}', 'ok {"c":3}'])
  t.deepEqual(split('{"a":"cut\n{"b":2}'), ['syntax {"a":"cut', 'ok {"b":2}'])
  t.deepEqual(split('{"a":{"b":1}\n{"c":3}\n{"d":4}'), ['syntax {"a":{"b":1}', 'ok {"c":3}', 'ok {"d":4}'])
  t.deepEqual(split('{"a":\n{"c":3}\n{"d":4}'), ['syntax {"a":', 'ok {"c":3}', 'ok {"d":4}'])
  t.deepEqual(split('{"a":1}\n{"b":'), ['ok {"a":1}', 'truncated {"b":'])
  t.deepEqual(split('rubbish\n{"c":3}'), ['syntax rubbish', 'ok {"c":3}'])
})

test('I11 a line feed inside a value leaves one broken document, not two', (t) => {
  t.deepEqual(split('{"a":"first\nsecond", "b":1}'), ['syntax {"a":"first\nsecond", "b":1}'])
})

test('a broken array is one piece to the end', (t) => {
  t.deepEqual(split('{"x":0}\n[{"a":1},{"b":]\n{"c":3}'), ['ok {"x":0}', 'syntax [{"a":1},{"b":]\n{"c":3}'])
})

test('no part of a body is left out: pieces, blanks and the marks of an array are the whole', (t) => {
  for (const text of ['{"a":1}x{"b":2}\n{"c":3}', '[1,2] {"a":1}}\n{', 'null 1 "x"\n{"a":1}', '}\n}\n{}']) {
    let at = 0
    for (const { start, end } of documentsOf(text)) {
      t.regex(text.slice(at, start), /^[\s[\],]*$/)
      t.true(end > start)
      at = end
    }
    t.regex(text.slice(at), /^[\s\]]*$/)
  }
})
