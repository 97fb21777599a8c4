import { Argument, type Command } from 'commander'

import { type Config, processEnvironment, readConfig } from '../../services/runtime/config.ts'
import { type Log, openLog } from '../../services/runtime/log.ts'
import { stopSignal } from '../../services/runtime/shutdown.ts'
import type { Wake } from '../../services/runtime/wake.ts'
import { refuseWrongPair } from './target.ts'

export const ROLES = ['listener', 'relay', 'consumer'] as const
export type Role = (typeof ROLES)[number]

/** What a role tells the process that started it, once it takes work. */
export type ReadyMessage = { ready: Role; url: string | null }

const WAKE_CHANNEL = 'deltapost_wake'

export function addServe(program: Command): void {
  program.command('serve')
    .description('run one role of the service, or all three in one process, until SIGTERM')
    .addArgument(new Argument('<role>', 'what to run').choices([...ROLES, 'all']))
    .addHelpText('after', `
Settings come from the environment and .env: DATABASE_URL and KAFKA_BROKERS must be there.
With TARGET_DATABASE_URL the consumer applies there, and that database needs a relay too: another process with its address
as DATABASE_URL (all runs both).
SIGTERM finishes what was accepted and exits with 0; a second one exits at once.

Examples:
  deltapost serve all
  PORT=9000 deltapost serve listener
  deltapost serve consumer      as often as the topic has partitions; they share them`)
    .action(serve)
}

async function serve(what: Role | 'all'): Promise<void> {
  const config = readConfig(processEnvironment())
  const log = openLog(what, config.logLevel)
  const asked = stopSignal(log, config.shutdownTimeout)
  const two = what === 'listener' ? false : await refuseWrongPair(config, log)
  const roles = what === 'all' ? ROLES : [what]
  // One role that fails ends the others: a process that runs two of three would look healthy.
  const failed = new AbortController()
  const signal = AbortSignal.any([asked, failed.signal])
  const { openLocalWake, openWake } = await import('../../services/runtime/wake.ts')
  const wake = what === 'all' ? openLocalWake() : openWake({ url: config.databaseUrl, channel: WAKE_CHANNEL, name: what, log })
  const started = roles.map((role) => ({ role, config }))
  if (what === 'all' && two) started.push({ role: 'relay', config: ofTarget(config) })
  const ends = await Promise.allSettled(started.map(async ({ role, config }) => {
    try {
      await run(role, { config, log: what === 'all' ? openLog(role, config.logLevel) : log, signal, wake })
    } finally {
      failed.abort()
    }
  }))
  await wake.close()
  const broken = ends.find((end) => end.status === 'rejected')
  if (broken !== undefined) throw broken.reason
  log.info('stopped')
}

/** The relay of the second database: what the apply has to publish again, and its records of failures, leave from there. */
function ofTarget(config: Config): Config {
  return { ...config, databaseUrl: config.targetDatabaseUrl ?? config.databaseUrl, holder: `${config.holder}:target` }
}

type Parts = { config: Config; log: Log; signal: AbortSignal; wake: Wake }

// Imported when it runs: a relay needs no Express in its memory, and a listener no Kafka client.
async function run(role: Role, parts: Parts): Promise<void> {
  const ready = (url: string | null = null): void => {
    const message: ReadyMessage = { ready: role, url }
    process.send?.(message)
  }
  if (role === 'listener') {
    const { runListener } = await import('../../services/listener/main.ts')
    return runListener({ ...parts, onListening: (url) => ready(url) })
  }
  if (role === 'relay') {
    const [{ runRelay }, { runNotices }] = await Promise.all([import('../../services/relay/main.ts'), import('../../services/notices/main.ts')])
    await Promise.all([runRelay({ ...parts, onReady: () => ready() }), runNotices(parts)])
    return
  }
  const { config, log, signal } = parts
  const { runConsumer } = await import('../../services/consumer/main.ts')
  return runConsumer({ config, log, signal, onReady: () => ready() })
}
