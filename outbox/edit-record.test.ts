import test from 'ava'
import { readRecord, sameRow, withChange, withValues } from './edit-record.ts'

const FRONT = '"SEQ_ID":"7","TOPICNAME":"t","SOURCE":"INFORMIX","RECEIVED_AT":"2026-01-01T00:00:00.000Z"'

function record(operation: string, data: string, front = FRONT): string {
  return `{${front},"TIME":"2026-01-01T00:00:00.1Z","SCHEMANAME":"app","TABLENAME":"account","OPERATION":"${operation}","DATA":${data}}`
}

test('a value is set in the image the change leaves, and every other byte stays', (t) => {
  const set = new Map([['name', 'say "x"'], ['n', null]])
  t.is(withValues(record('INSERT', '{ "id":1.50, "name":"a" , "n":2}'), set), record('INSERT', '{ "id":1.50, "name":"say \\"x\\"" , "n":null}'))
  t.is(withValues(record('UPDATE', '{"id":"1","name":{"old":"a","new":"b"},"n":{"old":"1"}}'), set),
    record('UPDATE', '{"id":"1","name":{"old":"a","new":"say \\"x\\""},"n":{"old":"1","new":null}}'))
  t.is(withValues(record('DELETE', '{"name":"a"}'), set), record('DELETE', '{"name":"say \\"x\\"","n":null}'))
  t.is(withValues(record('INSERT', '{}'), new Map([['id', '1']])), record('INSERT', '{"id":"1"}'))
  t.deepEqual(readRecord(withValues(record('UPDATE', '{"id":"1"}'), set), 'app').columns, [{ name: 'id', new: '1' }, { name: 'name', new: 'say "x"' }, { name: 'n', new: null }])
})

test('values are set in the oldest dialect too', (t) => {
  const v0 = `{${FRONT},"TIME":"2026-01-01 00:00:00.1","account":{"update":{"id":{"old":"1","new":"1"}}}}`
  t.is(withValues(v0, new Map([['id', '2']])), v0.replace('"new":"1"', '"new":"2"'))
})

test('another change takes the place behind the members of the relay, and brings none of its own', (t) => {
  const was = record('INSERT', '{"id":"1"}')
  const bare = '{"TIME":"2026-02-02T00:00:00.1Z","SCHEMANAME":"app","TABLENAME":"account","OPERATION":"INSERT","DATA":{"id":"1","name":"b"}}'
  const expected = `{${FRONT},${bare.slice(1)}`
  t.is(withChange(was, bare, 'app'), expected)
  t.deepEqual(JSON.parse(withChange(was, `{"SEQ_ID":"99","retryCount":2,${bare.slice(1)}`, 'app')), JSON.parse(expected))
  t.throws(() => withChange(was, '{"TIME":', 'app'), { message: /character/ })
  t.throws(() => withChange(was, '[]', 'app'))
})

test('a change is of another row where a value of its key differs, before or after', (t) => {
  const of = (operation: string, data: string) => readRecord(record(operation, data), 'app')
  t.true(sameRow(of('INSERT', '{"id":"1","name":"a"}'), of('INSERT', '{"id":"1 ","name":"b"}'), ['id']))
  t.false(sameRow(of('INSERT', '{"id":"1"}'), of('INSERT', '{"id":"2"}'), ['id']))
  t.false(sameRow(of('UPDATE', '{"id":{"old":"1","new":"2"}}'), of('UPDATE', '{"id":{"old":"3","new":"2"}}'), ['id']))
  t.false(sameRow(of('INSERT', '{"id":"1"}'), of('INSERT', '{"name":"a"}'), ['id']))
})
