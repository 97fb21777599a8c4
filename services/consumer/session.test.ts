import test from 'ava'
import { pino } from 'pino'
import type { Position } from './position.ts'
import { openSession, startOf } from './session.ts'

const log = pino({ level: 'silent' })
const stored: Position = { term: '3', nextOffset: 8n, lastOffset: 7n, lastOrigin: 1, lastSeqId: '70' }
const identity = (seqId: string) => ({ origin: 1, seqId, attempt: 0, epoch: 1, time: '0', seq: seqId })

test('the last applied record found where it was: reading goes on behind it', (t) => {
  t.deepEqual(startOf(openSession(stored), '7', identity('70'), log), { from: 8n })
})

test('the last applied record lies behind the stored offset, where a change has come in part: reading begins at its first chunk', (t) => {
  const session = openSession({ ...stored, nextOffset: 4n })
  t.deepEqual(startOf(session, '7', identity('70'), log), { seek: 4n })
  t.is(session.from, 4n)
})

test('another record at the place of the last applied one: the topic was made anew and is read from the earliest on', (t) => {
  const session = openSession(stored)
  t.deepEqual(startOf(session, '7', identity('99'), log), { seek: 0n })
  t.is(session.from, 0n)
})

test('a topic that ends before the stored offset is read from the earliest on', (t) => {
  t.deepEqual(startOf(openSession(stored), '0', identity('1'), log), { from: 0n })
})

test('where nothing was ever applied everything is read, whatever offset is stored or committed', (t) => {
  const session = openSession({ ...stored, nextOffset: 5n, lastOffset: null })
  t.deepEqual(startOf(session, '0', undefined, log), { from: 0n })
})
