import { randomBytes } from 'node:crypto'
import { open, rm, stat } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import postgres from 'postgres'

import { readChange } from '../../../outbox/change.ts'
import { eventKey } from '../../../outbox/event-key.ts'
import { insertGroup } from '../../../outbox/intake.ts'
import { meetRelation } from '../../../outbox/relation.ts'
import { microsToTimestamp } from '../../../outbox/time.ts'
import type { Sql } from '../../../outbox/sql.ts'
import { connectionOptions } from '../../../services/runtime/slot.ts'
import { timeText } from '../../demo/body.ts'
import { between, type Fault, insist, mend, type Rig, wait } from './fault.ts'

/** A connection to the database where changes are received; `rig.sql` is to the one where they are applied. */
function openFirst({ databaseUrl }: Rig): Sql {
  return postgres(databaseUrl, connectionOptions({ url: databaseUrl, name: 'torture', deadline: 60_000 }))
}

const HELD_MS = 15_000

/** An old snapshot: nothing that was written since can be cleaned up. */
const snapshotHeld: Fault = {
  name: 'snapshot-held', kind: 'other',
  async happen(rig) {
    const first = openFirst(rig)
    try {
      await Promise.all([first, rig.sql].map((sql) => sql.begin('isolation level repeatable read', async (held) => {
        await held`select count(*) from outbox.event`
        await wait(rig, HELD_MS)
      })))
    } finally {
      await first.end({ timeout: 1 })
    }
  },
}

const STUCK_MS = 4_000

/** Rows that an apply needs are locked: those of the hottest rows' versions, or a partition's position. */
const poolStuck: Fault = {
  name: 'pool-stuck', kind: 'other',
  async happen(rig) {
    const versions = rig.random.chance(0.5)
    await rig.sql.begin(async (sql) => {
      await sql`set local lock_timeout = '10s'`
      const stuck = versions
        ? await sql`select from inbox.row_version where (relation, key) in (select relation, key from inbox.row_version order by seq desc limit 3) for update`
        : await sql`select from inbox.position where topic = ${rig.topic} and next_offset > 0 order by partition offset ${rig.random.below(4)} limit 1 for update`
      if (stuck.length === 0) rig.noted('pool-stuck: nothing was locked')
      await wait(rig, STUCK_MS)
    })
  },
}

/**
 * Changes that have their numbers and are committed seconds later, behind many that came after them: a cursor over
 * numbers would pass them by. They are of a table that no workload has.
 */
const lateCommit: Fault = {
  name: 'late-commit', kind: 'other',
  async happen(rig) {
    const first = openFirst(rig)
    try {
      await insist(rig, () => meetRelation(first, 'INFORMIX', 'torture', 'late'))
      await first.begin(async (sql) => {
        await insertGroup(sql as unknown as Sql, [lateChange(rig.topic)]) // a transaction takes the same statements
        await wait(rig, between(rig, 1_000, 6_000))
      })
      rig.noted('late changes')
    } finally {
      await first.end({ timeout: 1 })
    }
  },
}

function lateChange(topic: string): Parameters<typeof insertGroup>[1][number] {
  const micros = Date.now() * 1_000
  const payload = `{"TIME": "${timeText(micros)}", "SCHEMANAME": "torture", "TABLENAME": "late", "OPERATION": "INSERT", "DATA": {"name" : "${randomBytes(8).toString('hex')}"}}`
  const change = readChange(payload, { defaultSchema: undefined })
  return {
    eventKey: eventKey(change), contentHash: null, topic, source: 'INFORMIX', schema: change.schema, table: change.table, operation: change.operation,
    dialect: change.dialect, payload, clean: null, rowKey: null, time: microsToTimestamp(BigInt(micros)), traceparent: null,
  }
}

const FULL_MS = 5_000
const CHUNKS = [16 << 20, 1 << 16, 1 << 12]

/** The disk of Postgres is full, for its data and its log. Only where it has a small one of its own (a tmpfs). */
const diskFull: Fault = {
  name: 'disk-full', kind: 'other',
  async happen(rig) {
    const [row] = await insist(rig, () => rig.sql<{ data: string }[]>`select current_setting('data_directory') as data`)
    const place = dirname(row?.data ?? '')
    if ((await stat(place)).dev === (await stat(dirname(place))).dev) return rig.noted('disk-full: Postgres has no disk of its own')
    const file = join(place, 'filler')
    try {
      await fill(file)
      await wait(rig, FULL_MS)
    } finally {
      await rm(file, { force: true })
      await mend(rig, () => answering(rig))
    }
  },
}

async function fill(file: string): Promise<void> {
  const filler = await open(file, 'w')
  try {
    for (const size of CHUNKS) {
      const chunk = Buffer.alloc(size)
      for (let full = false; !full; ) full = await filler.write(chunk).then(({ bytesWritten }) => bytesWritten < size, isFull)
    }
  } finally {
    await filler.close()
  }
}

function isFull(error: unknown): true {
  if (error instanceof Error && 'code' in error && error.code === 'ENOSPC') return true
  throw error
}

/** It may have ended: without room for its log it panics, and its recovery needs room too. */
async function answering({ sql, postgres: server }: Rig): Promise<void> {
  await sql`select 1`.catch(async (error: unknown) => {
    if (!(error instanceof Error && 'code' in error && error.code === 'ECONNREFUSED')) throw error
    await server.start()
  })
}

export const OTHERS: readonly Fault[] = [snapshotHeld, poolStuck, lateCommit, diskFull]
