import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import { BadChange, readChange, type Change, type Reason } from './change.ts'

const T = '2019-09-16T10:00:00.511189Z'
const options = { defaultSchema: 'guildhall' }

function body(fields: Record<string, unknown>): string {
  return JSON.stringify({ TIME: T, SCHEMANAME: 'testdb', TABLENAME: 'test', OPERATION: 'INSERT', DATA: { id: '1' }, ...fields })
}

function fixture(name: string): string {
  return readFileSync(join(import.meta.dirname, '../test/fixtures/informix-posts', `${name}.body`), 'utf8')
}

function reason(text: string, given = {}): Reason | undefined {
  try {
    readChange(text, given)
    return undefined
  } catch (error) {
    if (error instanceof BadChange) return error.reason
    throw error
  }
}

test('an insert carries new values, a delete old ones, an update both', (t) => {
  t.deepEqual(readChange(body({}), {}).columns, [{ name: 'id', new: '1' }])
  t.deepEqual(readChange(body({ OPERATION: 'DELETE' }), {}).columns, [{ name: 'id', old: '1' }])
  t.deepEqual(readChange(body({ OPERATION: 'UPDATE', DATA: { id: { old: '1', new: '2' }, a: 'flat', n: { old: 'NULL', new: null }, o: { old: 'x' } } }), {}).columns,
    [{ name: 'id', old: '1', new: '2' }, { name: 'a', new: 'flat' }, { name: 'n', old: 'NULL', new: null }, { name: 'o', old: 'x' }])
})

test('numbers keep their text, booleans are t and f, nested values are JSON text', (t) => {
  const text = `{"TIME":"${T}","SCHEMANAME":"s","TABLENAME":"t","OPERATION":"insert","DATA":{"big":9007199254740995.10,"y":true,"n":false,"z":null,"j": { "a" : [1.0, "\\u00e9\\/"] }}}`
  const change = readChange(text, {})
  t.is(change.operation, 'INSERT')
  t.deepEqual(change.columns.map((column) => column.new), ['9007199254740995.10', 't', 'f', null, '{"a":[1.0,"é/"]}'])
  const update = readChange(body({ OPERATION: 'Update', DATA: { j: { a: 1 } } }), {})
  t.deepEqual(update.columns, [{ name: 'j', new: '{"a":1}' }])
})

test('the three dialects of the trigger', (t) => {
  const part = ({ dialect, schema, table, operation }: Change): unknown[] => [dialect, schema, table, operation]
  t.deepEqual(part(readChange(fixture('01-v1-insert'), {})), ['v1', 'guildhall', 'user_account', 'INSERT'])
  t.deepEqual(part(readChange(fixture('04-v2-insert-escaped'), {})), ['v2', 'guildhall', 'payment', 'INSERT'])
  t.deepEqual(part(readChange(fixture('08-v0-update'), options)), ['v0', 'guildhall', 'id_sequence', 'UPDATE'])
  t.is(reason(fixture('08-v0-update')), 'no_schema')
})

test('columns and tables may be called like fields of the envelope', (t) => {
  const change = readChange(body({ DATA: { data: '1', operation: 'x', TIME: 'y', payload: 'z', originator: 'w' } }), {})
  t.deepEqual(change.columns.map(({ name }) => name), ['data', 'operation', 'TIME', 'payload', 'originator'])
  for (const table of ['data', 'operation', 'payload', 'originator', 'error', 'SOURCE']) {
    const oldest = readChange(JSON.stringify({ SEQ_ID: 1, TIME: T, [table]: { insert: { id: '1' } } }), options)
    t.is(oldest.table, table.toLowerCase())
    t.deepEqual(Object.keys(JSON.parse(oldest.cleanText) as object), ['TIME', table])
  }
})

test('fields of relays are taken out of the clean text and nothing else is', (t) => {
  const plain = `{"TIME": "${T}", "SCHEMANAME": "s", "TABLENAME": "t", "OPERATION": "INSERT", "DATA":  {"id" : "1\\/2"}  }`
  t.is(readChange(` ${plain}\n`, {}).cleanText, ` ${plain}\n`)
  const relayed = `{"SEQ_ID": 7, "TOPICNAME": "x", "SOURCE": "INFORMIX", ${plain.slice(1, -1)}, "retryCount": 2, "RECONCILE_STATUS": 1, "recipients": [1, {}], "error": {"code": "x"}}`
  const change = readChange(relayed, {})
  t.true(change.relay)
  t.is(change.cleanText, `{"TIME": "${T}", "SCHEMANAME": "s", "TABLENAME": "t", "OPERATION": "INSERT", "DATA":  {"id" : "1\\/2"}}`)
  t.false(readChange(change.cleanText, {}).relay)
})

for (const [given, name] of [
  ['TEST ', 'test'], ['test\u0001\u0002', 'test'], ["'informix'.test", 'test'], ['testdb:informix.test', 'test'], ['"Test"', 'test'],
  ['testdb@server:"informix"."test"', 'test'], [' test', 'test'], ['two words', 'two words'], ['größe', 'größe'],
] as const) {
  test(`the name ${JSON.stringify(given)} is ${name}`, (t) => {
    t.is(readChange(body({ TABLENAME: given, SCHEMANAME: given }), {}).table, name)
    t.is(readChange(body({ TABLENAME: given, SCHEMANAME: given }), {}).schema, name)
  })
}

test('column names are kept as they are, __proto__ too', (t) => {
  const text = body({}).replace('"id"', '"__proto__"').replace('"1"}', '"1","Constructor":"2"}')
  t.deepEqual(readChange(text, {}).columns, [{ name: '__proto__', new: '1' }, { name: 'Constructor', new: '2' }])
})

for (const [why, text] of [
  ['empty_body', ' \n'], ['truncated', body({}).slice(0, -1)], ['json_syntax', `${body({})}x`], ['not_object', '[]'], ['not_object', 'null'],
  ['not_object', '"x"'], ['too_deep', body({ DATA: { id: '~' } }).replace('"~"', '['.repeat(60) + ']'.repeat(60))],
  ['duplicate_key', body({}).replace('"id":"1"', '"id":"1","id":"2"')], ['duplicate_key', body({}).replace('{"TIME"', '{"TABLENAME":"x","TIME"')],
  ['duplicate_key', body({ OPERATION: 'UPDATE', DATA: { id: { old: '1', new: '2' } } }).replace('"old":"1"', '"old":"1","old":"3"')],
  ['missing_field', '{}'], ['missing_field', body({ TIME: undefined })], ['missing_field', body({ SCHEMANAME: undefined })], ['missing_field', body({ DATA: undefined })],
  ['missing_field', JSON.stringify({ TIME: T, a: { INSERT: {} }, b: { INSERT: {} } })], ['missing_field', JSON.stringify({ TIME: T, a: { SELECT: {} } })],
  ['bad_time', body({ TIME: 5 })], ['unknown_operation', body({ OPERATION: 'TRUNCATE' })], ['unknown_operation', body({ OPERATION: ['INSERT'] })],
  ['bad_name', body({ TABLENAME: '' })], ['bad_name', body({ TABLENAME: 'informix.' })], ['bad_name', body({ TABLENAME: 'x'.repeat(64) })], ['bad_name', body({ SCHEMANAME: 5 })],
  ['bad_name', body({ DATA: { '': '1' } })], ['bad_name', body({ DATA: { ['é'.repeat(32)]: '1' } })], ['bad_name', body({ TABLENAME: 'a\u0001b' })],
  ['bad_data', body({ DATA: [] })], ['bad_data', body({ DATA: 'x' })], ['bad_data', JSON.stringify({ TIME: T, tbl: { INSERT: '1' } })],
  ['no_schema', JSON.stringify({ TIME: T, tbl: { INSERT: {} } })],
  ['wrong_direction', fixture('24-wrong-direction')], ['wrong_direction', JSON.stringify({ payload: { operation: 'x', schema: 'y', table: 'z', data: {} } })],
  ['nul_character', body({ DATA: { id: 'a\0' } })], ['nul_character', body({ DATA: { 'i\0': 'a' } })], ['nul_character', body({ TABLENAME: 'a\0' })],
  ['lone_surrogate', body({ DATA: { id: 'a\ud800' } })], ['lone_surrogate', body({ DATA: { 'a\udc00': '1' } })],
] as const) {
  test(`${why}: ${text.slice(0, 150)}`, (t) => {
    t.is(reason(text), why)
  })
}

test('what a BadChange says holds no value of the row', (t) => {
  for (const text of [body({ DATA: { id: 'secret\0' } }), body({ OPERATION: 'secret' }), body({ TABLENAME: '"secret' }), `{"id":"secret"x}`]) {
    const error = t.throws(() => readChange(text, {}), { instanceOf: BadChange })
    t.notRegex(`${error?.message}${error?.detail}`, /secret/)
  }
})
