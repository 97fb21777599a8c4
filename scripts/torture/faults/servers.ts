import { between, type Fault, insist, mend, type Rig, wait } from './fault.ts'

/** How long a server is away before it is started again. */
function away(rig: Rig): Promise<void> {
  return wait(rig, between(rig, 0, 2_000))
}

/** SIGKILL of the postmaster, which takes all backends with it: recovery from the log. */
const killPostgres: Fault = {
  name: 'kill-postgres', kind: 'server',
  async happen(rig) {
    await rig.postgres.kill()
    try {
      await away(rig)
    } finally {
      await mend(rig, rig.postgres.start)
    }
  },
}

/** pg_ctl restart -m fast. */
const restartPostgres: Fault = {
  name: 'restart-postgres', kind: 'server',
  async happen(rig) {
    try {
      await rig.postgres.stop()
    } finally {
      await mend(rig, rig.postgres.start)
    }
  },
}

const SHOTS = 6

/** Single connections of the roles, one after the other, those at work rather than others: some COMMIT then has no answer. */
const killBackend: Fault = {
  name: 'kill-backend', kind: 'server',
  async happen(rig) {
    let shot = 0
    for (let at = 0; at < SHOTS; at += 1) {
      const [active, all] = await insist(rig, () => backends(rig))
      const among = active.length > 0 && rig.random.chance(0.8) ? active : all
      if (among.length > 0) {
        await insist(rig, () => rig.sql`select pg_terminate_backend(${rig.random.pick(among)})`)
        shot += 1
      }
      await wait(rig, between(rig, 20, 250))
    }
    if (shot === 0) rig.noted('kill-backend: nothing was connected')
  },
}

async function backends({ sql, databaseUrl }: Rig): Promise<[number[], number[]]> {
  const rows = await sql<{ pid: number; active: boolean }[]>`
    select pid, state = 'active' as active from pg_stat_activity
    where application_name like 'deltapost %' and datname in (current_database(), ${new URL(databaseUrl).pathname.slice(1)}) order by pid`
  return [rows.filter(({ active }) => active).map(({ pid }) => pid), rows.map(({ pid }) => pid)]
}

/** One broker, by SIGKILL. */
const killKafka: Fault = {
  name: 'kill-kafka', kind: 'kafka',
  async happen(rig) {
    const node = rig.random.pick(rig.kafka)
    await node.kill()
    try {
      await away(rig)
    } finally {
      await mend(rig, node.start)
    }
  },
}

/** One broker, in good order: it hands over what it leads where there is another. */
const restartKafka: Fault = {
  name: 'restart-kafka', kind: 'kafka',
  async happen(rig) {
    const node = rig.random.pick(rig.kafka)
    try {
      await node.stop()
    } finally {
      await mend(rig, node.start)
    }
  },
}

export const SERVERS: readonly Fault[] = [killPostgres, restartPostgres, killBackend, killKafka, restartKafka]
