import { createHash } from 'node:crypto'
import { Agent, request } from 'node:http'
import { setTimeout as pause } from 'node:timers/promises'

import { now } from '../demo/sender.ts'
import type { Random } from '../demo/random.ts'
import type { Ledger } from './ledger.ts'
import type { Posting, Workload } from './workload.ts'

/** A source as those who post to it know it: the number of its origin, and its listeners. */
export type Addressee = { origin: number; listeners: () => readonly string[] }

/** A change that was answered with its number. Times are milliseconds since 1970: first sent, first answered. */
export type Accepted = { hash: string; table: string; refused: boolean; sentAt: number; answeredAt: number }

/** What was posted so far. `wrong` are answers that may never be. */
export type Played = {
  /** By origin and number, as `changeId` writes them. */
  accepted: Map<string, Accepted>
  posts: number
  /** Answers by status; `none` where there was no answer. */
  answers: Record<string, number>
  /** Rejected requests, by origin and id. */
  rejected: Set<string>
  wrong: string[]
}

export type DriverParts = {
  /** Of the first source and, where there is one, of the second. */
  sources: readonly [Addressee, ...Addressee[]]
  workloads: readonly { workload: Workload; weight: number }[]
  /** Name of the workload that a fault waits for, if one does. */
  wanted?: () => string | undefined
  ledger: Ledger
  random: Random
  /** Sessions of the source that post at the same time. */
  sessions: number
  /** Changes a second, at most. */
  rate: number
  /** No transaction begins any more once this says so; those begun are posted until each is answered. */
  enough: (played: Played) => boolean
  signal: AbortSignal
}

/** Not answered so long, a post is cut and sent again, as who replays a spool would. */
const PATIENCE_MS = 30_000
const SHOWN = 20
/** Share of the transactions that a wanted workload gets besides its own: the largest bodies have 2.5 MB. */
const WANTED_SHARE = 0.02

/** Posts transactions of all workloads by their weights until it is enough. Resolves when each post has its answer. */
export function drive(parts: DriverParts, played: Played): Promise<void> {
  const { workloads, random, rate } = parts
  const weights = workloads.reduce((sum, { weight }) => sum + weight, 0)
  const locks = new Map<string, Promise<void>>()
  const begun = now()
  let made = 0

  function draw(): Posting[] {
    const wanted = workloads.find(({ workload }) => workload.name === parts.wanted?.())
    if (wanted !== undefined && random.chance(WANTED_SHARE)) return wanted.workload.next()
    let chance = random.below(1_000_000) / 1_000_000 * weights
    for (const { workload, weight } of workloads) {
      chance -= weight
      if (chance < 0) return workload.next()
    }
    throw new Error('no workload has a weight')
  }

  async function session(): Promise<void> {
    while (!parts.enough(played) && !parts.signal.aborted) {
      const ahead = made / rate * 1_000 - (now() - begun)
      if (ahead > 1) {
        await pause(ahead, undefined, { signal: parts.signal }).catch(() => undefined)
        continue
      }
      const postings = draw()
      made += postings.reduce((sum, { documents }) => sum + documents.length, 0)
      await locked(locks, new Set(postings.flatMap(({ rows }) => rows)), async () => {
        for (const posting of postings) await postUntilAnswered(posting, parts, played)
      })
    }
  }
  return Promise.all(Array.from({ length: parts.sessions }, session)).then(() => undefined)
}

/** A row's next transaction begins after the last one's posts were answered: the source holds the row's lock until then. */
async function locked(locks: Map<string, Promise<void>>, rows: ReadonlySet<string>, work: () => Promise<void>): Promise<void> {
  const earlier = [...rows].flatMap((row) => locks.get(row) ?? [])
  const mine = Promise.all(earlier).then(work)
  for (const row of rows) locks.set(row, mine)
  await mine
  for (const row of rows) if (locks.get(row) === mine) locks.delete(row)
}

async function postUntilAnswered(posting: Posting, parts: DriverParts, played: Played): Promise<void> {
  const body = bodyOf(posting)
  const number = played.posts += 1
  const sentAt = now()
  await parts.ledger.write({ post: number, hash: hashOf(body), documents: posting.documents.length })
  const answers = await Promise.all(Array.from({ length: posting.times }, async () => answerTo(posting, body, parts, played)))
  const answeredAt = now()
  await parts.ledger.write({ post: number, answers: answers.map(({ status, items }) => [status, ...items.map(({ seq_id, rejected }) => seq_id ?? `rejected ${rejected}`)]) })
  const { origin } = addresseeOf(posting, parts)
  for (const answer of answers) judge({ posting, origin }, answer, { sentAt, answeredAt }, played)
  if (new Set(answers.map(({ items }) => items.map(({ seq_id }) => seq_id).join())).size > 1) wrong(played, `post ${number} was answered with several numbers`)
}

type Item = { seq_id?: string; rejected?: string; reason?: string }
type Answer = { status: number; items: Item[] }

/** Sends until something other than 503 comes back. */
async function answerTo(posting: Posting, body: Buffer, parts: DriverParts, played: Played): Promise<Answer> {
  for (;;) {
    const answer = await post(parts.random.pick(addresseeOf(posting, parts).listeners()), posting.path, body, parts.random.chance(0.5)).catch(() => undefined)
    const status = answer === undefined ? 'none' : String(answer.status)
    played.answers[status] = (played.answers[status] ?? 0) + 1
    if (answer !== undefined && answer.status !== 503) return answer
    if (parts.signal.aborted) throw new Error('the campaign was ended')
    await pause(100)
  }
}

function judge({ posting, origin }: { posting: Posting; origin: number }, { status, items }: Answer, times: { sentAt: number; answeredAt: number }, played: Played): void {
  for (const { rejected } of items) if (rejected !== undefined) played.rejected.add(changeId(origin, rejected))
  if (posting.form === 'garbage') {
    if (status < 400 || status >= 500 || items.some(({ seq_id }) => seq_id !== undefined)) wrong(played, `a body that is no change was answered ${status}`)
    return
  }
  posting.documents.forEach((text, at) => {
    const { seq_id: seqId, reason } = items[at] ?? {}
    const { table = '', refused = false } = posting.changes[at] ?? {}
    if (seqId === undefined) return wrong(played, `a change of ${table} was answered ${status} ${reason ?? ''}`)
    const id = changeId(origin, seqId)
    const known = played.accepted.get(id)
    const hash = changeHash(text)
    if (known === undefined) played.accepted.set(id, { hash, table, refused, ...times })
    else if (known.hash !== hash) wrong(played, `two changes were answered ${id}`)
  })
}

function addresseeOf({ second }: Posting, { sources: [first, other] }: DriverParts): Addressee {
  if (second !== true) return first
  if (other === undefined) throw new Error('there is no second source to post to')
  return other
}

/** What names a change among those of all origins. */
export function changeId(origin: number, seqId: string): string {
  return `${origin}:${seqId}`
}

function wrong(played: Played, what: string): void {
  if (played.wrong.length < SHOWN) played.wrong.push(what)
}

function bodyOf({ form, documents, garbage }: Posting): Buffer {
  if (form === 'garbage') return garbage ?? Buffer.alloc(0)
  if (form === 'array') return Buffer.from(`[${documents.join(',')}]`)
  return Buffer.from(documents.join('\n'))
}

function hashOf(bytes: Buffer | string): string {
  return createHash('md5').update(bytes).digest('hex')
}

/** Of what stands behind the first brace: before it the relay puts members of its own. */
export function changeHash(text: string): string {
  return hashOf(text.slice(text.indexOf('{') + 1))
}

const KEPT_OPEN = new Agent({ keepAlive: true, maxSockets: 32 })

/** As the trigger posts: a connection for this post alone; or over one that is kept, as a replay would. */
async function post(listener: string, path: string, body: Buffer, alone: boolean): Promise<Answer> {
  const { promise, resolve, reject } = Promise.withResolvers<Answer>()
  const posted = request(new URL(path, listener), {
    method: 'POST', agent: alone ? false : KEPT_OPEN, timeout: PATIENCE_MS,
    headers: { 'content-type': 'application/json', 'content-length': body.length },
  }, (response) => {
    const parts: Buffer[] = []
    response.on('data', (part: Buffer) => parts.push(part)).once('error', reject)
    response.once('end', () => resolve(read(response.statusCode ?? 0, Buffer.concat(parts).toString('utf8'))))
  })
  posted.once('timeout', () => posted.destroy(new Error('no answer in time')))
  posted.once('error', reject)
  posted.end(body)
  return promise
}

function read(status: number, text: string): Answer {
  const said = JSON.parse(text) as Item | Item[] // the listener's documented answers
  return { status, items: Array.isArray(said) ? said : [said] }
}
