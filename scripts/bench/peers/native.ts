import type { Sql } from 'postgres'

import { reach } from '../wait.ts'
import type { Ground, Pair } from './pair.ts'
import type { Link, TablePeer } from './table-peer.ts'

/** A subscriber's commit keeps the source's time, so a row is stamped when it is written; a sixth of a millisecond before its commit here. */
const STAMP = `
  create function bench.stamp() returns trigger language plpgsql as $$ begin new.arrived := clock_timestamp(); return new; end $$;
  create trigger stamp before insert or update on bench.item for each row execute function bench.stamp();
  alter table bench.item enable always trigger stamp`

/**
 * PostgreSQL's own logical replication: no Kafka, no log of what was done, one subscriber in one order. The least that
 * moving rows costs. `synchronous_commit` of the subscriber is off, as it is by default: the source keeps what is not on
 * disk at the target.
 */
export function openNative({ bench }: Ground): TablePeer {
  return {
    name: 'native',
    link: async (pair, purpose) => {
      await pair.source.sql`create publication deltapost_bench for table bench.item`
      if (purpose === 'rate') await pair.target.sql.unsafe(STAMP)
      await pair.target.sql.unsafe(`create subscription ${pair.name} connection '${connectionTo(pair)}' publication deltapost_bench with (copy_data = false)`)
      return linkOf(bench.signal, pair)
    },
    close: async () => undefined,
  }
}

function linkOf(signal: AbortSignal, pair: Pair): Link {
  const { sql } = pair.target
  return {
    hold: async () => {
      await sql.unsafe(`alter subscription ${pair.name} disable`)
      await reach({ what: 'subscribers ended', goal: 0, everyMs: 20, signal, ask: async () => ({ count: -await sendersOf(pair.source.sql, pair.name) }) })
    },
    release: async () => {
      await sql.unsafe(`alter subscription ${pair.name} enable`)
      await reach({ what: 'subscribers', goal: 1, everyMs: 5, signal, ask: async () => ({ count: await sendersOf(pair.source.sql, pair.name) }) })
    },
    trouble: async () => (await sql<{ told: string }[]>`
      select format('the subscriber met %s errors while applying', apply_error_count) as told
      from pg_stat_subscription_stats where subname = ${pair.name} and apply_error_count > 0`).map(({ told }) => told),
    // It also drops the slot in the source, without which that database could not be dropped.
    close: async () => {
      await sql.unsafe(`drop subscription ${pair.name}`)
    },
  }
}

async function sendersOf(sql: Sql, slot: string): Promise<number> {
  const [row] = await sql<{ n: number }[]>`select count(*)::integer as n from pg_replication_slots where slot_name = ${slot} and active`
  return row?.n ?? 0
}

function connectionTo({ source, name }: Pair): string {
  const { hostname, port, username, password } = new URL(source.url)
  return `host=${hostname} port=${port} user=${username} password=${password} dbname=${name}`
}
