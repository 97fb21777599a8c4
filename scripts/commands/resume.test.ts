import { spawn } from 'node:child_process'
import test from 'ava'

import { arrival } from '../../test/support/arrivals.ts'
import { EMPTY_FOLDER, PROGRAM } from '../../test/support/cli.ts'
import { ACCOUNT, copyParked, operated } from '../../test/support/operated.ts'
import { until } from '../../test/support/until.ts'

test.serial('a stopped table queues, also one that an operator stopped, and resume takes up the queue or says what hinders', async (t) => {
  const rig = await operated(t, ACCOUNT)
  await rig.apply(0, arrival('account', 'INSERT', 1, { id: '1', name: 'a', n: '1' }, 1))
  const stopped = await rig.cli('stop', 'app.account', '--reason', 'columns are being added', '--as', 'anna')
  t.is(stopped.code, 0, stopped.err)
  await rig.apply(0, arrival('account', 'UPDATE', 2, { id: ['1', '1'], n: ['1', '2'] }, 2), arrival('account', 'UPDATE', 3, { id: ['1', '1'], n: ['2', '3'] }, 3))
  t.deepEqual(await rig.rows('select n from app.account'), [{ n: 1 }])
  t.like((await rig.rows('select state, stopped_by, stop_reason from outbox.relation'))[0], { state: 'STOPPED', stopped_by: 'operator', stop_reason: 'columns are being added' })
  const retried = await rig.cli('parked', 'retry', '2')
  t.is(retried.code, 3)
  t.regex(retried.out, /1:2 {2}not tried: RELATION_STOPPED/)

  await rig.rows('alter table app.account rename to hidden')
  const hindered = await rig.cli('resume', 'app.account')
  t.is(hindered.code, 3)
  t.regex(hindered.out, /^app\.account is still stopped, 0 changes were taken up: TARGET_MISSING/)
  t.deepEqual(await rig.rows('select state, count(*)::int as n from outbox.relation, inbox.parked group by state'), [{ state: 'STOPPED', n: 2 }])

  await rig.rows('alter table app.hidden rename to account')
  const resumed = await rig.cli('resume', 'app.account')
  t.is(resumed.code, 0, resumed.err)
  t.is(resumed.out, 'app.account goes on, 2 changes were taken up\n')
  t.deepEqual(await rig.rows('select n from app.account'), [{ n: 3 }])
  t.is((await rig.cli('resume', 'app.account')).out, 'app.account is not stopped\n')
  t.is((await rig.cli('resume', 'app.nothing')).code, 1)
  t.deepEqual((await rig.rows('select command, relation, outcome is not null as ended from auditlog.action where seq_id is null order by id')), [
    { command: 'stop', relation: 'app.account', ended: false }, { command: 'resume', relation: 'app.account', ended: true }, { command: 'resume', relation: 'app.account', ended: true },
  ])
})

test.serial('the policy of a table decides what becomes of refused changes', async (t) => {
  const rig = await operated(t, ACCOUNT)
  await rig.apply(0, arrival('account', 'INSERT', 1, { id: '1', name: 'a', n: '1' }, 1))
  t.is((await rig.cli('schema', 'policy', 'app.account', 'skip')).out, 'refused changes of app.account are skipped\n')
  await rig.apply(0, arrival('account', 'UPDATE', 2, { id: ['1', '1'], name: ['a', 'too long'] }, 2))
  t.is((await rig.statuses())['2'], 'SKIPPED')
  t.is((await rig.cli('schema', 'policy', 'app.account', 'skip')).out, 'refused changes of app.account are skipped, as before\n')
  t.is((await rig.cli('schema', 'policy', 'app.account', 'drop')).code, 2)
  t.deepEqual(await rig.rows('select command, relation, before, after from auditlog.action'), [{ command: 'policy', relation: 'app.account', before: 'park', after: 'skip' }])
})

test.serial('Ctrl-C leaves a table stopped with what was taken up applied, and the next resume goes on from there', async (t) => {
  const rig = await operated(t, ACCOUNT)
  await rig.apply(0, arrival('account', 'INSERT', 1, { id: '1', name: 'a', n: '1' }, 1))
  await rig.cli('stop', 'app.account', '--reason', 'why')
  await rig.apply(0, arrival('account', 'UPDATE', 2, { id: ['1', '1'], n: ['1', '2'] }, 2))
  await copyParked(rig.url, 2, 3, 20_000)
  const count = async (): Promise<number> => Number((await rig.rows('select count(*) as n from inbox.parked'))[0]?.['n'])
  const child = spawn(process.execPath, [PROGRAM, 'resume', 'app.account'], { cwd: EMPTY_FOLDER, env: { PATH: process.env['PATH'], DATABASE_URL: rig.url }, stdio: 'ignore' })
  const ended = new Promise<number | null>((resolve) => child.once('close', resolve))
  await until(async () => await count() < 19_999, { within: 60_000 })
  child.kill('SIGINT')
  t.is(await ended, 3)
  const left = await count()
  t.true(left > 0)
  t.deepEqual(await rig.rows('select state from outbox.relation'), [{ state: 'STOPPED' }])
  t.deepEqual(await rig.rows('select n from app.account'), [{ n: 20_000 - left }])
  t.like((await rig.rows(`select outcome from auditlog.action where command = 'resume'`))[0], { outcome: `is still stopped, ${19_999 - left} changes were taken up: interrupted` })
  t.is((await rig.cli('resume', 'app.account')).code, 0)
  t.deepEqual(await rig.rows('select n from app.account'), [{ n: 20_000 }])
})
