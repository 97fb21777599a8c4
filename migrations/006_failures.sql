-- Up Migration

-- What goes wrong while changes are applied. Three kinds of failure: the change's own (a refusal, counted as an attempt),
-- its relation's (stopped, its changes queue), and the environment's, of which nothing is written here.

-- True for what Postgres says about the values of a row; plpgsql's "when" knows no class without its two digits.
create function inbox.is_refusal(sqlstate text) returns boolean
language sql immutable
return left(sqlstate, 2) in ('22', '23', '44', '54', 'P0') or sqlstate = '42804';

-- Reasons whose changes hold up later partial images of their row; SKIPPED ones are only remembered.
create function inbox.is_parked(its_relation integer, its_key text) returns boolean
language sql stable
return exists (select from inbox.row_version r where r.relation = its_relation and r.key = its_key and r.parked);

create function inbox.waits_behind(its_relation integer, its_key text, its_epoch integer, its_time bigint, its_seq bigint) returns boolean
language sql stable
return exists (
  select from inbox.parked p
  where p.relation = its_relation and p.key = its_key and (p.epoch, p.time, p.seq_id) < (its_epoch, its_time, its_seq)
    and p.reason in ('REFUSED', 'WAITING', 'BEHIND')
);

-- After a change of a parked row had its effect: a full image (`whole`) settles what is older than it; what is newer is
-- tried again now, without an attempt. Returns how many older ones there were. The caller holds the row's lock.
create function inbox.settle_parked(
  stmt inbox.statement, its_key text, its_epoch integer, its_time bigint, its_seq bigint, whole boolean, again boolean
) returns integer language plpgsql volatile as $$
declare
  settled integer := 0;
  gone inbox.parked;
begin
  if whole then
    for gone in
      delete from inbox.parked p
      where p.relation = stmt.relation and p.key = its_key and (p.epoch, p.time, p.seq_id) < (its_epoch, its_time, its_seq)
        and p.reason in ('REFUSED', 'WAITING', 'BEHIND', 'SKIPPED')
      returning *
    loop
      settled := settled + 1;
      continue when gone.reason = 'SKIPPED';
      update inbox.applied a set status = 'SUPERSEDED', failure = a.failure || '; settled by a newer image of its row', applied_at = clock_timestamp()
      where a.origin = gone.origin and a.seq_id = gone.seq_id;
      if gone.moved is not null then
        perform inbox.leave_old_key(stmt, gone.moved);
      end if;
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
  return settled;
end
$$;

-- The half of a key change that concerns the key it left; the other half needs no more doing.
create function inbox.leave_old_key(stmt inbox.statement, change json) returns void
language plpgsql volatile as $$
declare
  el record;
begin
  execute stmt.one into el using json_build_array(change);
  if el.old_key is null or el.old_key = el.key then return; end if;
  insert into inbox.row_version (relation, key, origin, epoch, time, seq, deleted) values (stmt.relation, el.old_key, 0, 0, 0, 0, true)
  on conflict do nothing;
  perform 1 from inbox.row_version r where r.relation = stmt.relation and r.key = el.old_key for update;
  perform inbox.leave(stmt, el.old_key, change, el.o, el.e, el.t, el.s);
end
$$;

-- Parks one change, or brings the entry of one that failed again up to date. its_key null: it holds up no row.
-- course: {"max_retries", "backoff_ms", "error_topic", "recipients": [...]}, read only for a refusal.
-- The element of a change that is tried again carries "~w"; any other that has an outcome already keeps it.
create function inbox.set_aside(
  stmt inbox.statement, change json, its_key text, its_reason text, its_sqlstate text, why text, its_partition integer, course jsonb
) returns void language plpgsql volatile as $$
declare
  its_origin constant smallint := (change ->> '~o')::smallint;
  its_seq_id constant bigint := (change ->> '~s')::bigint;
  was inbox.parked;
  was_status text;
  the_reason text := its_reason;
  outcome text := 'PARKED';
  n integer;
  waited integer;
  again timestamptz;
begin
  select a.status into was_status from inbox.applied a where a.origin = its_origin and a.seq_id = its_seq_id;
  if found and change ->> '~w' is null then return; end if;
  select * into was from inbox.parked p where p.origin = its_origin and p.seq_id = its_seq_id;
  -- Tried again by somebody else meanwhile, or this is not its next attempt.
  if was_status is not null and (not found or (change ->> '~n' is not null and (was.reason <> 'REFUSED' or was.attempts + 1 <> (change ->> '~n')::integer))) then
    return;
  end if;
  -- A record may be a later attempt of its publishing: here it is the first all the same.
  n := case when found then coalesce((change ->> '~n')::integer, was.attempts) else 0 end;
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
  values (its_origin, its_seq_id, outcome, n, stmt.id, its_partition, (change ->> '~f')::bigint,
          the_reason || coalesce(' ' || its_sqlstate, '') || ': ' || why)
  on conflict (origin, seq_id) do update
  set status = excluded.status, attempt = excluded.attempt, statement = excluded.statement, failure = excluded.failure, applied_at = clock_timestamp();
  insert into inbox.parked (origin, seq_id, relation, key, epoch, time, reason, sqlstate, message, attempts, waits, retry_at,
    topic, record_key, payload, traceparent, moved)
  values (its_origin, its_seq_id, stmt.relation, its_key, (change ->> '~e')::integer, (change ->> '~t')::bigint, the_reason, its_sqlstate, why,
          n, waited, again, stmt.topicname, change ->> '~k', change ->> '~p', change ->> '~r',
          case when change ->> '~x' = 'true' and its_reason <> 'KEY_SHIFT' then (change::jsonb - '~p')::json end)
  on conflict (origin, seq_id) do update
  set key = excluded.key, moved = excluded.moved, reason = excluded.reason, sqlstate = excluded.sqlstate, message = excluded.message, attempts = excluded.attempts,
      waits = excluded.waits, retry_at = excluded.retry_at;
  if its_key is not null and the_reason in ('REFUSED', 'WAITING', 'BEHIND', 'SKIPPED') then
    update inbox.row_version r set parked = true where r.relation = stmt.relation and r.key = its_key and not r.parked;
  end if;
  if outcome = 'FAILED' and was_status is distinct from 'FAILED' then
    perform inbox.tell_failure(its_origin, its_seq_id, course);
  end if;
end
$$;

-- The record for the error topic: the payload as it was published, with recipients and error in front.
create function inbox.tell_failure(its_origin smallint, its_seq_id bigint, course jsonb) returns void
language sql volatile
begin atomic
  insert into outbox.event (lane, position, seq_id, attempt, kind, bytes, origin, topic, head)
  select outbox.side_lane('error', p.seq_id), nextval('outbox.position'), p.seq_id, p.attempts, 'error', octet_length(p.payload) + octet_length(h.head),
         nullif(p.origin, d.origin), course ->> 'error_topic', h.head
  from inbox.parked p cross join outbox.database d
  cross join lateral (select '"recipients":' || (course -> 'recipients')::text || ',"error":' || json_build_object(
    'code', p.reason, 'message', p.message, 'sqlstate', p.sqlstate, 'side', 'deploy', 'attempts', p.attempts)::text as head) h
  where p.origin = its_origin and p.seq_id = its_seq_id;
end;

-- Changes one by one, each in a block that takes back what it did when Postgres refuses it; then it is parked. Called with
-- some hundreds at most: beyond 64 open subtransactions the cache of a backend overflows, and all look-ups get slower.
-- "~p" record, "~k" its key, "~r" traceparent; "~n" attempt of a retry; "~w" tried again, so it must still be parked;
-- "~q" {sqlstate, message}: refused before Postgres saw it.
create function inbox.apply_each(stmt inbox.statement, changes json, its_partition integer, course jsonb) returns void
language plpgsql volatile as $$
declare
  item record;
  el record;
  keys text[] := '{}';
  key_of jsonb := '{}';
  its_key text;
  state text;
  why text;
  was inbox.parked;
  taken boolean;
  place record;
begin
  if stmt.keyed then
    for item in select e.change, e.i::text as i from json_array_elements(changes) with ordinality as e(change, i) loop
      begin
        execute stmt.one into el using json_build_array(item.change);
        keys := keys || array_remove(array[el.key, el.old_key], null);
        key_of := key_of || jsonb_build_object(item.i, el.key);
      exception when others then
        get stacked diagnostics state = returned_sqlstate, why = message_text;
        if not inbox.is_refusal(state) then raise; end if;
        perform inbox.set_aside(stmt, item.change, null, 'REFUSED', state, why, its_partition, course);
      end;
    end loop;
    insert into inbox.row_version (relation, key, origin, epoch, time, seq, deleted)
    select stmt.relation, k.key, 0, 0, 0, 0, true from (select distinct key from unnest(keys) as key order by key) k
    on conflict do nothing;
    perform 1 from inbox.row_version r where r.relation = stmt.relation and r.key = any(keys) order by r.key for update;
  end if;

  for item in
    select e.change, e.i::text as i, e.change ->> '~w' is not null as again, (e.change ->> '~n')::integer as n,
           (e.change ->> '~o')::smallint as o, (e.change ->> '~s')::bigint as s, e.change -> '~q' as q
    from json_array_elements(changes) with ordinality as e(change, i)
    order by (e.change ->> '~e')::integer, (e.change ->> '~t')::bigint, (e.change ->> '~s')::bigint
  loop
    continue when stmt.keyed and not key_of ? item.i;
    its_key := key_of ->> item.i;
    taken := false;
    begin
      if item.again then
        delete from inbox.parked p
        where p.origin = item.o and p.seq_id = item.s and (item.n is null or (p.reason = 'REFUSED' and p.attempts + 1 = item.n and item.n <= (course ->> 'max_retries')::integer))
        returning * into was;
        taken := found;
        -- One that nobody parked or applied is the first to come: its publishing was retried, not its apply.
        continue when not taken and exists (select from inbox.applied a where a.origin = item.o and a.seq_id = item.s);
        delete from inbox.applied a where a.origin = item.o and a.seq_id = item.s returning a.partition, a."offset" into place;
      end if;
      if item.q is not null then
        raise exception using errcode = item.q ->> 'sqlstate', message = item.q ->> 'message';
      elsif stmt.keyed then
        perform inbox.apply_one(stmt, item.change, its_partition);
      else
        perform inbox.apply_counts(stmt, json_build_array(jsonb_set(item.change::jsonb, '{~i}', '1')), its_partition);
      end if;
      if taken then
        update inbox.applied a set attempt = coalesce(item.n, was.attempts), partition = place.partition, "offset" = place."offset"
        where a.origin = item.o and a.seq_id = item.s;
        if its_key is not null then
          perform inbox.settle_parked(stmt, its_key, was.epoch, was.time, was.seq_id, false, false);
        end if;
      end if;
    exception when others then
      get stacked diagnostics state = returned_sqlstate, why = message_text;
      if not inbox.is_refusal(state) then raise; end if;
      perform inbox.refuse(stmt, item.change, its_key, state, why, its_partition, course);
    end;
  end loop;
end
$$;

-- What a refused change comes to: an older one than its row has had, in all of its columns, needs no repair; one that only waits for a row of
-- another table, or for a value to become free, uses up no attempt.
create function inbox.refuse(stmt inbox.statement, change json, its_key text, state text, why text, its_partition integer, course jsonb)
returns void language plpgsql volatile as $$
declare
  its_origin constant smallint := (change ->> '~o')::smallint;
  its_seq_id constant bigint := (change ->> '~s')::bigint;
  reason constant text := case when state in ('23503', '23505', '23P01') then 'WAITING' else 'REFUSED' end;
  old boolean;
begin
  old := its_key is not null and exists (
    select from inbox.row_version r where r.relation = stmt.relation and r.key = its_key and r.behind is null
      and (r.epoch, r.time, r.seq) > ((change ->> '~e')::integer, (change ->> '~t')::bigint, its_seq_id)
  );
  if old and change ->> '~x' = 'true' then
    begin
      perform inbox.leave_old_key(stmt, change);
    exception when others then
      if not inbox.is_refusal(sqlstate) then raise; end if;
      old := false; -- which row it left cannot be told, so it waits for somebody to look
    end;
  end if;
  if not old then
    perform inbox.set_aside(stmt, change, its_key, reason, state, why, its_partition, course);
    return;
  end if;
  if change ->> '~w' is not null then
    delete from inbox.parked p where p.origin = its_origin and p.seq_id = its_seq_id;
  end if;
  insert into inbox.applied as a (origin, seq_id, status, statement, partition, "offset", failure)
  values (its_origin, its_seq_id, 'SUPERSEDED', stmt.id, its_partition, (change ->> '~f')::bigint, reason || ' ' || state || ': ' || why || '; older than what the row has')
  on conflict (origin, seq_id) do update set status = excluded.status, failure = excluded.failure, applied_at = clock_timestamp()
  where change ->> '~w' is not null;
  perform inbox.settle_parked(stmt, its_key, 0, 0, 0, false, false);
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
-- STALE: it is not stopped any more. The lock keeps inbox.resume from missing what is parked here.
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

-- Makes the relation active again if nothing of it is queued any more; false where something is. null: it is not stopped,
-- or somebody else stopped it meanwhile, whose stop must not be lost. A short lock_timeout: consumers wait behind this lock.
create function inbox.resume(its_relation integer, by text) returns boolean
language plpgsql volatile set lock_timeout = '2s' as $$
begin
  perform pg_advisory_xact_lock(7161, its_relation);
  perform 1 from outbox.relation r where r.id = its_relation and r.state = 'STOPPED' and r.stopped_by = by for update;
  if not found then return null; end if;
  if exists (select from inbox.parked p where p.relation = its_relation and p.reason = 'RELATION_STOPPED') then return false; end if;
  update outbox.relation r set state = 'ACTIVE', stop_reason = null, stopped_by = null, stopped_at = null where r.id = its_relation;
  return true;
end
$$;

-- Applies changes that are parked, as if they arrived now: all at once, or one by one where that was refused.
-- "~w" is set in all of them; what is not parked any more, or is not yet due for this attempt, is left alone.
-- its_state: STOPPED while a relation's queue is taken up.
create function inbox.take_up(statement_id integer, changes json, its_partition integer, its_state text, singly boolean, course jsonb)
returns text language plpgsql volatile
set plan_cache_mode = 'force_generic_plan' set enable_seqscan = 'off' set timezone = 'UTC' set datestyle = 'ISO, MDY'
set intervalstyle = 'postgres' set bytea_output = 'hex' as $$
declare
  stmt inbox.statement;
  there json;
  left_over integer[];
  single json;
begin
  select s.* into stmt from inbox.statement s where s.id = statement_id;
  if not inbox.is_current(stmt, its_state) then return 'STALE'; end if;
  if singly then
    perform inbox.apply_each(stmt, changes, its_partition, course);
    return 'OK';
  end if;

  with wanted as (
    select e.change, e.i, (e.change ->> '~o')::smallint as o, (e.change ->> '~s')::bigint as s
    from json_array_elements(changes) with ordinality as e(change, i)
  ), gone as (
    delete from inbox.parked p using wanted w where p.origin = w.o and p.seq_id = w.s
    returning p.origin, p.seq_id, p.attempts
  ), forgotten as (
    delete from inbox.applied a using gone where a.origin = gone.origin and a.seq_id = gone.seq_id
  )
  select json_agg(jsonb_set(w.change::jsonb, '{~i}', to_jsonb(w.place)) order by w.place) into there
  from (select w.change, row_number() over (order by w.i) as place from wanted w join gone g on g.origin = w.o and g.seq_id = w.s) w;
  if there is null then return 'OK'; end if;
  if stmt.keyed then
    select r.held into left_over from inbox.apply_rows(stmt, there, its_partition) as r;
    for single in select e.change from json_array_elements(there) with ordinality as e(change, i) where e.i = any(left_over) order by e.i loop
      perform inbox.apply_one(stmt, single, its_partition);
    end loop;
  else
    perform inbox.apply_counts(stmt, there, its_partition);
  end if;
  update inbox.applied a set attempt = c."~a"
  from json_to_recordset(there) as c("~o" smallint, "~s" bigint, "~a" smallint) where c."~a" > 0 and a.origin = c."~o" and a.seq_id = c."~s";
  return 'OK';
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
drop function inbox.resume(integer, text);
drop function inbox.stop(text, text, integer, bigint, integer, text, text, json, bigint, bigint, smallint, bigint);
drop function inbox.no_statement(integer, text, text);
drop function inbox.park(text, text, integer, bigint, integer, json);
drop function inbox.park_all(inbox.statement, json, integer);
drop function inbox.apply_singly(text, text, integer, bigint, integer, json, jsonb, bigint, bigint, smallint, bigint);
drop function inbox.refuse(inbox.statement, json, text, text, text, integer, jsonb);
drop function inbox.apply_each(inbox.statement, json, integer, jsonb);
drop function inbox.tell_failure(smallint, bigint, jsonb);
drop function inbox.set_aside(inbox.statement, json, text, text, text, text, integer, jsonb);
drop function inbox.leave_old_key(inbox.statement, json);
drop function inbox.settle_parked(inbox.statement, text, integer, bigint, bigint, boolean, boolean);
drop function inbox.waits_behind(integer, text, integer, bigint, bigint);
drop function inbox.is_parked(integer, text);
drop function inbox.is_refusal(text);
