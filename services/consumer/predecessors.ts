import { hostname } from 'node:os'
import type { Kafka } from 'kafkajs'
import { clientId, removeMember } from '../runtime/kafka.ts'
import type { Log } from '../runtime/log.ts'

/** Milliseconds between looks at the group while we join it. */
const LOOK_EVERY = 200

/** When this process began, which tells it from an earlier one of the same number. */
const BEGAN = Math.round(performance.timeOrigin).toString(36)

/** How a consumer calls itself to its group: the machine, the process, and when that began. */
export function memberName(): string {
  return `${clientId()}:${process.pid}:${BEGAN}`
}

/**
 * True for the name of a consumer whose process was on this machine and is gone. Where two machines or containers have one
 * name, one that lives may be taken for dead: it is told at its next heartbeat, and joins again.
 */
export function isGone(name: string, lives: (pid: number) => boolean = isRunning): boolean {
  const found = /^(.+):(\d+):([0-9a-z]+)$/.exec(name)
  if (found === null || found[1] !== `deltapost-${hostname()}`) return false
  const pid = Number(found[2])
  return pid === process.pid ? found[3] !== BEGAN : !lives(pid)
}

/**
 * While we join, takes those out of the group whose process is gone: the broker would wait for a killed consumer until its
 * session is over, 6 s, before it gives anybody a partition. Not before our join has begun: an empty group waits for more
 * members. What fails here costs that time and nothing else.
 */
export async function dismissPredecessors(parts: { kafka: Kafka; group: string; log: Log; signal: AbortSignal }): Promise<void> {
  const { kafka, group, log, signal } = parts
  const admin = kafka.admin()
  try {
    await admin.connect()
    while (!signal.aborted) {
      const { groups: [found] } = await admin.describeGroups([group])
      const gone = found?.state === 'PreparingRebalance' ? found.members.filter((member) => isGone(member.clientId)) : []
      for (const { memberId } of gone) {
        await removeMember(kafka, group, memberId)
        log.info({ member: memberId }, 'a consumer of this machine that was killed has left the group')
      }
      await pause(LOOK_EVERY, signal)
    }
  } catch (error) {
    log.debug({ error }, 'the group could not be looked at while joining')
  } finally {
    await admin.disconnect().catch(() => undefined) // there is nothing to be saved on that connection
  }
}

function isRunning(pid: number): boolean {
  try {
    return process.kill(pid, 0)
  } catch (error) {
    return error instanceof Error && 'code' in error && error.code === 'EPERM' // somebody else's process
  }
}

async function pause(ms: number, signal: AbortSignal): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>()
  const timer = setTimeout(resolve, ms)
  const done = (): void => resolve()
  signal.addEventListener('abort', done, { once: true })
  await promise
  clearTimeout(timer)
  signal.removeEventListener('abort', done)
}
