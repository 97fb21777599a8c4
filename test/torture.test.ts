import { spawn } from 'node:child_process'
import { rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { ExecutionContext } from 'ava'
import { testOwnKafkaInTurn } from './support/own-servers.ts'

const PROGRAM = fileURLToPath(new URL('../scripts/deltapost.ts', import.meta.url))
/** In milliseconds; scripts/test.ts ends a run in which nothing ends for longer than nine minutes. */
const LIMIT = 480_000

/** One for each place where a bug of this kind can sit: intake, relay, guard, tombstone, parking. */
const PLANTED = ['answer-before-commit', 'ack-before-the-broker', 'no-version-guard', 'no-tombstone', 'retry-at-the-tail']
const FAULTS = ['kill-postgres', 'kill-backend', 'freeze-relay', 'freeze-consumer', 'stall-consumer-postgres', 'drop-answers-relay-kafka', 'drop-answers-listener-postgres', 'late-commit', 'target-altered', 'offsets-deleted', 'kill-all']

/** Runs `deltapost torture` with servers of its own; a red oracle, a step that was not passed and a bug that was not seen end it with 3. */
async function torture(t: ExecutionContext, name: string, ...args: string[]): Promise<void> {
  t.timeout(LIMIT)
  const folder = join(tmpdir(), `deltapost-torture-${process.pid}-${name}`)
  const child = spawn(process.execPath, [PROGRAM, 'torture', ...args, '--keep', folder, '--plan', `${folder}.json`], { stdio: ['ignore', 'pipe', 'pipe'] })
  t.teardown(() => {
    child.kill('SIGTERM')
    for (const left of [folder, `${folder}.json`]) rmSync(left, { recursive: true, force: true })
  })
  let said = ''
  for (const stream of [child.stdout, child.stderr]) stream.setEncoding('utf8').on('data', (text: string) => { said += text })
  const code = await new Promise((resolve) => child.once('close', resolve))
  t.is(code, 0, said.split('\n').filter((line, at, all) => at > all.length - 4 || /^RED|^MISSED|^ {8}/.test(line)).join(' | ')) // TAP shows one line
}

testOwnKafkaInTurn('I1 I3 I6 I7 I9 I10 I11 I12 a kill at each labelled step, and other faults between them, lose, double and reorder nothing', async (t) => {
  await torture(t, 'steps', '--seed', '5', '--steps', '1', '--faults', FAULTS.join(), '--rate', '250')
})

testOwnKafkaInTurn('the oracles of the campaign see five planted bugs, and none where there is none', async (t) => {
  await torture(t, 'planted', '--seed', '5', '--mutants', PLANTED.join())
})
