-- Up Migration

-- How far the past was left behind (HORIZON). behind: every change up to here was received before the horizon, and has an
-- outcome. dropped: changes up to here left producer_log, but for those that auditlog.kept names. begun_at: when a process
-- last began to prune, so that of many only one does.
create table auditlog.retention (
  the_only boolean primary key default true check (the_only),
  behind bigint not null default 0,
  dropped bigint not null default 0,
  begun_at timestamptz not null default '-infinity'
) with (fillfactor = 50);
insert into auditlog.retention default values;

-- The partitions of producer_log with their numbers, `high` the last one; without the default one.
create view auditlog.partition as
select c.oid as relid, c.relname::text as name, b.bound[1]::bigint as low, b.bound[2]::bigint - 1 as high
from pg_inherits i
join pg_class c on c.oid = i.inhrelid
cross join lateral (select regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \(''(\d+)''\) TO \(''(\d+)''\)') as bound) as b
where i.inhparent = 'auditlog.producer_log'::regclass and b.bound is not null;

-- The number below which every change was received before `cut`, itself included; at most the settled watermark, since no
-- open transaction can still commit a number below that. received_at grows with the number but for some seconds, so the
-- first younger change is found by halving the numbers, some 40 look-ups by the primary key.
create function auditlog.last_before(cut timestamptz) returns bigint
language plpgsql stable as $$
declare
  low bigint := 0;
  high bigint := (select w.up_to from auditlog.settled w);
  middle bigint;
  its_number bigint;
  its_time timestamptz;
begin
  while low < high loop
    middle := low + (high - low + 1) / 2;
    select p.seq_id, p.received_at into its_number, its_time
    from auditlog.producer_log p where p.seq_id > low and p.seq_id <= middle order by p.seq_id desc limit 1;
    if found and its_time >= cut then
      high := its_number - 1;
    else
      low := middle;
    end if;
  end loop;
  return low;
end
$$;

-- The changes among these numbers that stay however old they are: what somebody still has to look at, or what is on its
-- way again. Each of the four is read through an index, or is a small table.
create function auditlog.kept(low bigint, high bigint) returns setof bigint
language sql stable
begin atomic
  select k.seq_id from outbox.own_origin o join inbox.parked k on k.origin = o.origin and k.seq_id between low and high
  union
  select a.seq_id from inbox.applied a
  where a.status in ('PARKED', 'RETRYING', 'FAILED') and a.status <> 'APPLIED' and a.seq_id between low and high
  union
  select l.seq_id from auditlog.publish_log l
  where l.producer_publish_status in ('PENDING', 'RETRYING', 'FAILED') and l.producer_publish_status <> 'PUBLISHED' and l.seq_id between low and high and l.latest
  union
  select e.seq_id from outbox.event e where e.seq_id between low and high and e.origin is null;
end;

-- Takes the oldest partition of which all numbers are up to `up_to` out of producer_log and drops it; what is to be kept is
-- copied into a small one in its place. Outcomes and publish_log follow later (outbox/retention.ts): the audit is made from
-- producer_log, so all rows of a change leave it in this one moment, and none can look pending.
-- Returns its name; null where nothing is to be dropped; BUSY where somebody reads for longer than 100 ms.
-- A default partition rules out "detach concurrently", so inserts are locked out from the detach to the commit, some
-- milliseconds; while the lock is waited for they wait too, and therefore it is given up after 100 ms.
-- More than 10,000 to keep are no remainder: copying them would take long, and the partition stays as it is.
create function auditlog.drop_partition(up_to bigint) returns text
language plpgsql set lock_timeout = '100ms' as $$
declare
  old record;
  stays bigint[];
  leaves boolean;
  new_name text;
begin
  if not pg_try_advisory_xact_lock(hashtextextended('auditlog.producer_log', 0)) then return 'BUSY'; end if;
  for old in select p.* from auditlog.partition p where p.high <= least(up_to, (select w.up_to from auditlog.settled w)) order by p.low loop
    stays := array(select k.seq_id from auditlog.kept(old.low, old.high) as k(seq_id) limit 10001);
    continue when cardinality(stays) > 10000;
    execute format('select exists (select from auditlog.%I p where p.seq_id <> all($1))', old.name) into leaves using stays;
    continue when cardinality(stays) > 0 and not leaves;
    begin
      new_name := old.name || '_kept';
      if cardinality(stays) > 0 then
        -- declare_key writes row keys: not between the copy and the drop.
        execute format('lock table auditlog.%I in share row exclusive mode', old.name);
        execute format('create table auditlog.%I (like auditlog.producer_log including all)', new_name);
        execute format('insert into auditlog.%I select * from auditlog.%I p where p.seq_id = any($1)', new_name, old.name) using stays;
      end if;
      execute format('alter table auditlog.producer_log detach partition auditlog.%I', old.name);
      execute format('drop table auditlog.%I', old.name);
      if cardinality(stays) > 0 then
        execute format('alter table auditlog.%I rename to %I', new_name, old.name);
        execute format('alter table auditlog.producer_log attach partition auditlog.%I for values from (%s) to (%s)', old.name, old.low, old.high + 1);
      end if;
    exception when lock_not_available then
      return 'BUSY';
    end;
    update auditlog.retention r set dropped = greatest(r.dropped, old.high);
    return old.name;
  end loop;
  return null;
end
$$;

-- A table is rebuilt from producer_log when its key is declared: not from one that has lost its beginning.
create function outbox.refuse_short_rebuild() returns trigger language plpgsql as $$
begin
  if exists (select from inbox.statement s where s.relation = old.id) and exists (
    select from auditlog.retention r
    where r.dropped > 0 and old.met_at < coalesce(
      (select p.received_at from auditlog.producer_log p where p.seq_id > r.dropped order by p.seq_id limit 1), 'infinity')
  ) then
    raise exception 'the first changes of %.% are behind the horizon and cannot be applied again', old.source_schema, old.source_table
      using errcode = 'P0001', hint = 'load the table anew under another name with its key declared, then rename the tables';
  end if;
  return new;
end
$$;
create trigger refuse_short_rebuild before update on outbox.relation
for each row when (old.created and old.key_columns is distinct from new.key_columns) execute function outbox.refuse_short_rebuild();

-- Changes the number of lanes while everything runs (services/jobs/lanes.ts tells how this keeps the order).
-- outcome: OK, SAME (it is that number), BACKLOG (more than `most` changes wait; nothing was done), BUSY (locks not had).
create function outbox.set_lanes(wanted smallint, most integer, rest interval, out outcome text, out was smallint, out waiting integer)
language plpgsql set lock_timeout = '2s' as $$
declare
  lowest bigint;
  next_term bigint;
begin
  select d.lanes into was from outbox.database d;
  waiting := (select count(*) from (select from outbox.event e where e.kind = 'change' limit most + 1) as found);
  outcome := case when was = wanted then 'SAME' when waiting > most then 'BACKLOG' end;
  if outcome is not null then return; end if;

  begin
    -- Intake and acks take a row exclusive lock here before their snapshot: those under way are waited for, and those
    -- that come see the new number. Readers go on.
    lock table outbox.event in share row exclusive mode;
    select d.lanes into was from outbox.database d for update;
    perform 1 from outbox.lane l order by l.lane for update;
  exception when lock_not_available then
    outcome := 'BUSY';
    return;
  end;
  waiting := (select count(*) from (select from outbox.event e where e.kind = 'change' limit most + 1) as found);
  outcome := case when was = wanted then 'SAME' when waiting > most then 'BACKLOG' else 'OK' end;
  if outcome <> 'OK' then return; end if;

  select min(l.floor) filter (where l.kind = 'change'), max(l.term) + 1 into lowest, next_term from outbox.lane l;
  update outbox.event e
  set lane = coalesce((select outbox.lane_of(wanted, p.schema_name, p.table_name, p.row_key) from auditlog.producer_log p where p.seq_id = e.seq_id),
                      e.lane % wanted)
  where e.kind = 'change';
  delete from outbox.lane l where l.kind = 'change' and l.lane >= wanted;
  update outbox.lane l set holder = null, term = next_term, held_until = clock_timestamp() + rest, floor = lowest where l.kind = 'change';
  insert into outbox.lane (lane, term, held_until, floor)
  select n::smallint, next_term, clock_timestamp() + rest, lowest from generate_series(was, wanted - 1) as n;
  update outbox.database set lanes = wanted;
end
$$;

-- After a restore (services/jobs/origin.ts tells why each): another origin, numbers above `past`, nobody's claims.
-- Relations that are posted keep their epoch: the source was not restored, and its TIME still orders their changes.
create function outbox.raise_origin(its_origin smallint, past bigint, out was smallint, out past_now bigint, out settled_up_to bigint, out raised integer)
language plpgsql set lock_timeout = '5s' as $$
begin
  lock table outbox.event in share row exclusive mode;
  select d.origin into was from outbox.database d for update;
  update outbox.database set origin = its_origin;
  with higher as (update outbox.relation r set epoch = r.epoch + 1 where r.capture <> 'posts' returning 1)
  select count(*) into raised from higher;
  past_now := setval('outbox.position', greatest(past, (select s.last_value from outbox.position s)));
  delete from outbox.relay;
  update outbox.lane l set holder = null, term = l.term + 1, held_until = '-infinity', floor = 0;
  -- Floors are 0, so the watermark moves on when the relays have raised them again.
  update auditlog.settled w
  set up_to = least(w.up_to, (select min(e.seq_id) - 1 from outbox.event e where e.kind = 'change' and e.origin is null))
  returning w.up_to into settled_up_to;
  update inbox.position p set term = p.term + 1, holder = 'origin raise', raised_at = clock_timestamp();
  perform auditlog.add_partitions();
end
$$;

-- Autovacuum. Its defaults begin at 20 % dead or new rows: at 100 million that is a vacuum of hours, after which a table is
-- 20 % larger than it was. Small steps, often, keep each of these at its size.

-- An update a change, most of them in the page (HOT), and tombstones that are deleted.
alter table inbox.row_version set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 10000, autovacuum_analyze_scale_factor = 0.05);
-- Only inserts until the horizon deletes. By inserts, so that pages are frozen while they are still in memory.
alter table inbox.applied set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 10000,
                               autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);
alter table outbox.seen set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 10000,
                             autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);
alter table auditlog.publish_log set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 10000,
                                      autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);
-- A dozen rows, each updated with every batch: while a snapshot is held its pages grow, and a threshold of 50 dead rows
-- would begin a vacuum every second.
alter table inbox.position set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
alter table auditlog.settled set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
-- Empty on a good day; after a bad one it has had 100,000 rows with payloads, whose space lies in the toast table.
alter table inbox.parked set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
                              toast.autovacuum_vacuum_scale_factor = 0, toast.autovacuum_vacuum_threshold = 1000);
-- A row per image of a table without a key comes and goes with its changes.
alter table inbox.owed set (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

-- Down Migration

alter table inbox.owed reset (autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold);
alter table inbox.parked reset (autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold,
                                toast.autovacuum_vacuum_scale_factor, toast.autovacuum_vacuum_threshold);
alter table auditlog.settled reset (autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold);
alter table inbox.position reset (autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold);
alter table auditlog.publish_log reset (autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold,
                                        autovacuum_vacuum_insert_scale_factor, autovacuum_analyze_scale_factor);
alter table outbox.seen reset (autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold,
                               autovacuum_vacuum_insert_scale_factor, autovacuum_analyze_scale_factor);
alter table inbox.applied reset (autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold,
                                 autovacuum_vacuum_insert_scale_factor, autovacuum_analyze_scale_factor);
alter table inbox.row_version reset (autovacuum_vacuum_scale_factor, autovacuum_vacuum_threshold, autovacuum_analyze_scale_factor);
drop function outbox.raise_origin(smallint, bigint);
drop function outbox.set_lanes(smallint, integer, interval);
drop trigger refuse_short_rebuild on outbox.relation;
drop function outbox.refuse_short_rebuild();
drop function auditlog.drop_partition(bigint);
drop function auditlog.kept(bigint, bigint);
drop function auditlog.last_before(timestamptz);
drop view auditlog.partition;
drop table auditlog.retention;
