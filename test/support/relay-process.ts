import { readConfig } from '../../services/runtime/config.ts'
import { openLog } from '../../services/runtime/log.ts'
import { openLocalWake } from '../../services/runtime/wake.ts'
import { runRelay } from '../../services/relay/main.ts'

/** A relay as a process of its own, for tests that kill or freeze it. Says READY on stdout. */
const stop = new AbortController()
process.once('SIGTERM', () => stop.abort())
await runRelay({
  config: readConfig(process.env),
  log: openLog('relay', 'silent'),
  signal: stop.signal,
  wake: openLocalWake(),
  onReady: () => process.stdout.write('READY\n'),
})
