// Health of one role in its container: node ops/health.mjs listener|relay|consumer. Exit code 0 is healthy.
// A check starts a process every few seconds, so each asks one question, and imports no more than that needs.
import { hostname } from 'node:os'

import { processEnvironment, readConfig } from '../services/runtime/config.ts'

const QUESTION = { listener: answersPosts, relay: keepsItsLease, consumer: isInItsGroup }

/** /readyz is 200 while posts are taken and Postgres answers. */
async function answersPosts({ port }) {
  const { ok } = await fetch(`http://127.0.0.1:${port}/readyz`, { signal: AbortSignal.timeout(2_500) })
  return ok
}

/**
 * A relay renews twice a second for 2 s ahead; one that hangs, or has no database, lets it run out. A broker that is away
 * does not show here: the relay keeps its lanes and waits.
 */
async function keepsItsLease({ databaseUrl }) {
  const { openSlot } = await import('../services/runtime/slot.ts')
  const slot = openSlot({ url: databaseUrl, name: 'health', deadline: 2_500 })
  const [row] = await slot.run((sql) => sql`
    select exists (
      select from outbox.relay
      where split_part(holder, ':', 1) = ${hostname()} and alive_until > now()
    ) as alive`)
  return row.alive
}

/**
 * The broker drops a member whose heartbeat is missing for 6 s. (inbox.position has a holder only after the first record.)
 */
async function isInItsGroup({ kafkaBrokers, consumerGroup }) {
  const [{ clientId, KAFKA_RETRY, openKafka }, { openLog }] = await Promise.all([import('../services/runtime/kafka.ts'), import('../services/runtime/log.ts')])
  const admin = openKafka(kafkaBrokers, openLog('health', 'silent')).admin({ retry: KAFKA_RETRY })
  await admin.connect()
  const { groups } = await admin.describeGroups([consumerGroup])
  return groups.some(({ members }) => members.some((member) => member.clientId.startsWith(`${clientId()}:`)))
}

async function healthy() {
  try {
    return await QUESTION[process.argv[2]](readConfig(processEnvironment()))
  } catch (error) {
    // One line for docker inspect; the role itself logs the rest.
    process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`)
    return false
  }
}

// Connections are left to the exit: closing them politely takes longer than the question.
process.exit(await healthy() ? 0 : 1)
