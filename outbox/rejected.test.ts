import { randomBytes } from 'node:crypto'
import test from 'ava'
import { freshDatabase } from '../test/support/database.ts'
import { outboxConnection } from '../test/support/events.ts'
import { keepRejected, listRejected, markRetried, retryRejected, showRejected, type Intake } from './rejected.ts'

const database = await freshDatabase()
const sql = outboxConnection(database.url)

test.after.always(async () => {
  await sql.end({ timeout: 5 })
  await database.drop()
})

const entry = (body: Buffer): Parameters<typeof keepRejected>[1] =>
  ({ path: '/events', headers: { host: 'a', 'x-odd': 'é"\\' }, body, reason: 'json_syntax', detail: 'at character 5' })

test.serial('I11 bytes of every kind are kept as they came', async (t) => {
  for (const body of [Buffer.alloc(0), Buffer.from([0, 255, 10, 92, 120]), randomBytes(3 << 20)]) {
    const kept = await showRejected(sql, await keepRejected(sql, entry(body)))
    t.true(kept?.body.equals(body))
    t.deepEqual(kept?.headers, { host: 'a', 'x-odd': 'é"\\' })
    t.is(kept?.bytes, body.length)
  }
  t.is(await showRejected(sql, '999999'), undefined)
})

test.serial('the work list shows what waits, newest first, and forgets nothing', async (t) => {
  const [a, b] = [await keepRejected(sql, entry(Buffer.from('a'))), await keepRejected(sql, entry(Buffer.from('b')))]
  t.deepEqual((await listRejected(sql, { state: 'WAITING', limit: 2 })).map(({ id }) => id), [b, a])
  t.true(await markRetried(sql, a, ['7']))
  t.false(await markRetried(sql, a, ['8']), 'only one closes it')
  t.false((await listRejected(sql, { state: 'WAITING' })).some(({ id }) => id === a))
  t.like((await listRejected(sql)).find(({ id }) => id === a), { state: 'RETRIED', seqIds: ['7'] })
})

test.serial('a retry posts the kept or the mended bytes, once, and is open again when the listener is away', async (t) => {
  const id = await keepRejected(sql, entry(Buffer.from('kept')))
  const posts: string[] = []
  const intake = (fails: boolean): Intake => ({
    sql,
    post: async (path, _, body) => {
      posts.push(`${path} ${body.toString()}`)
      if (fails) throw new Error('away')
      return { seqIds: ['12'], rejected: [] }
    },
  })
  await t.throwsAsync(retryRejected(id, undefined, intake(true)), { message: 'away' })
  t.deepEqual(await retryRejected(id, Buffer.from('mended'), intake(false)), { seqIds: ['12'], rejected: [] })
  t.is(await retryRejected(id, undefined, intake(false)), undefined)
  t.deepEqual(posts, ['/events kept', '/events mended'])
  t.like(await showRejected(sql, id), { state: 'RETRIED', seqIds: ['12'] })
})
