import { spawn } from 'node:child_process'
import { join } from 'node:path'
import { tmpdir } from 'node:os'
import test from 'ava'

import { freshDatabase } from '../../test/support/database.ts'
import { outboxConnection, writeEvents } from '../../test/support/events.ts'
import { brokers, freshTopic } from '../../test/support/kafka.ts'

type Ended = { code: number | null; out: string; err: string }

async function cli(args: readonly string[], environment: Record<string, string>): Promise<Ended> {
  const child = spawn(process.execPath, [join(import.meta.dirname, '..', 'deltapost.ts'), ...args], {
    cwd: tmpdir(), env: { PATH: process.env['PATH'], ...environment }, stdio: ['ignore', 'pipe', 'pipe'],
  })
  const told = { out: '', err: '' }
  child.stdout.setEncoding('utf8').on('data', (text: string) => (told.out += text))
  child.stderr.setEncoding('utf8').on('data', (text: string) => (told.err += text))
  const code = await new Promise<number | null>((resolve) => child.once('close', resolve))
  return { code, ...told }
}

test('prune, lanes, origin raise, status and doctor say what they did and what is left to do', async (t) => {
  t.timeout(120_000)
  const { url, drop } = await freshDatabase()
  const { topic, drop: dropTopic } = await freshTopic('keeping', 2)
  const sql = outboxConnection(url)
  t.teardown(async () => {
    await sql.end({ timeout: 1 })
    await drop()
    await dropTopic()
  })
  const environment = { DATABASE_URL: url, KAFKA_BROKERS: brokers().join(), TOPIC: topic }
  await writeEvents(sql, [{ key: '1' }])

  t.like(await cli(['prune'], environment), { code: 1, out: '' })
  t.regex((await cli(['prune'], environment)).err, /HORIZON is not set.*\nTry: deltapost prune --horizon/)
  const pruned = await cli(['prune', '--horizon', '30d', '--json'], environment)
  t.like(JSON.parse(pruned.out), [{ partitions: [], busy: false, rows: { seen: 0 } }])
  t.regex((await cli(['lanes', '32'], environment)).out, /^64 lanes became 32\n/)
  t.regex((await cli(['lanes', '32'], environment)).out, /^there are 32 lanes\n/)
  t.is((await cli(['lanes', '0'], environment)).code, 2)
  t.regex((await cli(['origin', 'raise'], environment)).out, /^origin 1 became 2\n/)
  const { out } = await cli(['status'], environment)
  t.regex(out, /oldest unsettled +\d/)
  t.regex(out, /producer_log_000000 +0 +4999999/)
  const doctor = await cli(['doctor'], { ...environment, HORIZON: '1d' })
  t.regex(doctor.out, /warn {2}retention: .* keeps records for 7 d, .* for 24.0 h \(HORIZON\)/, doctor.out)
  t.regex((await cli(['doctor'], { ...environment, HORIZON: '8d' })).out, /ok {4}retention/)
})
