import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import test from 'ava'
import fc from 'fast-check'
import { readChange } from './change.ts'
import { contentHash, eventKey, idempotencyKey, rowKey } from './event-key.ts'

type Sent = { [name: string]: string | number | boolean | null | Sent }

const value = fc.oneof(fc.string({ unit: 'grapheme' }).filter((text) => !text.includes('\0')), fc.integer(), fc.boolean(), fc.constant(null))
const name = fc.string({ unit: 'grapheme', minLength: 1, maxLength: 8 }).filter((text) => !text.includes('\0') && Buffer.byteLength(text) <= 63)
const flat = fc.dictionary(name, value, { maxKeys: 20 })
const change: fc.Arbitrary<Sent> = fc.oneof(
  fc.record({ OPERATION: fc.constantFrom('INSERT', 'DELETE'), DATA: flat }),
  fc.record({ OPERATION: fc.constant('UPDATE'), DATA: fc.dictionary(name, fc.record({ old: value, new: value }), { maxKeys: 20 }) }),
).map((part) => ({ TIME: '2019-09-16T10:00:00.5Z', SCHEMANAME: 'testdb', TABLENAME: 'test', ...part }))

/** Writes JSON with escapes and blanks where the source of chance says so. */
function spelled(sent: Sent[string], chance: () => number): string {
  const blank = (): string => ['', ' ', '\n ', '\t'][chance() % 4] ?? ''
  if (typeof sent === 'string') return text(sent, chance)
  if (typeof sent !== 'object' || sent === null) return JSON.stringify(sent)
  const members = Object.entries(sent).map(([key, inner]) => `${blank()}${text(key, chance)}${blank()}:${blank()}${spelled(inner, chance)}${blank()}`)
  return `{${members.join(',')}}`
}

function text(plain: string, chance: () => number): string {
  const units = [...plain].map((character) => {
    if (character === '/' && chance() % 2 === 0) return '\\/'
    if (chance() % 3 > 0) return JSON.stringify(character).slice(1, -1)
    return Array.from({ length: character.length }, (_, at) => `\\u${character.charCodeAt(at).toString(16).padStart(4, '0')}`).join('')
  })
  return `"${units.join('')}"`
}

test('I2 one change has one event key, however its JSON is spelled and whatever relays add', (t) => {
  fc.assert(fc.property(change, fc.infiniteStream(fc.nat(1_000)), (sent, stream) => {
    const key = eventKey(readChange(JSON.stringify(sent), {}))
    const chance = (): number => Number(stream.next().value ?? 0)
    t.is(eventKey(readChange(spelled(sent, chance), {})), key)
    t.is(eventKey(readChange(JSON.stringify({ SEQ_ID: 'x', TOPICNAME: 't', ...sent, uniquedatatype: 'false', retryCount: 2 }, null, 2), {})), key)
    t.is(eventKey(readChange(JSON.stringify(JSON.parse(JSON.stringify(sent)) as Sent), {})), key)
  }), { numRuns: 300 })
})

test('I2 two changes that differ anywhere have two event keys', (t) => {
  const base = { TIME: '2019-09-16T10:00:00.5Z', SCHEMANAME: 's', TABLENAME: 't', OPERATION: 'UPDATE', DATA: { a: { old: '1', new: '2' }, b: { old: null, new: '' } } }
  const all = [
    base, { ...base, TIME: '2019-09-16T10:00:00.05Z' }, { ...base, SCHEMANAME: 'u' }, { ...base, TABLENAME: 's', SCHEMANAME: 't' },
    { ...base, DATA: { c: base.DATA.a, b: base.DATA.b } },
    { ...base, SCHEMANAME: 'ab', TABLENAME: 'c' }, { ...base, SCHEMANAME: 'a', TABLENAME: 'bc' },
    { ...base, OPERATION: 'INSERT' }, { ...base, DATA: { b: base.DATA.b, a: base.DATA.a } }, { ...base, DATA: { a: base.DATA.a, b: { old: '', new: null } } },
    { ...base, DATA: { a: base.DATA.a, b: { new: '' } } }, { ...base, DATA: { a: { old: '1', new: '2', }, b: { old: null, new: 'null' } } },
    { ...base, DATA: { a: base.DATA.a } }, { ...base, DATA: {} }, { ...base, DATA: { a: { old: '1', new: '2b' } } },
  ].map((sent) => eventKey(readChange(JSON.stringify(sent), {})))
  t.is(new Set(all).size, all.length)
})

test('fixture 23: the relayed change is the plain one', (t) => {
  const relayed = readChange(readFileSync(join(import.meta.dirname, '../test/fixtures/informix-posts/23-relay-fields.body'), 'utf8'), {})
  t.true(relayed.relay)
  const plain = readChange('{"TIME": "2020-09-03T00:00:00.31Z", "SCHEMANAME": "guildhall", "TABLENAME": "user_group_xref", "OPERATION": "INSERT", "DATA":  {"group_id" : "12", "user_id" : "132456"}  }', {})
  t.is(eventKey(relayed), eventKey(plain))
})

test('keys that clients choose meet no others', (t) => {
  const one = readChange('{"TIME":"2019-09-16T10:00:00.5Z","SCHEMANAME":"s","TABLENAME":"t","OPERATION":"INSERT","DATA":{}}', {})
  t.is(new Set([eventKey(one), contentHash(one), idempotencyKey('a', 0), idempotencyKey('a', 1), idempotencyKey('1\u0000a', 0)]).size, 5)
  t.regex(eventKey(one), /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/)
})

test('the row key is the key before the change, without blanks at the end', (t) => {
  const read = (OPERATION: string, DATA: object): ReturnType<typeof readChange> =>
    readChange(JSON.stringify({ TIME: '2019-09-16T10:00:00.5Z', SCHEMANAME: 's', TABLENAME: 't', OPERATION, DATA }), {})
  t.is(rowKey(read('UPDATE', { id: { old: '5  ', new: '6' } }), ['id']), '["5"]')
  t.is(rowKey(read('INSERT', { b: 'x"', a: '1' }), ['a', 'b']), '["1","x\\""]')
  t.is(rowKey(read('DELETE', { a: '1' }), ['a']), '["1"]')
  t.is(rowKey(read('DELETE', { a: '1' }), ['a', 'b']), null)
  t.is(rowKey(read('DELETE', { a: null }), ['a']), null)
  t.is(rowKey(read('DELETE', { a: '1' }), null), null)
})
