import { chmodSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import { startRole } from '../scripts/commands/role-process.ts'
import { ACCOUNT_TABLE } from '../scripts/demo/account.ts'
import { play } from '../scripts/demo/play.ts'
import { openSender } from '../scripts/demo/sender.ts'
import { unlikeModel } from '../scripts/demo/verdict.ts'
import { makeWorkload, modelOf } from '../scripts/demo/workload.ts'
import { embeddedKafka } from '../scripts/stack/embedded-kafka.ts'
import { embeddedPostgres } from '../scripts/stack/embedded-postgres.ts'
import { freePorts } from '../scripts/stack/free-port.ts'
import { migrate } from '../services/jobs/migrate.ts'
import { openSlot } from '../services/runtime/slot.ts'
import { untilAnswered } from './support/posts.ts'
import { testOwnKafka } from './support/own-servers.ts'
import { until } from './support/until.ts'

const changes = 1_200

testOwnKafka('I1 I3 I10 Postgres and Kafka killed under load come back, and every accepted change arrives once', async (t) => {
  t.timeout(240_000)
  const directory = mkdtempSync(join(tmpdir(), 'deltapost-servers-'))
  chmodSync(directory, 0o755)
  const [postgres, kafka] = await Promise.all([
    embeddedPostgres({ directory: join(directory, 'postgres') }), embeddedKafka({ directory: join(directory, 'kafka'), log: () => undefined }),
  ])
  const url = postgres.url('postgres')
  const slot = openSlot({ url, name: 'judge', deadline: 60_000 })
  await migrate(url, { log: () => undefined })
  await slot.run((sql) => sql.unsafe(ACCOUNT_TABLE))
  const environment = {
    PATH: process.env['PATH'], DATABASE_URL: url, KAFKA_BROKERS: kafka.brokers, PORT: String((await freePorts(1))[0]), LOG_LEVEL: 'warn',
  }
  const said: string[] = []
  const roles = (['listener', 'relay', 'consumer'] as const).map((role) => startRole(role, environment, (line) => said.push(`${role}: ${line}`)))
  t.teardown(async () => {
    await Promise.all(roles.map((role) => role.stop()))
    await slot.close()
    await Promise.all([postgres.stop(), kafka.stop()])
    rmSync(directory, { recursive: true, force: true })
  })
  await Promise.all(roles.map((role) => role.ready))

  const workload = makeWorkload({ seed: 11, changes, perSecond: 100, begin: Date.now() * 1_000 })
  const post = untilAnswered(openSender(`http://127.0.0.1:${environment.PORT}`, AbortSignal.timeout(200_000)))
  let answered = 0
  const playing = play(workload, post, AbortSignal.timeout(200_000), (played) => { answered = played.sent.length })
  for (const [at, server] of [kafka, postgres, kafka, postgres].entries()) {
    await until(() => answered >= (changes * (at + 1)) / 6, { within: 120_000, what: `progress before kill ${at + 1}` })
    await server.kill()
    await pause(1_000) // away for a moment, so that everybody notices
    await server.start()
  }
  const played = await playing
  const counts = async () => (await slot.run((sql) => sql<{ received: number; deployed: number; waiting: number; pending: number }[]>`
    select (select count(*)::int from auditlog.producer_log) as received, (select count(*)::int from inbox.applied) as deployed,
      (select count(*)::int from outbox.event) as waiting, (select count(*)::int from auditlog.pending) as pending`))[0]!
  await until(async () => (await counts()).pending === 0, { within: 90_000, what: `nothing is pending; the roles said:\n${said.slice(-20).join('\n')}` })

  const accepted = new Set(played.sent.map(({ answer }) => answer.seqId)).size
  t.deepEqual(played.failed, [])
  t.deepEqual(await counts(), { received: accepted, deployed: accepted, waiting: 0, pending: 0 })
  t.deepEqual(await slot.run((sql) => unlikeModel(sql, modelOf(played.sent.map(({ change }) => change)))), [])
  t.deepEqual(roles.map(({ pid }) => alive(pid)), [true, true, true], 'no role ended')
})

function alive(pid: number): boolean {
  return process.kill(pid, 0)
}
