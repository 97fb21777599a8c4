import { setTimeout as pause } from 'node:timers/promises'

import { openLog } from '../../services/runtime/log.ts'
import { openWake } from '../../services/runtime/wake.ts'
import { seeded } from '../demo/random.ts'
import type { Role } from '../commands/serve.ts'
import { bodyOf, makeSteps, modelOf } from './changes.ts'
import { latencyOf } from './latency.ts'
import { measuredBetween, takeReading } from './measure.ts'
import { faultsOf } from './oracles.ts'
import { everythingApplied, lastSeqId, playAtRate, WAKE_CHANNEL } from './pipeline.ts'
import { openPlace, type Bench, type Place } from './place.ts'
import { openIntake } from './prefill.ts'
import type { Measured } from './result.ts'

const ROLES: readonly Role[] = ['listener', 'relay', 'consumer']
const BYTES = 100
/** A kill, a consumer's session of 6 s and some rest take about ten seconds: of `--seconds` 20 each role is killed four times. */
const TIMES_SECONDS = 6
const LOOK_MS = 25
/** Below this the service counts as recovered, in seconds. */
const CAUGHT_UP = 1
const REST = { least: 500, most: 2_500 }

/**
 * Kills each role in turn with SIGKILL under a steady load and starts it again at once: how long, from the start of the
 * process, until it takes work and no change without an outcome is older than a second.
 */
export async function restart(bench: Bench, keep: (run: Measured) => void): Promise<void> {
  const { rate, seconds, repeats } = bench.options
  for (let repeat = 1; repeat <= repeats; repeat += 1) {
    const place = await openPlace(bench)
    const wake = openWake({ url: place.databaseUrl, channel: WAKE_CHANNEL, name: 'bench', log: openLog('bench', 'warn') })
    const intake = openIntake(place, { inOrder: false, ring: wake.ring })
    try {
      bench.tell(`restart: ${rate}/s, run ${repeat}`)
      const steps = makeSteps(rate * seconds * TIMES_SECONDS)
      for (const role of ROLES) await place.start(role)
      const before = await takeReading(place)
      const begun = performance.now()
      let over = false
      const playing = playAtRate(bench, steps, rate, (step, micros) => intake.take(bodyOf(step, micros, BYTES))).finally(() => { over = true })
      const times = await killInTurn(bench, place, () => over)
      await playing
      await everythingApplied(bench, place, steps.length)
      const taken = (performance.now() - begun) / 1_000
      const faults = await faultsOf(place.sql, { changes: steps.length, model: modelOf(steps), bytes: BYTES, published: true })
      keep(measuredBetween(place, before, await takeReading(place), {
        scenario: 'restart', variant: `${rate}/s`, repeat, changes: steps.length, seconds: taken, faults, more: figuresOf(times),
      }))
    } finally {
      await Promise.all([intake.close(), wake.close()])
      await place.drop()
    }
  }
}

type Times = Map<Role, number[]>

async function killInTurn(bench: Bench, place: Place, over: () => boolean): Promise<Times> {
  const times: Times = new Map(ROLES.map((role) => [role, []]))
  const random = seeded(1)
  for (let turn = 0; !over(); turn += 1) {
    await pause(REST.least + random.below(REST.most - REST.least), undefined, { signal: bench.signal })
    const role = ROLES[turn % ROLES.length]!
    const at = place.roles.findIndex((one) => one.role === role)
    const [running] = place.roles.splice(at, 1)
    if (running === undefined || over()) break
    process.kill(running.pid, 'SIGKILL')
    await running.exited
    const started = performance.now()
    await place.start(role)
    const mark = await lastSeqId(place)
    while (await behind(place, mark)) await pause(LOOK_MS, undefined, { signal: bench.signal })
    const taken = performance.now() - started
    times.get(role)?.push(taken)
    bench.tell(`  ${role} killed: ${(taken / 1_000).toFixed(1)} s`)
  }
  return times
}

/**
 * A change waits for longer than CAUGHT_UP, or one up to `mark`, the last when the role took work again: right then the lag
 * may be small still, though the lanes of the process that was killed are nobody's until their lease is over.
 */
async function behind(place: Place, mark: bigint): Promise<boolean> {
  const [row] = await place.sql<{ behind: boolean }[]>`
    select coalesce(min(received_at) < clock_timestamp() - ${CAUGHT_UP} * interval '1 s' or min(seq_id) <= ${mark.toString()}, false) as behind
    from auditlog.pending`
  return row?.behind ?? true
}

function figuresOf(times: Times): Record<string, number> {
  return Object.fromEntries([...times].flatMap(([role, values]) => (values.length === 0 ? [] : [
    [`${role}: kills`, values.length], [`${role}: back after s, p50`, latencyOf(values).p50 / 1_000], [`${role}: back after s, p95`, latencyOf(values).p95 / 1_000],
  ])))
}
