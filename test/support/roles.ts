import { startRole } from '../../scripts/commands/role-process.ts'
import type { RoleProcess } from '../../scripts/commands/role-process.ts'
import type { Role } from '../../scripts/commands/serve.ts'
import { freePorts } from '../../scripts/stack/free-port.ts'
import { brokers } from './kafka.ts'

/** The roles as processes of their own, which a test starts, kills with SIGKILL, and starts again. */
export type Roles = {
  /** The listener's address. */
  url: string
  start: (role: Role, number: number) => Promise<void>
  /** Kills without a chance to finish anything, and starts another one. */
  replace: (role: Role, number: number) => Promise<void>
  stop: () => Promise<void>
  /** What they logged last. */
  said: () => string
}

/** Roles over one database and topic; `settings` are further variables of their environment. */
export async function openRoles(databaseUrl: string, topic: string, settings: Readonly<Record<string, string>> = {}): Promise<Roles> {
  const port = String((await freePorts(1))[0])
  const environment = {
    PATH: process.env['PATH'], DATABASE_URL: databaseUrl, KAFKA_BROKERS: brokers().join(), TOPIC: topic, CONSUMER_GROUP: topic,
    PORT: port, LOG_LEVEL: 'warn', ...settings,
  }
  const running = new Map<string, RoleProcess>()
  const lines: string[] = []
  async function start(role: Role, number: number): Promise<void> {
    const made = startRole(role, environment, (line) => lines.push(`${role} ${number}: ${line}`))
    running.set(`${role} ${number}`, made)
    await made.ready
  }
  return {
    url: `http://127.0.0.1:${port}`,
    start,
    async replace(role, number) {
      const victim = running.get(`${role} ${number}`)
      if (victim === undefined) throw new Error(`no ${role} ${number} runs`)
      process.kill(victim.pid, 'SIGKILL')
      await victim.exited
      await start(role, number)
    },
    stop: async () => { await Promise.all([...running.values()].map((role) => role.stop())) },
    said: () => lines.slice(-20).join('\n'),
  }
}
