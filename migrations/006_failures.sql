-- Up Migration

-- What goes wrong while changes are applied. Three kinds of failure: the change's own (a refusal, counted as an attempt),
-- its relation's (stopped, its changes queue), and the environment's, of which nothing is written here.

-- True where Postgres refuses the values of a row: all but what is the environment's or the relation's, for a trigger may
-- raise any SQLSTATE. kindOf in services/consumer/failure.ts says the same.
create function inbox.is_refusal(sqlstate text) returns boolean
language sql immutable
return sqlstate = '42804' or left(sqlstate, 2) not in (
  '08', '25', '26', '28', '3D', '40', '53', '57', '58', 'F0', 'XX', -- the environment's
  '0A', '3F', '42', '55'); -- the relation's

create function inbox.waits_behind(its_relation integer, its_key text, its_epoch integer, its_time bigint, its_seq bigint) returns boolean
language sql stable
return exists (
  select from inbox.parked p
  where p.relation = its_relation and p.key = its_key and (p.epoch, p.time, p.seq_id) < (its_epoch, its_time, its_seq)
    and p.reason in ('REFUSED', 'WAITING', 'BEHIND')
);

-- After a change of a parked row had its effect: a full image (`whole`) settles what is older than it; what is newer is
-- tried again now, without an attempt. The caller holds the row's lock.
create function inbox.settle_parked(
  stmt inbox.statement, its_key text, its_epoch integer, its_time bigint, its_seq bigint, whole boolean, again boolean
) returns void language plpgsql volatile as $$
declare
  older inbox.parked;
begin
  if whole then
    for older in
      select * from inbox.parked x
      where x.relation = stmt.relation and x.key = its_key and (x.epoch, x.time, x.seq_id) < (its_epoch, its_time, its_seq)
        and x.reason in ('REFUSED', 'WAITING', 'BEHIND', 'SKIPPED')
      order by x.epoch, x.time, x.seq_id for update
    loop
      perform inbox.supersede(stmt, older);
    end loop;
  end if;
  -- All that is behind it at once, and not again after each of them: for ten thousand that would be 50 million updates.
  if again and exists (
    select from (
      select p.reason, p.retry_at from inbox.parked p
      where p.relation = stmt.relation and p.key = its_key and (p.epoch, p.time, p.seq_id) > (its_epoch, its_time, its_seq)
        and p.reason in ('REFUSED', 'WAITING', 'BEHIND')
      order by p.epoch, p.time, p.seq_id limit 1
    ) next where next.reason <> 'BEHIND' or next.retry_at is null or next.retry_at > clock_timestamp()
  ) then
    update inbox.parked p set reason = 'BEHIND', retry_at = clock_timestamp()
    where p.relation = stmt.relation and p.key = its_key and (p.epoch, p.time, p.seq_id) > (its_epoch, its_time, its_seq)
      and p.reason in ('REFUSED', 'WAITING', 'BEHIND');
  end if;
  update inbox.row_version r
  set parked = exists (select from inbox.parked p where p.relation = stmt.relation and p.key = its_key and p.reason in ('REFUSED', 'WAITING', 'BEHIND', 'SKIPPED'))
  where r.relation = stmt.relation and r.key = its_key;
end
$$;

-- A parked change that a newer image of its row settles. A key change still leaves its old key, or waits there.
create function inbox.supersede(stmt inbox.statement, p inbox.parked) returns void
language plpgsql volatile as $$
begin
  delete from inbox.parked x where x.origin = p.origin and x.seq_id = p.seq_id;
  if p.reason = 'SKIPPED' then return; end if;
  update inbox.applied a set status = 'SUPERSEDED', failure = a.failure || '; settled by a newer image of its row', applied_at = clock_timestamp()
  where a.origin = p.origin and a.seq_id = p.seq_id;
  if p.change ->> '~x' = 'true' then
    perform inbox.leave_old_key(stmt, p);
  end if;
end
$$;

-- The half of a key change that concerns the key it left; the other half needs no more doing. Where another row stands
-- there, the change is parked for it (KEY_SHIFT).
create function inbox.leave_old_key(stmt inbox.statement, p inbox.parked) returns void
language plpgsql volatile as $$
declare
  el record;
begin
  begin
    execute stmt.one into el using json_build_array(p.change);
  exception when data_exception then
    return; -- a key that cannot be read is no row's
  end;
  if el.old_key is null or el.old_key = el.key then return; end if;
  insert into inbox.row_version (relation, key, origin, epoch, time, seq, deleted) values (stmt.relation, el.old_key, 0, 0, 0, 0, true)
  on conflict do nothing;
  perform 1 from inbox.row_version r where r.relation = stmt.relation and r.key = el.old_key for update;
  if inbox.leave(stmt, el.old_key, p.change, p.origin, p.epoch, p.time, p.seq_id) <> 'shifted' then return; end if;
  insert into inbox.parked (origin, seq_id, relation, key, epoch, time, reason, message, attempts, topic, record_key, payload, traceparent)
  select p.origin, p.seq_id, p.relation, el.old_key, p.epoch, p.time, 'KEY_SHIFT', inbox.key_shift(), p.attempts, p.topic, p.record_key, p.payload, p.traceparent;
  update inbox.applied a set status = 'PARKED', failure = 'KEY_SHIFT: ' || inbox.key_shift() where a.origin = p.origin and a.seq_id = p.seq_id;
end
$$;

create function inbox.key_shift() returns text
language sql immutable
return 'the new key is written; at the old key stands a row that is not the before-image';

-- What is parked at a key and leads, image by image, to the one a key change left is the past of the row that moved: it
-- is settled by it. Another row's changes, which moved in (id = id + 1), do not. past: what was settled so before, for
-- what comes later may lie between; returned with what is settled now. images: those the row may still have here.
-- came: it came to this key by a change that was parked until now.
create function inbox.settle_past(
  stmt inbox.statement, its_key text, before jsonb, its_epoch integer, its_time bigint, its_seq bigint, inout past jsonb, out images jsonb[], out came boolean
) language plpgsql volatile as $$
declare
  p record;
  change jsonb;
  image jsonb := before;
  settled boolean := false;
begin
  images := array[before];
  came := false;
  for p in
    select x.epoch, x.time, x.seq_id, true as here, x as entry, x.change::jsonb as change from inbox.parked x
    where x.relation = stmt.relation and x.key = its_key and (x.epoch, x.time, x.seq_id) < (its_epoch, its_time, its_seq)
      and x.reason in ('REFUSED', 'WAITING', 'BEHIND', 'SKIPPED')
    union all
    select (e.change ->> '~e')::integer, (e.change ->> '~t')::bigint, (e.change ->> '~s')::bigint, false, null, e.change from jsonb_array_elements(past) as e(change)
    order by 1 desc, 2 desc, 3 desc
  loop
    change := p.change;
    if change is null or change ->> '~op' = 'DELETE'
       or not image @> (select coalesce(jsonb_object_agg(c.name, c.value), '{}') from jsonb_each(change) as c(name, value) where not starts_with(c.name, '~')) then
      exit when p.here;
      continue;
    end if;
    if p.here then
      perform inbox.supersede(stmt, p.entry);
      past := past || jsonb_build_array(change);
      settled := true;
    end if;
    if change ->> '~op' = 'INSERT' or change -> '~x' is not null then
      came := p.here;
      exit;
    end if;
    image := image || (change -> '~b');
    images := images || image;
  end loop;
  if settled then
    perform inbox.settle_parked(stmt, its_key, its_epoch, its_time, its_seq, false, true);
  end if;
end
$$;

-- What is kept of an element beside its record; see inbox.parked.
create function inbox.kept_change(change json, moves boolean, record text) returns json
language sql immutable
return case when moves or octet_length(record) <= 1000000 then (change::jsonb - '{~p,~k,~r,~w,~n,~y,~q}'::text[])::json end;

-- Parks one change, or brings the entry of one that failed again up to date. its_key null: it holds up no row.
-- course: {"max_retries", "backoff_ms", "error_topic", "recipients": [...]}, read only for a refusal.
-- The element of a change that is tried again carries "~w"; any other that has an outcome already keeps it.
create function inbox.set_aside(
  stmt inbox.statement, change json, its_key text, its_reason text, its_sqlstate text, why text, its_partition integer, course jsonb
) returns void language plpgsql volatile as $$
declare
  c record;
  was inbox.parked;
  the_reason text := its_reason;
  outcome text := 'PARKED';
  n integer;
  waited integer;
  again timestamptz;
begin
  select * into c from json_to_record(change) as x("~o" smallint, "~s" bigint, "~e" integer, "~t" bigint, "~f" bigint, "~x" boolean,
    "~p" text, "~k" text, "~r" text, "~w" boolean, "~n" integer);
  if c."~w" is null and exists (select from inbox.applied a where a.origin = c."~o" and a.seq_id = c."~s") then return; end if;
  select * into was from inbox.parked p where p.origin = c."~o" and p.seq_id = c."~s";
  -- A record may be a later attempt of its publishing: here it is the first all the same.
  n := case when found then coalesce(c."~n", was.attempts) else 0 end;
  waited := coalesce(was.waits, 0);
  if its_reason = 'REFUSED' and (select r.on_refusal from outbox.relation r where r.id = stmt.relation) = 'skip' then
    the_reason := 'SKIPPED';
    outcome := 'SKIPPED';
  elsif its_reason = 'REFUSED' and n >= (course ->> 'max_retries')::integer then
    outcome := 'FAILED';
  elsif its_reason = 'REFUSED' then
    outcome := 'RETRYING';
    again := clock_timestamp() + (course ->> 'backoff_ms')::integer * 2 ^ least(n, 20) * interval '1 ms';
  elsif its_reason = 'WAITING' then
    waited := waited + 1;
    again := clock_timestamp() + least(30000, 125 * 2 ^ least(waited, 20)) * interval '1 ms';
  end if;

  insert into inbox.applied as a (origin, seq_id, status, attempt, statement, partition, "offset", failure)
  values (c."~o", c."~s", outcome, n, stmt.id, its_partition, c."~f", the_reason || coalesce(' ' || its_sqlstate, '') || ': ' || why)
  on conflict (origin, seq_id) do update
  set status = excluded.status, attempt = excluded.attempt, statement = excluded.statement, failure = excluded.failure, applied_at = clock_timestamp();
  insert into inbox.parked (origin, seq_id, relation, key, epoch, time, reason, sqlstate, message, attempts, waits, retry_at,
    topic, record_key, payload, traceparent, change)
  values (c."~o", c."~s", stmt.relation, its_key, c."~e", c."~t", the_reason, its_sqlstate, why,
          n, waited, again, stmt.topicname, c."~k", c."~p", c."~r",
          case when its_key is not null and its_reason <> 'KEY_SHIFT' then inbox.kept_change(change, c."~x", c."~p") end)
  on conflict (origin, seq_id) do update
  set key = excluded.key, change = excluded.change, reason = excluded.reason, sqlstate = excluded.sqlstate, message = excluded.message,
      attempts = excluded.attempts, waits = excluded.waits, retry_at = excluded.retry_at;
  if its_key is not null and the_reason in ('REFUSED', 'WAITING', 'BEHIND', 'SKIPPED') then
    update inbox.row_version r set parked = true where r.relation = stmt.relation and r.key = its_key and not r.parked;
  end if;
  if the_reason = 'SKIPPED' and its_key is not null then
    perform inbox.settle_parked(stmt, its_key, c."~e", c."~t", c."~s", false, true);
  end if;
  if outcome = 'FAILED' and was.told_at is null then
    update inbox.parked p set told_at = clock_timestamp() where p.origin = c."~o" and p.seq_id = c."~s";
    perform inbox.tell_failures(array[c."~o"], array[c."~s"], course);
  end if;
end
$$;

-- Records for the error topic: each the payload as it was published, with recipients and error in front.
create function inbox.tell_failures(origins smallint[], seq_ids bigint[], course jsonb) returns void
language sql volatile
begin atomic
  insert into outbox.event (lane, position, seq_id, attempt, kind, bytes, origin, topic, head)
  select outbox.side_lane('error', p.seq_id), nextval('outbox.position'), p.seq_id, p.attempts, 'error', octet_length(p.payload) + octet_length(h.head),
         nullif(p.origin, d.origin), course ->> 'error_topic', h.head
  from unnest(origins, seq_ids) as f(origin, seq_id) join inbox.parked p on p.origin = f.origin and p.seq_id = f.seq_id cross join outbox.database d
  cross join lateral (select '"recipients":' || (course -> 'recipients')::text || ',"error":' || json_build_object(
    'code', p.reason, 'message', p.message, 'sqlstate', p.sqlstate, 'side', 'deploy', 'attempts', p.attempts)::text as head) h;
end;

-- One element of what is taken singly, with the members that say what it is.
create type inbox.item as (
  change json, i text, o smallint, s bigint, e integer, t bigint, x boolean, again boolean, n integer, was text, q json, op text
);

-- "~p" record, "~k" its key, "~r" traceparent. "~w" tried again: it counts only where it is parked for the reason "~y", or as
-- attempt "~n". "~q" {sqlstate, message}: refused before Postgres saw it. One parse for all: a change may have 100 MB.
create function inbox.items(changes json) returns setof inbox.item
language sql stable
begin atomic
  select e.change, m."~i"::text, m."~o", m."~s", m."~e", m."~t", coalesce(m."~x", false), coalesce(m."~w", false), m."~n", m."~y", m."~q", m."~op"
  from json_array_elements(changes) as e(change)
  cross join lateral json_to_record(e.change) as m("~i" integer, "~o" smallint, "~s" bigint, "~e" integer, "~t" bigint, "~x" boolean, "~w" boolean, "~n" integer,
    "~y" text, "~q" json, "~op" text)
  order by m."~e", m."~t", m."~s", m."~i";
end;

-- Parks at once the changes of which it is known that they are refused ("~q"): those that come for the first time, alone of their row
-- in this document, newer than what it has, and with nothing of it parked. Returns which; the others are taken one by one.
create function inbox.park_refused(stmt inbox.statement, changes json, key_of jsonb, its_partition integer, course jsonb) returns text[]
language plpgsql volatile as $$
declare
  failed constant boolean := (course ->> 'max_retries')::integer = 0;
  parked_ones text[];
begin
  if (select r.on_refusal from outbox.relation r where r.id = stmt.relation) = 'skip' then return '{}'; end if;
  with c as materialized (
    select m.*, e.change, key_of ->> m."~i"::text as key
    from json_array_elements(changes) as e(change)
    cross join lateral json_to_record(e.change) as m("~i" integer, "~o" smallint, "~s" bigint, "~e" integer, "~t" bigint, "~f" bigint, "~x" boolean,
      "~p" text, "~k" text, "~r" text, "~w" boolean, "~q" json)
  ), plain as (
    select c.*, c."~q" ->> 'sqlstate' as state, c."~q" ->> 'message' as why
    from c join inbox.row_version r on r.relation = stmt.relation and r.key = c.key
    where c."~q" is not null and c."~w" is null and not r.parked and (c."~e", c."~t", c."~s") > (r.epoch, r.time, r.seq)
      and (select count(*) from c others where others.key = c.key) = 1
      and not exists (select from inbox.applied a where a.origin = c."~o" and a.seq_id = c."~s")
  ), logged as (
    insert into inbox.applied (origin, seq_id, status, statement, partition, "offset", failure)
    select p."~o", p."~s", case when failed then 'FAILED' else 'RETRYING' end, stmt.id, its_partition, p."~f", 'REFUSED ' || p.state || ': ' || p.why from plain p
    on conflict do nothing
  ), kept as (
    insert into inbox.parked (origin, seq_id, relation, key, epoch, time, reason, sqlstate, message, retry_at, told_at, topic, record_key, payload, traceparent, change)
    select p."~o", p."~s", stmt.relation, p.key, p."~e", p."~t", 'REFUSED', p.state, p.why,
      case when not failed then clock_timestamp() + (course ->> 'backoff_ms')::integer * interval '1 ms' end, case when failed then clock_timestamp() end,
      stmt.topicname, p."~k", p."~p", p."~r", inbox.kept_change(p.change, p."~x", p."~p")
    from plain p
    on conflict do nothing
  ), flagged as (
    update inbox.row_version r set parked = true from plain p where r.relation = stmt.relation and r.key = p.key
  )
  select coalesce(array_agg(p."~i"::text), '{}') into parked_ones from plain p;
  if failed then
    perform inbox.tell_failures(array_agg(i.o), array_agg(i.s), course) from inbox.items(changes) i where i.i = any(parked_ones);
  end if;
  return parked_ones;
end
$$;

-- Changes one by one, each in a block that takes back what it did when Postgres refuses it; then it is parked. Called with
-- some hundreds at most: beyond 64 open subtransactions the cache of a backend overflows, and all look-ups get slower.
create function inbox.apply_each(stmt inbox.statement, changes json, its_partition integer, course jsonb) returns void
language plpgsql volatile as $$
declare
  item inbox.item;
  el record;
  keys text[] := '{}';
  key_of jsonb := '{}';
  parked_ones text[] := '{}';
  state text;
  why text;
begin
  set constraints all immediate; -- or a deferred one is checked at the end, and takes all of them back
  if stmt.keyed then
    begin
      execute 'select array_agg(one.key) || array_agg(one.old_key), jsonb_object_agg(one.i, one.key) from (' || stmt.one || ') as one'
        into keys, key_of using changes;
    exception when others then
      if not inbox.is_refusal(sqlstate) then raise; end if;
      keys := '{}';
      key_of := '{}';
      for item in select * from inbox.items(changes) loop
        begin
          execute stmt.one into el using json_build_array(item.change);
          keys := keys || array[el.key, el.old_key];
          key_of := key_of || jsonb_build_object(item.i, el.key);
        exception when others then
          get stacked diagnostics state = returned_sqlstate, why = message_text;
          if not inbox.is_refusal(state) then raise; end if;
          perform inbox.set_aside(stmt, item.change, null, 'REFUSED', state, why, its_partition, course);
        end;
      end loop;
    end;
    -- The key's type may have changed since a change was parked.
    keys := array_remove(keys, null) || array(select p.key from inbox.items(changes) i join inbox.parked p on p.origin = i.o and p.seq_id = i.s
                                              where i.again and p.key is not null);
    insert into inbox.row_version (relation, key, origin, epoch, time, seq, deleted)
    select stmt.relation, k.key, 0, 0, 0, 0, true from (select distinct key from unnest(keys) as key order by key) k
    on conflict do nothing;
    perform 1 from inbox.row_version r where r.relation = stmt.relation and r.key = any(keys) order by r.key for update;
    if strpos(changes::text, '"~q":') > 0 then
      parked_ones := inbox.park_refused(stmt, changes, key_of, its_partition, course);
    end if;
  end if;
  for item in select * from inbox.items(changes) loop
    continue when stmt.keyed and (not key_of ? item.i or item.i = any(parked_ones));
    perform inbox.apply_item(stmt, item, key_of ->> item.i, its_partition, course);
  end loop;
end
$$;

create function inbox.apply_item(stmt inbox.statement, item inbox.item, its_key text, its_partition integer, course jsonb) returns void
language plpgsql volatile as $$
declare
  was inbox.parked;
  state text;
  why text;
  lacking text;
  its_schema text;
  its_table text;
begin
  if item.again then
    select * into was from inbox.parked p
    where p.origin = item.o and p.seq_id = item.s
      and case when item.n is null then p.reason = item.was
               else p.reason = 'REFUSED' and p.attempts + 1 = item.n and item.n <= (course ->> 'max_retries')::integer end
    for update;
    -- One that nobody parked or applied is the first to come: its publishing was retried, not its apply.
    if not found and exists (select from inbox.applied a where a.origin = item.o and a.seq_id = item.s) then return; end if;
  end if;
  begin
    if was.seq_id is not null then
      perform inbox.take_out(stmt, item, was, its_key, its_partition);
    else
      perform inbox.apply_item_once(stmt, item, its_partition);
    end if;
  exception when others or assert_failure then
    get stacked diagnostics state = returned_sqlstate, why = message_text, lacking = column_name, its_schema = schema_name, its_table = table_name;
    if not inbox.is_refusal(state) then raise; end if;
    if state = '23502' and item.op = 'INSERT' and its_schema = stmt.schema_name and its_table = stmt.table_name
       and not exists (select from outbox.relation r where r.id = stmt.relation and lacking = any(r.columns)) then
      raise exception using errcode = 'object_not_in_prerequisite_state', message = format('column %s is NOT NULL without a default, and the source never sends it', lacking),
        column = lacking, table = its_table, schema = its_schema;
    end if;
    perform inbox.refuse(stmt, item, its_key, state, why, its_partition, course);
  end;
end
$$;

create function inbox.apply_item_once(stmt inbox.statement, item inbox.item, its_partition integer) returns void
language plpgsql volatile as $$
begin
  if item.q is not null then
    raise exception using errcode = item.q ->> 'sqlstate', message = item.q ->> 'message';
  elsif stmt.keyed then
    perform inbox.apply_one(stmt, item.change, its_partition, true);
  else
    perform inbox.apply_counts(stmt, json_build_array(item.change), its_partition);
  end if;
end
$$;

-- Applies a change that is parked as if it came now, and takes its entry out unless it has to wait again: until then the
-- entry keeps what is known of its attempts.
create function inbox.take_out(stmt inbox.statement, item inbox.item, was inbox.parked, its_key text, its_partition integer) returns void
language plpgsql volatile as $$
declare
  place record;
  outcome text;
begin
  -- Under this name it holds up nothing, and is nobody's past, while it is tried.
  update inbox.parked p set reason = 'TAKEN' where p.origin = item.o and p.seq_id = item.s;
  delete from inbox.applied a where a.origin = item.o and a.seq_id = item.s returning a.partition, a."offset" into place;
  perform inbox.apply_item_once(stmt, item, its_partition);
  update inbox.applied a set partition = coalesce(place.partition, a.partition), "offset" = coalesce(place."offset", a."offset"),
    attempt = case when a.status in ('APPLIED', 'SUPERSEDED') then coalesce(item.n, was.attempts) else a.attempt end
  where a.origin = item.o and a.seq_id = item.s returning a.status into outcome;
  if outcome in ('APPLIED', 'SUPERSEDED') then
    delete from inbox.parked p where p.origin = item.o and p.seq_id = item.s;
  end if;
  perform inbox.settle_parked(stmt, k.key, was.epoch, was.time, was.seq_id, false,
    not exists (select from inbox.parked p where p.origin = item.o and p.seq_id = item.s and p.reason = 'BEHIND'))
  from (select distinct key from unnest(array[its_key, was.key]) as key where key is not null order by key) k;
end
$$;

-- What a refused change comes to: an older one than its row has had, in all of its columns, needs no repair; one that only waits for a row of
-- another table, or for a value to become free, uses up no attempt.
create function inbox.refuse(stmt inbox.statement, item inbox.item, its_key text, state text, why text, its_partition integer, course jsonb)
returns void language plpgsql volatile as $$
declare
  p inbox.parked;
  old constant boolean := its_key is not null and exists (
    select from inbox.row_version r where r.relation = stmt.relation and r.key = its_key and r.behind is null
      and (r.epoch, r.time, r.seq) > (item.e, item.t, item.s)
  );
begin
  perform inbox.set_aside(stmt, item.change, its_key,
    case when old then 'SUPERSEDED' when state in ('23503', '23505', '23P01') then 'WAITING' else 'REFUSED' end, state, why, its_partition, course);
  if not old then return; end if;
  select * into p from inbox.parked x where x.origin = item.o and x.seq_id = item.s and x.reason = 'SUPERSEDED';
  if not found then return; end if;
  perform inbox.supersede(stmt, p);
  perform inbox.settle_parked(stmt, its_key, item.e, item.t, item.s, false, true);
end
$$;

-- As inbox.apply, one change at a time: for changes that Postgres refused, that are retried, or whose row is parked.
create function inbox.apply_singly(
  its_group text, its_topic text, its_partition integer, its_term bigint, statement_id integer, changes json, course jsonb,
  its_next bigint, its_last bigint, its_last_origin smallint, its_last_seq_id bigint
) returns text language plpgsql volatile
set plan_cache_mode = 'force_generic_plan' set enable_seqscan = 'off' set timezone = 'UTC' set datestyle = 'ISO, MDY'
set intervalstyle = 'postgres' set bytea_output = 'hex' as $$
declare
  stmt inbox.statement;
begin
  if not inbox.holds(its_group, its_topic, its_partition, its_term) then return 'FENCED'; end if;
  select s.* into stmt from inbox.statement s where s.id = statement_id;
  if not inbox.is_current(stmt) then return 'STALE'; end if;
  perform inbox.apply_each(stmt, changes, its_partition, course);
  perform inbox.move_position(its_group, its_topic, its_partition, its_next, its_last, its_last_origin, its_last_seq_id);
  return 'OK';
end
$$;

-- Parks changes that must not be applied as they are: "~reason", "~message" (a TIME in the future, a key that is not there).
-- A retry of one that is parked already ("~n") ends with that.
create function inbox.park(
  its_group text, its_topic text, its_partition integer, its_term bigint, statement_id integer, changes json
) returns text language plpgsql volatile as $$
declare
  stmt inbox.statement;
begin
  if not inbox.holds(its_group, its_topic, its_partition, its_term) then return 'FENCED'; end if;
  select s.* into stmt from inbox.statement s where s.id = statement_id;
  if not inbox.is_current(stmt) then return 'STALE'; end if;
  perform inbox.park_all(stmt, changes, its_partition);
  with noted as (
    update inbox.parked p set reason = c."~reason", message = c."~message", sqlstate = null
    from json_to_recordset(changes) as c("~o" smallint, "~s" bigint, "~n" integer, "~reason" text, "~message" text)
    where p.origin = c."~o" and p.seq_id = c."~s" and p.reason = 'REFUSED' and p.attempts + 1 = c."~n"
    returning p.origin, p.seq_id, p.reason, p.message
  )
  update inbox.applied a set status = 'PARKED', failure = n.reason || ': ' || n.message from noted n where a.origin = n.origin and a.seq_id = n.seq_id;
  return 'OK';
end
$$;

create function inbox.park_all(stmt inbox.statement, changes json, its_partition integer) returns void
language sql volatile
begin atomic
  with c as (
    select distinct on (x."~o", x."~s") x.* from json_to_recordset(changes) as x("~o" smallint, "~s" bigint, "~e" integer, "~t" bigint,
      "~f" bigint, "~p" text, "~k" text, "~r" text, "~reason" text, "~message" text)
  ), logged as (
    insert into inbox.applied (origin, seq_id, status, statement, partition, "offset", failure)
    select c."~o", c."~s", 'PARKED', (stmt).id, its_partition, c."~f", c."~reason" || ': ' || c."~message" from c
    on conflict do nothing
    returning origin, seq_id
  )
  insert into inbox.parked (origin, seq_id, relation, epoch, time, reason, message, topic, record_key, payload, traceparent)
  select c."~o", c."~s", (stmt).relation, c."~e", c."~t", c."~reason", c."~message", (stmt).topicname, c."~k", c."~p", c."~r"
  from c join logged l on l.origin = c."~o" and l.seq_id = c."~s"
  on conflict do nothing;
end;

-- The statement that outcomes without one refer to.
create function inbox.no_statement(its_relation integer, its_topic text, its_destination text) returns integer
language sql volatile
begin atomic
  insert into inbox.statement as s (relation, revision, topicname, destination, schema_name, table_name, keyed, consumer_query, guard, leave)
  select r.id, 0, its_topic, its_destination, r.target_schema, r.target_table, false, '', '', '' from outbox.relation r where r.id = its_relation
  on conflict (relation, revision, topicname, md5(consumer_query), md5(guard)) do update set leave = ''
  returning s.id;
end;

-- Stops a relation (`why`; null: it is stopped already) and parks what arrived for it, until inbox.resume.
-- STALE: it is not stopped any more, or its queue is closed for a moment, to be emptied. The lock keeps inbox.resume from
-- missing what is parked here.
-- Retries are put off instead, without an attempt.
create function inbox.stop(
  its_group text, its_topic text, its_partition integer, its_term bigint, its_relation integer, its_destination text, why text, changes json,
  its_next bigint, its_last bigint, its_last_origin smallint, its_last_seq_id bigint
) returns text language plpgsql volatile as $$
declare
  stmt inbox.statement;
  statement_id integer;
begin
  if not inbox.holds(its_group, its_topic, its_partition, its_term) then return 'FENCED'; end if;
  perform pg_advisory_xact_lock_shared(7161, its_relation);
  if why is not null then
    update outbox.relation r set state = 'STOPPED', stop_reason = why, stopped_by = 'failure', stopped_at = clock_timestamp()
    where r.id = its_relation and r.state = 'ACTIVE';
  elsif exists (select from outbox.relation r where r.id = its_relation and r.state = 'ACTIVE') then
    return 'STALE';
  end if;
  if exists (select from outbox.relation r where r.id = its_relation and r.queue_closed_until > clock_timestamp()) then
    return 'STALE';
  end if;
  statement_id := inbox.no_statement(its_relation, its_topic, its_destination);
  select s.* into stmt from inbox.statement s where s.id = statement_id; -- a statement of its own, or its snapshot is too old
  update inbox.parked p set retry_at = clock_timestamp() + interval '5 s'
  from json_to_recordset(changes) as c("~o" smallint, "~s" bigint, "~n" integer)
  where c."~n" is not null and p.origin = c."~o" and p.seq_id = c."~s" and p.reason = 'REFUSED' and p.attempts + 1 = c."~n";
  perform inbox.park_all(stmt, changes, its_partition);
  perform inbox.move_position(its_group, its_topic, its_partition, its_next, its_last, its_last_origin, its_last_seq_id);
  return 'OK';
end
$$;

-- Takes nothing more into the queue of a stopped relation for 10 s, so that its end can be reached while changes stream in;
-- their partitions wait. False where it is not stopped, or by somebody else.
create function inbox.close_queue(its_relation integer, by text) returns boolean
language plpgsql volatile set lock_timeout = '2s' as $$
begin
  perform pg_advisory_xact_lock(7161, its_relation);
  update outbox.relation r set queue_closed_until = clock_timestamp() + interval '10 s'
  where r.id = its_relation and r.state = 'STOPPED' and r.stopped_by = by;
  return found;
end
$$;

-- Makes the relation active again if nothing of it is queued any more; false where something is. null: it is not stopped,
-- or somebody else stopped it meanwhile, whose stop must not be lost. A short lock_timeout: consumers wait behind this lock.
create function inbox.resume(its_relation integer, by text) returns boolean
language plpgsql volatile set lock_timeout = '2s' as $$
begin
  perform pg_advisory_xact_lock(7161, its_relation);
  perform 1 from outbox.relation r where r.id = its_relation and r.state = 'STOPPED' and r.stopped_by = by for update;
  if not found then return null; end if;
  if exists (select from inbox.parked p where p.relation = its_relation and p.reason = 'RELATION_STOPPED') then return false; end if;
  update outbox.relation r set state = 'ACTIVE', stop_reason = null, stopped_by = null, stopped_at = null, queue_closed_until = null where r.id = its_relation;
  return true;
end
$$;

-- Applies changes that are parked, as if they arrived now: all at once where they can be, or one by one. What is not parked
-- any more for the reason it was read with ("~y") is left alone. its_state: STOPPED while a relation's queue is taken up.
create function inbox.take_up(statement_id integer, changes json, its_partition integer, its_state text, singly boolean, course jsonb)
returns text language plpgsql volatile
set plan_cache_mode = 'force_generic_plan' set enable_seqscan = 'off' set timezone = 'UTC' set datestyle = 'ISO, MDY'
set intervalstyle = 'postgres' set bytea_output = 'hex' as $$
declare
  stmt inbox.statement;
  left_over integer[];
  single json;
begin
  select s.* into stmt from inbox.statement s where s.id = statement_id;
  if not inbox.is_current(stmt, its_state) then return 'STALE'; end if;
  if singly or not inbox.is_plain_queue(changes) then
    perform inbox.apply_each(stmt, changes, its_partition, course);
    return 'OK';
  end if;

  delete from inbox.applied a using inbox.items(changes) i where a.origin = i.o and a.seq_id = i.s;
  if stmt.keyed then
    select r.held into left_over from inbox.apply_rows(stmt, changes, its_partition) as r;
    if left_over is not null then
      select json_agg(i.change order by i.e, i.t, i.s) into single from inbox.items(changes) i where i.i::integer = any(left_over);
      perform inbox.apply_each(stmt, single, its_partition, course);
    end if;
  else
    perform inbox.apply_counts(stmt, changes, its_partition);
  end if;
  delete from inbox.parked p using inbox.items(changes) i join inbox.applied a on a.origin = i.o and a.seq_id = i.s
  where p.origin = i.o and p.seq_id = i.s and a.status in ('APPLIED', 'SUPERSEDED');
  return 'OK';
end
$$;

-- True where all are parked as they were read, hold up no row, and were never tried: a queue that may be taken up as one.
create function inbox.is_plain_queue(changes json) returns boolean
language plpgsql volatile as $$
declare
  there bigint;
begin
  select count(*) into there from (
    select from inbox.items(changes) i join inbox.parked p on p.origin = i.o and p.seq_id = i.s and p.reason = i.was
    where p.key is null and p.attempts = 0 for update of p
  ) as locked;
  return there = json_array_length(changes);
end
$$;

-- Puts the retries that are due into the outbox; the change itself stays parked until the consumer has tried it.
create function inbox.publish_due(most integer) returns integer
language plpgsql volatile as $$
declare
  published integer;
begin
  if not exists (select from inbox.parked p where p.retry_at <= clock_timestamp()) then return 0; end if;
  with due as (
    select p.origin, p.seq_id from inbox.parked p
    where p.retry_at <= clock_timestamp() and p.reason = 'REFUSED' order by p.retry_at limit most for update skip locked
  ), taken as (
    update inbox.parked p set retry_at = null from due where p.origin = due.origin and p.seq_id = due.seq_id
    returning p.origin, p.seq_id, p.attempts, octet_length(p.payload) as bytes
  )
  insert into outbox.event (lane, position, seq_id, attempt, kind, bytes, origin)
  select outbox.side_lane('retry', t.seq_id), nextval('outbox.position'), t.seq_id, t.attempts + 1, 'retry', t.bytes, nullif(t.origin, d.origin)
  from (select pg_current_xact_id()) x cross join taken t cross join outbox.database d;
  get diagnostics published = row_count;
  return published;
end
$$;

-- Down Migration

drop function inbox.publish_due(integer);
drop function inbox.take_up(integer, json, integer, text, boolean, jsonb);
drop function inbox.is_plain_queue(json);
drop function inbox.resume(integer, text);
drop function inbox.close_queue(integer, text);
drop function inbox.stop(text, text, integer, bigint, integer, text, text, json, bigint, bigint, smallint, bigint);
drop function inbox.no_statement(integer, text, text);
drop function inbox.park(text, text, integer, bigint, integer, json);
drop function inbox.park_all(inbox.statement, json, integer);
drop function inbox.apply_singly(text, text, integer, bigint, integer, json, jsonb, bigint, bigint, smallint, bigint);
drop function inbox.refuse(inbox.statement, inbox.item, text, text, text, integer, jsonb);
drop function inbox.take_out(inbox.statement, inbox.item, inbox.parked, text, integer);
drop function inbox.apply_item_once(inbox.statement, inbox.item, integer);
drop function inbox.apply_item(inbox.statement, inbox.item, text, integer, jsonb);
drop function inbox.apply_each(inbox.statement, json, integer, jsonb);
drop function inbox.park_refused(inbox.statement, json, jsonb, integer, jsonb);
drop function inbox.items(json);
drop type inbox.item;
drop function inbox.tell_failures(smallint[], bigint[], jsonb);
drop function inbox.set_aside(inbox.statement, json, text, text, text, text, integer, jsonb);
drop function inbox.kept_change(json, boolean, text);
drop function inbox.settle_past(inbox.statement, text, jsonb, integer, bigint, bigint, jsonb);
drop function inbox.key_shift();
drop function inbox.leave_old_key(inbox.statement, inbox.parked);
drop function inbox.supersede(inbox.statement, inbox.parked);
drop function inbox.settle_parked(inbox.statement, text, integer, bigint, bigint, boolean, boolean);
drop function inbox.waits_behind(integer, text, integer, bigint, bigint);
drop function inbox.is_refusal(text);
