import { createHash } from 'node:crypto'
import test from 'ava'
import { startRole } from '../scripts/commands/role-process.ts'
import { openSender } from '../scripts/demo/sender.ts'
import { freePorts } from '../scripts/stack/free-port.ts'
import { connect, freshDatabase } from './support/database.ts'
import { brokers, freshTopic, setTopicLimit, STOCK_LIMIT } from './support/kafka.ts'
import { until } from './support/until.ts'

test('a body of 20 MB reaches the target byte for byte through a topic that takes 1 MB, and the change behind it too', async (t) => {
  t.timeout(180_000)
  const database = await freshDatabase()
  const { topic, drop } = await freshTopic('large', 4)
  await setTopicLimit(topic, STOCK_LIMIT)
  const sql = connect(database.url)
  const port = (await freePorts(1))[0]
  const environment = {
    PATH: process.env['PATH'], DATABASE_URL: database.url, KAFKA_BROKERS: brokers().join(), TOPIC: topic, CONSUMER_GROUP: topic, PORT: String(port), LOG_LEVEL: 'warn',
  }
  const said: string[] = []
  const roles = (['listener', 'relay', 'consumer'] as const).map((role) => startRole(role, environment, (line) => said.push(line)))
  t.teardown(async () => {
    await Promise.all(roles.map((role) => role.stop()))
    await sql.end({ timeout: 5 })
    await database.drop()
    await drop()
  })
  await Promise.all(roles.map((role) => role.ready))
  const value = text(20_000_000)
  const head = '{"TIME": "2026-01-01T00:00:00.1Z", "SCHEMANAME": "app", "TABLENAME": "document", "OPERATION": "INSERT", "DATA": {"id": "1", "body": '
  const body = `${head}${JSON.stringify(value)}}}`
  t.true(Buffer.byteLength(body) >= 20_000_000)
  const post = openSender(`http://127.0.0.1:${port}`, AbortSignal.timeout(120_000))
  const large = await post('/events', body)
  const small = await post('/events', `${head.replace('00.1Z', '00.2Z').replace('"1"', '"2"')}"small"}}`)
  t.deepEqual([large.status, small.status], [200, 200])
  await until(async () => (await sql`select 1 from inbox.applied`).length === 2, { within: 90_000, what: `both changes applied; the roles said:\n${said.join('\n')}` })
  const [stored] = await sql`select encode(sha256(convert_to(body, 'UTF8')), 'hex') as hash, octet_length(body) as bytes from app.document where id = '1'`
  t.deepEqual({ ...stored }, { hash: createHash('sha256').update(value).digest('hex'), bytes: Buffer.byteLength(value) })
  const [logged] = await sql`select encode(sha256(convert_to(producer_payload::text, 'UTF8')), 'hex') as hash from auditlog.producer_log where seq_id = ${String(large.seqId)}`
  t.is(logged?.['hash'], createHash('sha256').update(body).digest('hex'))
  const places = await sql`
    select l.seq_id, a."offset" - l."offset" as records from auditlog.publish_log l join inbox.applied a on a.seq_id = l.seq_id order by l.seq_id`
  t.true(Number(places[0]?.['records']) >= Math.ceil(Buffer.byteLength(body) / STOCK_LIMIT) - 1, 'the log names the first chunk, the consumer the last one')
  t.is(Number(places[1]?.['records']), 0)
})

/** Text of about so many bytes with quotes, backslashes, line ends and characters of two to four bytes. */
function text(bytes: number): string {
  const pieces = ['Invoice lines follow. ', 'say "yes" ', 'C:\\work\\file ', 'new line\n', 'naïve café ', '日本語の文 ', 'emoji 😀 ', 'a|b|c ']
  const parts: string[] = []
  let state = 1
  for (let size = 0; size < bytes;) {
    state = (state * 1_103_515_245 + 12_345) % 2_147_483_648
    const piece = pieces[state % pieces.length]!
    parts.push(piece)
    size += Buffer.byteLength(piece)
  }
  return parts.join('')
}
