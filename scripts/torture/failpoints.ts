import type { SqlPlant } from './plant-sql.ts'
import type { Plant } from './plant.ts'

/**
 * A labelled step; its name is the label, which begins with the role that passes it. `under` says what must be going on
 * for it to be passed at all, `seldom` that it is passed about once a second or less: it must be armed for its first pass.
 * `atTarget`: only the relay of the database that changes are applied in passes it.
 */
export type Failpoint = Plant & { under?: 'refused' | 'garbage' | 'large' | 'waiting' | 'two databases'; seldom?: true; atTarget?: true }

type More = Pick<Failpoint, 'under' | 'seldom' | 'atTarget'>

// A semicolon in front: the sources have none at the end of a line.
const hit = (label: string): string => `;(globalThis as { hit?: (label: string) => void }).hit?.('${label}');`

const before = (name: string, file: string, find: string, more: More = {}): Failpoint => ({ name, file, find, replace: `${hit(name)}\n${find}`, ...more })
const after = (name: string, file: string, find: string, more: More = {}): Failpoint => ({ name, file, find, replace: `${find}\n${hit(name)}`, ...more })

const INGEST = 'services/listener/ingest.ts'
const COMMIT = 'services/listener/commit.ts'
const APP = 'services/listener/app.ts'
const INSERTED = '  for (const { ordinal, seqId } of await slot.run((sql) => insertGroup(sql, changes))) seqIds[ordinal] = seqId'
const REJECT = '  const id = await parts.reject({ path, headers, body: bytes, reason: fault.reason, detail: fault.detail })'
const ANSWER = '    if (body.kind === \'whole\') sendAnswer(response, parts, await ingest(body.bytes, postOf(request), parts.ingestParts))'

const LISTENER: readonly Failpoint[] = [
  before('listener.validated', INGEST, '    const outcome = await parts.groups.offer(change)'),
  before('listener.committing', COMMIT, INSERTED),
  underWay('listener.sent', /^listener group/),
  after('listener.committed', COMMIT, INSERTED),
  after('listener.answering', APP, 'function sendAnswer(response: Response, parts: AppParts, { batch, items }: Answer): void {'),
  { name: 'listener.answered', file: APP, find: ANSWER, replace: `${ANSWER.replace('sendAnswer', '{ sendAnswer')}\n${hit('listener.answered')} }` },
  before('listener.rejecting', INGEST, REJECT, { under: 'garbage', seldom: true }),
  after('listener.rejected', INGEST, REJECT, { under: 'garbage', seldom: true }),
]

const LANES = 'services/relay/lanes.ts'
const PARTITION = 'services/relay/partition.ts'
const UPKEEP = 'services/relay/upkeep.ts'
const FLOOR = 'outbox/floor.ts'
const RENEW = '    const still = new Set(await slot.run((sql) => renewLanes(sql, holder, before, LEASE)))'
const SEND = '        const first = await parts.send(ours.map(({ event }) => event), mayGoOn)'
const ACK = 'slots.ack.run((sql) => ack(sql, holder, held, published))'
const SETTLE = 'await slots.floors.run(advanceSettled)'
const IDLE = '    await release([...held.values()].filter(({ leaving, inflight }) => leaving && inflight.size === 0))'

const RELAY: readonly Failpoint[] = [
  before('relay.claimed', LANES, '    parts.onClaim()', { seldom: true }),
  before('relay.renewing', LANES, RENEW),
  after('relay.renewed', LANES, RENEW),
  // Gives an idle lane back now and then, and claims it again: otherwise only a relay that comes or goes makes others do so.
  {
    name: 'relay.releasing', file: LANES, find: IDLE, seldom: true,
    replace: `    const going = [...held.values()].filter(({ leaving, inflight }) => inflight.size === 0 && (leaving || Math.random() < 0.02))
    if (going.length > 0) { ${hit('relay.releasing')} }
    await release(going)`,
  },
  after('relay.released', LANES, '    await slot.run((sql) => releaseLanes(sql, holder, lanes))', { seldom: true }),
  ifThen('relay.read', 'services/relay/reader.ts', 'events.length > 0', '  const ready = new Set([...new Set(events.map('),
  before('relay.sending', PARTITION, SEND),
  {
    // A produce request (its key is 0) is in the socket, and the broker has not answered.
    name: 'relay.sent', file: 'services/runtime/kafka-patches.ts', find: '    ? tcp(address, onConnect)',
    replace: `    ? ((socket) => {
      const write = socket.write.bind(socket) as (...given: unknown[]) => boolean
      return Object.assign(socket, {
        write(...given: unknown[]): boolean {
          const written = write(...given)
          const [bytes] = given
          if (Buffer.isBuffer(bytes) && bytes.length > 6 && bytes.readInt16BE(4) === 0) { ${hit('relay.sent')} }
          return written
        },
      })
    })(tcp(address, onConnect))`,
  },
  after('relay.acknowledged', PARTITION, SEND),
  underWay('relay.acking', /^relay ack/),
  { name: 'relay.acked', file: 'services/relay/main.ts', find: ACK, replace: `${ACK}.then((settled) => { ${hit('relay.acked')} return settled })` },
  before('relay.floor.fenced', FLOOR, '      const { position, xid } = fence', { seldom: true }),
  after('relay.floor.raised', FLOOR, '      if (lanes === undefined) return []', { seldom: true }),
  { name: 'relay.settled', file: UPKEEP, find: SETTLE, replace: `{ ${SETTLE}\n${hit('relay.settled')} }`, seldom: true },
  before('relay.republishing', UPKEEP, '        moved = await slots.retries.run((sql) => publishDue(sql, MOST_DUE))', { seldom: true }),
  ifThen('relay.republished', UPKEEP, 'moved > 0', '        if (moved > 0) parts.onDue()', { under: 'refused', seldom: true, atTarget: true }),
  after('relay.chunk', 'services/relay/large.ts', '    first ??= offset', { under: 'large', seldom: true }),
]

const APPLY = 'services/consumer/apply.ts'
const LOOP = 'services/consumer/loop.ts'
const PARKED = 'services/consumer/parked.ts'
const RECEIPTS = 'services/consumer/receipts.ts'
const MIRROR = 'services/consumer/mirror.ts'
const COMMIT_OFFSETS = '    await commitOffsetsIfNecessary({ topics })'

const CONSUMER: readonly Failpoint[] = [
  before('consumer.fetched', LOOP, '    const next = await applyBatch(parts, memory.sessions, payload)'),
  before('consumer.applying', APPLY, '  const row = await callApply(parts.slot, stands, prepared.statementId, documentOf(changes, liesIn))'),
  underWay('consumer.sent', /^consumer \d/),
  after('consumer.applied', LOOP, '  const outcome = await parts.apply({ holding, arrivals, nextOffset: session.chunks.hold() ?? next, bytes })'),
  before('consumer.committing', MIRROR, COMMIT_OFFSETS),
  after('consumer.committed', MIRROR, COMMIT_OFFSETS),
  ifThen('consumer.part', LOOP, 'session.chunks.hold() !== undefined', '  if (headless.length > 0) await lent(', { under: 'large', seldom: true }),
  after('consumer.parking', APPLY, '    const last = at === slices.length - 1 ? end : undefined', { under: 'refused', seldom: true }),
  before('consumer.parked', APPLY, `    if (row?.outcome !== 'OK') return row?.outcome ?? 'FENCED'`, { under: 'refused', seldom: true }),
  after('consumer.unparking', PARKED, '  const run = async (oneByOne: boolean): Promise<boolean> => {', { under: 'waiting', seldom: true }),
  before('consumer.unparked', PARKED, `    return row?.outcome === 'OK'`, { under: 'waiting', seldom: true }),
  before('consumer.receipts.read', RECEIPTS, '  await tell({ first, target }, receipts)', { under: 'two databases' }),
  after('consumer.receipts.named', RECEIPTS, '  await first.run((sql) => tellStatements(sql, texts))', { under: 'two databases' }),
  after('consumer.receipts.told', RECEIPTS, '  await tell({ first, target }, receipts)', { under: 'two databases' }),
  after('consumer.receipts.dropped', RECEIPTS, '  await target.run((sql) => dropReceipts(sql, receipts))', { under: 'two databases' }),
]

/** Every labelled step of the roles. Any number of them may be planted at once. */
export const FAILPOINTS: readonly Failpoint[] = [...LISTENER, ...RELAY, ...CONSUMER]

/** A statement on a connection of this name was sent a moment ago: mostly there is no answer yet. */
function underWay(name: string, connection: RegExp): Failpoint {
  const find = '        return await withDeadline(Promise.race([Promise.resolve(work(mine.sql)), lost]), deadline)'
  return { name, file: 'services/runtime/slot.ts', find, replace: `        if (${String(connection)}.test(options.name)) setTimeout(() => { ${hit(name)} }, 1)\n${find}` }
}

function ifThen(name: string, file: string, condition: string, find: string, more: More = {}): Failpoint {
  return { name, file, find, replace: `if (${condition}) { ${hit(name)} }\n${find}`, ...more }
}

/**
 * What the steps below call. `insert into torture.armed (label, "left")` arms one: at its left-th pass from then on the
 * backend ends itself, once. torture.fired(label) tells whether it did. Passes are counted by a sequence, since what the
 * backend wrote is rolled back with it.
 */
const HIT = `
create schema if not exists torture;
create table torture.armed (label text primary key, "left" integer not null default 1, at bigint not null default 0);
create sequence torture.passes;
create function torture.count_from_now() returns trigger language plpgsql as $$
begin
  new.at := nextval('torture.passes') + new."left";
  return new;
end
$$;
create trigger count_from_now before insert or update on torture.armed for each row execute function torture.count_from_now();
create function torture.hit(its_label text) returns void language plpgsql volatile as $$
begin
  if not exists (select from torture.armed a where a.label = its_label) then return; end if;
  if nextval('torture.passes') = (select a.at from torture.armed a where a.label = its_label) then
    perform pg_terminate_backend(pg_backend_pid());
    perform pg_sleep(10);
  end if;
end
$$;
create function torture.fired(its_label text) returns boolean language sql volatile as
$$ select coalesce((select s.last_value >= a.at from torture.armed a cross join torture.passes s where a.label = its_label), false) $$;
create function torture.step() returns trigger language plpgsql as $$
begin
  perform torture.hit(tg_argv[0]);
  return null;
end
$$;`

const sqlBefore = (name: string, routine: string, find: string): SqlPlant => ({ name, routine, find, replace: `perform torture.hit('${name}');\n  ${find}` })
const sqlAfter = (name: string, routine: string, find: string): SqlPlant => ({ name, routine, find, replace: `${find}\n  perform torture.hit('${name}');` })

/**
 * Labelled steps within a transaction of the database, behind what they need. Arm one at a time: the count of passes is
 * one for all.
 */
export const SQL_FAILPOINTS: readonly SqlPlant[] = [
  { name: 'torture.hit', statements: HIT },
  { name: 'intake.inserted', statements: `create trigger torture_step after insert on outbox.seen for each statement execute function torture.step('intake.inserted')` },
  { name: 'ack.deleted', statements: `create trigger torture_step after delete on outbox.event for each statement execute function torture.step('ack.deleted')` },
  sqlAfter('apply.guard', 'inbox.apply_rows', 'from inbox.guard(stmt, heads, old_keys, its_partition) as g;'),
  sqlBefore('apply.effects', 'inbox.apply', 'if held is null then'),
  sqlBefore('apply.position', 'inbox.apply', `outcome := 'OK';`),
  sqlAfter('apply.counted', 'inbox.apply_counts', 'if fresh is null then return; end if;'),
  sqlAfter('park.applied', 'inbox.apply_singly', 'perform inbox.apply_each(stmt, changes, its_partition, course);'),
  sqlBefore('park.kept', 'inbox.set_aside', 'insert into inbox.parked (origin, seq_id, relation, key, epoch, time, reason, sqlstate, message, attempts, waits, retry_at,'),
  sqlBefore('unpark.taken', 'inbox.take_out', 'perform inbox.apply_item_once(stmt, item, its_partition);'),
  sqlAfter('retry.published', 'inbox.publish_due', 'get diagnostics published = row_count;'),
]

/**
 * Makes rows of the workload "refused" wait for a parent now and then, as under a foreign key whose parent comes later:
 * only so the steps under `waiting` are passed. Allowed for any run; nothing is lost or counted by it.
 */
export const SQL_WAITING: readonly SqlPlant[] = [{
  name: 'rows that wait', statements: `
do $do$ begin
  if to_regclass('torture.refused') is null then return; end if;
  create function torture.lack_parent() returns trigger language plpgsql as $$
  begin
    if random() < 0.2 then raise foreign_key_violation using message = 'its parent is not there yet'; end if;
    return new;
  end
  $$;
  create trigger lack_parent before insert or update on torture.refused for each row execute function torture.lack_parent();
end $do$`,
}]
