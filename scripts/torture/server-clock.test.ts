import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import { serverClocks } from './server-clock.ts'

test('a program that is started with a clock of its own sees it step forward and back, and one without it does not', (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'deltapost-clock-'))
  t.teardown(() => rmSync(directory, { recursive: true, force: true }))
  const clocks = serverClocks(directory, ['one', 'other'])
  if (typeof clocks === 'string') {
    t.log(`no clocks here: ${clocks}`)
    return t.pass()
  }
  // Milliseconds by which the program is ahead of us.
  const ahead = (environment: Record<string, string>): number =>
    Number(spawnSync('date', ['+%s%3N'], { env: { PATH: process.env['PATH'] ?? '', ...environment }, encoding: 'utf8' }).stdout) - Date.now()
  for (const ms of [3_600_000, -86_400_500, 1, 0]) {
    clocks.one.shift(ms)
    t.true(Math.abs(ahead(clocks.one.environment) - ms) < 60_000, `${ms}`)
    t.true(Math.abs(ahead(clocks.other.environment)) < 60_000)
  }
})
