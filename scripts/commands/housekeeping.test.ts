import test from 'ava'

import { deltapost } from '../../test/support/cli.ts'
import { freshDatabase } from '../../test/support/database.ts'
import { outboxConnection, writeEvents } from '../../test/support/events.ts'
import { brokers, freshTopic } from '../../test/support/kafka.ts'

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

  t.like(await deltapost(['prune'], environment), { code: 1, out: '' })
  t.regex((await deltapost(['prune'], environment)).err, /HORIZON is not set.*\nTry: deltapost prune --horizon/)
  const pruned = await deltapost(['prune', '--horizon', '30d', '--json'], environment)
  t.like(JSON.parse(pruned.out), [{ partitions: [], busy: false, rows: { seen: 0 } }])
  t.regex((await deltapost(['lanes', '32'], environment)).out, /^64 lanes became 32\n/)
  t.regex((await deltapost(['lanes', '32'], environment)).out, /^there are 32 lanes\n/)
  t.is((await deltapost(['lanes', '0'], environment)).code, 2)
  t.regex((await deltapost(['origin', 'raise'], environment)).out, /^origin 1 became 2\n/)
  const { out } = await deltapost(['status'], environment)
  t.regex(out, /oldest unsettled +\d/)
  t.regex(out, /producer_log_000000 +0 +4999999/)
  const doctor = await deltapost(['doctor'], { ...environment, HORIZON: '1d' })
  t.regex(doctor.out, /warn {2}retention: .* keeps records for 7 d, .* for 24.0 h \(HORIZON\)/, doctor.out)
  t.regex((await deltapost(['doctor'], { ...environment, HORIZON: '8d' })).out, /ok {4}retention/)
})
