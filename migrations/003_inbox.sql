-- Up Migration

create schema inbox;

-- The newest version every row has seen, its tombstone included. The guard of the apply upserts here first, which takes
-- the row's lock; nothing at the target relies on arrival order.
-- key: the typed key as canonical text (numeric trimmed, blanks of CHAR dropped): 16 and 016 are one row.
-- was_*: the version before the last batch, set only when a batch carried several changes of the row.
-- behind: columns whose value is older than the row's version, because newer images did not carry them.
create table inbox.row_version (
  relation integer not null,
  key text not null,
  origin smallint not null,
  epoch integer not null,
  time bigint not null,
  seq bigint not null,
  deleted boolean not null,
  parked boolean not null default false,
  was_epoch integer,
  was_time bigint,
  was_seq bigint,
  behind jsonb,
  primary key (relation, key)
) with (fillfactor = 80);

-- The statements of a relation as they were generated; consumer_query is what consumer_log shows.
create table inbox.statement (
  id integer generated always as identity primary key,
  relation integer not null,
  revision integer not null,
  topicname text not null,
  destination text not null,
  schema_name text not null,
  table_name text not null,
  keyed boolean not null,
  consumer_query text not null,
  guard text not null,
  one text,
  old_keys text,
  partial text,
  fill text,
  leave text not null,
  target_shape uuid
);
comment on column inbox.statement.guard is 'keyed: versions and typed keys of the elements, as arrays, for inbox.guard; without a key: the net of copies per row image';
comment on column inbox.statement.leave is 'keyed: deletes the row a key change left, if it equals the before-image; without a key: deletes copies';
create unique index statement_text on inbox.statement
  (relation, revision, topicname, md5(consumer_query), md5(guard));

-- The outcome of every change, written in the transaction of its effect. (origin, seq_id) is the identity everywhere.
create table inbox.applied (
  origin smallint not null,
  seq_id bigint not null,
  status text not null check (status in ('APPLIED', 'SUPERSEDED', 'PARKED', 'RETRYING', 'FAILED', 'SKIPPED')),
  attempt smallint not null default 0,
  statement integer not null,
  partition integer not null,
  "offset" bigint not null,
  failure text,
  applied_at timestamptz not null default clock_timestamp(),
  primary key (origin, seq_id)
);
create index applied_not_plainly on inbox.applied (status, seq_id) where status <> 'APPLIED';

-- Changes set aside: the record as it was consumed, and why. Their statuses are in applied.
-- key null: they hold up no row (the relation is stopped, the key is missing or cannot be read).
-- change: its element, without the record: what a key change needs to be told from another row's past, and a key change
-- itself to leave its old key even if a newer image settles it. Not kept above 1 MB, but for key changes.
-- retry_at: when it is tried again, through Kafka where the reason is REFUSED; null: not by itself.
-- told_at: when its failure was written for the error topic, which is done once.
create table inbox.parked (
  origin smallint not null,
  seq_id bigint not null,
  relation integer not null,
  key text,
  epoch integer not null,
  time bigint not null,
  reason text not null,
  sqlstate text,
  message text not null,
  attempts smallint not null default 0,
  waits integer not null default 0,
  retry_at timestamptz,
  topic text not null,
  record_key text,
  payload text not null,
  traceparent text,
  change json,
  told_at timestamptz,
  parked_at timestamptz not null default clock_timestamp(),
  primary key (origin, seq_id)
);
create index parked_row on inbox.parked (relation, key, epoch, time, seq_id);
create index parked_due on inbox.parked (retry_at) where retry_at is not null;

-- Key changes by the key they left, until a newer version of that key settles them: the row that stands there goes
-- whenever it equals the before-image, or the image from before changes of it that were parked and are settled (`past`). taken: it went; what the same row underwent before it left comes too late.
create table inbox.shift (
  relation integer not null,
  key text not null,
  origin smallint not null,
  seq_id bigint not null,
  epoch integer not null,
  time bigint not null,
  change json not null,
  past jsonb not null default '[]',
  taken boolean not null default false,
  primary key (relation, key, epoch, time, seq_id, origin)
);

-- Where each consumer group stands, in the transaction of the effects. Kafka's committed offset is only a mirror.
-- The last record's identity tells a re-created topic from the one that was read.
-- waiting_*: why the partition does not move, and at which change, as the consumer last met it.
create table inbox.position (
  consumer_group text not null,
  topic text not null,
  partition integer not null,
  next_offset bigint not null default 0,
  last_offset bigint,
  last_origin smallint,
  last_seq_id bigint,
  holder text not null,
  term bigint not null default 1,
  raised_at timestamptz not null default clock_timestamp(),
  waiting_since timestamptz,
  waiting_for text,
  waiting_seq_id bigint,
  primary key (consumer_group, topic, partition)
) with (fillfactor = 50);

-- Tables without a key: copies of a row image that deletes asked for before their inserts came (n < 0).
create table inbox.owed (
  relation integer not null,
  image uuid not null,
  n bigint not null,
  primary key (relation, image)
);

-- The columns of `uncarried`, each with the version its value is of: what it was behind before, else the whole row's.
create function inbox.behind_of(behind jsonb, its_epoch integer, its_time bigint, its_seq bigint, uncarried jsonb) returns jsonb
language sql immutable
return (select jsonb_object_agg(name, coalesce(behind -> name, jsonb_build_array(its_epoch, its_time, its_seq)))
        from jsonb_object_keys(uncarried) as name);

-- A change that was parked for its key shift and needs no longer wait.
create function inbox.settle(its_origin smallint, its_seq_id bigint) returns void
language sql volatile
begin atomic
  delete from inbox.parked p where p.origin = its_origin and p.seq_id = its_seq_id and p.reason = 'KEY_SHIFT';
  update inbox.applied a set status = 'APPLIED', failure = null, applied_at = clock_timestamp()
  where a.origin = its_origin and a.seq_id = its_seq_id and a.status = 'PARKED' and a.failure like 'KEY_SHIFT%';
end;

-- Runs a statement on the target: a lock that is not had within 3 s is the table's fault (55P03 stops its relation). The
-- session of a consumer has no such limit, for its waits on rows of this schema are nobody's fault.
create function inbox.effect(query text, changes json, winners integer[]) returns void
language plpgsql volatile set lock_timeout = '3s' as $$
begin
  execute query using changes, winners;
end
$$;

create function inbox.effect_left(query text, changes json, out found_rows integer, out gone integer)
language plpgsql volatile set lock_timeout = '3s' as $$
begin
  execute query into found_rows, gone using changes;
end
$$;

-- Deletes the row that a key change left behind, if it equals the before-image: then this is the row that moved.
-- Otherwise another row stands there (id = id + 1), or changes of the row are still on their way.
-- The version stays that of the image which left: a change at this key with a version between the two is of another row
-- that moved in, and must not be lost. So the key change is remembered in shift until a newer version settles it.
-- Returns 'settled' (a newer version is there), 'left' (deleted now), 'absent' (nothing stood there) or 'shifted'.
-- A before-image that the target's types refuse is 'shifted' too: which row it left cannot be told.
-- The caller holds the lock of row_version(its_key).
create function inbox.leave(stmt inbox.statement, its_key text, change json, its_origin smallint, its_epoch integer, its_time bigint, its_seq bigint)
returns text language plpgsql volatile as $$
declare
  r inbox.row_version;
  x inbox.shift;
  before jsonb;
  befores jsonb[] := array[leave.change -> '~b'];
  found_past record;
  there record;
  outcome text := 'absent';
begin
  select * into r from inbox.row_version v
  where v.relation = stmt.relation and v.key = its_key and (its_epoch, its_time, its_seq) > (v.epoch, v.time, v.seq);
  if not found then return 'settled'; end if;
  insert into inbox.shift (relation, key, origin, seq_id, epoch, time, change)
  values (stmt.relation, its_key, its_origin, its_seq, its_epoch, its_time, change)
  on conflict do nothing;
  select * into x from inbox.shift s
  where s.relation = stmt.relation and s.key = its_key and s.epoch = its_epoch and s.time = its_time and s.seq_id = its_seq and s.origin = its_origin;
  if r.parked or x.past <> '[]' then
    found_past := inbox.settle_past(stmt, its_key, befores[1], its_epoch, its_time, its_seq, x.past);
    befores := found_past.images;
    if found_past.past <> x.past then
      update inbox.shift s set past = found_past.past
      where s.relation = stmt.relation and s.key = its_key and s.epoch = its_epoch and s.time = its_time and s.seq_id = its_seq and s.origin = its_origin;
    end if;
    if found_past.came then return 'absent'; end if; -- by a change that was parked, so what stands here is another row
  end if;
  foreach before in array befores loop
    begin
      there := inbox.effect_left(stmt.leave, json_build_array(json_build_object('~b', before)));
    exception when data_exception then
      outcome := 'shifted';
      continue;
    end;
    if there.gone > 0 then
      update inbox.row_version v set deleted = true, behind = null where v.relation = stmt.relation and v.key = its_key;
      update inbox.shift s set taken = true
      where s.relation = stmt.relation and s.key = its_key and s.origin = its_origin and s.seq_id = its_seq;
      return 'left';
    end if;
    if there.found_rows > 0 then outcome := 'shifted'; end if;
  end loop;
  return outcome;
end
$$;

-- Tries the remembered key changes of a row again, after something was applied to it.
create function inbox.settle_shifts(stmt inbox.statement, its_key text) returns void
language plpgsql volatile as $$
declare
  s inbox.shift;
  outcome text;
begin
  for s in
    select * from inbox.shift x where x.relation = stmt.relation and x.key = its_key order by x.epoch, x.time, x.seq_id
  loop
    outcome := inbox.leave(stmt, its_key, s.change, s.origin, s.epoch, s.time, s.seq_id);
    if outcome = 'settled' then
      delete from inbox.shift x where x.relation = s.relation and x.key = s.key and x.origin = s.origin and x.seq_id = s.seq_id;
    end if;
    if outcome in ('settled', 'left') then
      perform inbox.settle(s.origin, s.seq_id);
    end if;
  end loop;
end
$$;

create function inbox.effect_fill(query text, changes json, names text[]) returns void
language plpgsql volatile set lock_timeout = '3s' as $$
begin
  execute query using changes, names;
end
$$;

-- Columns that newer images did not carry take the value of this older change, unless it is older than theirs too.
-- Returns how many were filled. The caller holds the lock of row_version(its_key).
create function inbox.fill(stmt inbox.statement, its_key text, change json, its_epoch integer, its_time bigint, its_seq bigint, uncarried jsonb)
returns integer language plpgsql volatile as $$
declare
  names text[];
begin
  if change ->> '~op' = 'DELETE' then return 0; end if; -- it carries nothing: the insert that follows it does
  select array_agg(b.name) into names
  from inbox.row_version r cross join lateral jsonb_each(r.behind) as b(name, at)
  where r.relation = stmt.relation and r.key = its_key and r.behind is not null
    and (its_epoch, its_time, its_seq) > ((b.at ->> 0)::integer, (b.at ->> 1)::bigint, (b.at ->> 2)::bigint)
    and not coalesce(uncarried ? b.name, false);
  if names is null then return 0; end if;
  perform inbox.effect_fill(stmt.fill, json_build_array(change), names);
  update inbox.row_version r
  set behind = r.behind || (select jsonb_object_agg(name, jsonb_build_array(its_epoch, its_time, its_seq)) from unnest(names) as name)
  where r.relation = stmt.relation and r.key = its_key;
  return cardinality(names);
end
$$;

-- One change on its own: key changes, partial images of a row with several changes in the batch, late carriers, changes
-- of rows that are parked. Every row_version it touches was created and locked, in key order, by the caller.
-- HELD: its row is parked, so its record ("~p") may be needed, and it goes on `alone`, in inbox.apply_each.
create function inbox.apply_one(stmt inbox.statement, change json, its_partition integer, alone boolean) returns text
language plpgsql volatile as $$
declare
  doc constant json := json_build_array(change);
  el record;
  r inbox.row_version;
  outcome text := 'APPLIED';
  newer boolean;
begin
  its_partition := coalesce((change ->> '~pt')::integer, its_partition);
  execute stmt.one into el using doc;
  if el.key is null then
    raise exception using errcode = 'not_null_violation', message = 'a column of its key is null';
  end if;
  -- What has an outcome keeps it: a change that is parked or skipped comes back only through inbox.take_up.
  if exists (select from inbox.applied a where a.origin = el.o and a.seq_id = el.s) then return 'DONE'; end if;
  select * into r from inbox.row_version v where v.relation = stmt.relation and v.key = el.key for update;
  newer := (el.e, el.t, el.s) > (r.epoch, r.time, r.seq);
  if r.parked and not alone then return 'HELD'; end if;
  if r.parked and newer and el.u is not null and inbox.waits_behind(stmt.relation, el.key, el.e, el.t, el.s) then
    perform inbox.set_aside(stmt, change, el.key, 'BEHIND', null, 'a change of its row is parked, and this one does not carry all columns', its_partition, null);
    return 'DONE';
  end if;

  if el.old_key <> el.key and inbox.leave(stmt, el.old_key, change, el.o, el.e, el.t, el.s) = 'shifted' then
    outcome := 'PARKED';
  end if;
  if newer then
    update inbox.row_version v
    set origin = el.o, epoch = el.e, time = el.t, seq = el.s, deleted = (el.op = 'DELETE'),
        behind = case when el.u is not null then inbox.behind_of(r.behind, r.epoch, r.time, r.seq, el.u) end
    where v.relation = stmt.relation and v.key = el.key;
    -- The row left by a later key change: an update in place is of its past, and would bring it back.
    if r.deleted and el.op = 'UPDATE' and coalesce(el.old_key = el.key, true) and exists (
      select from inbox.shift x where x.relation = stmt.relation and x.key = el.key and x.taken
        and (x.epoch, x.time, x.seq_id) > (el.e, el.t, el.s)
    ) then
      update inbox.row_version v set deleted = true, behind = null where v.relation = stmt.relation and v.key = el.key;
    elsif el.u is null then
      perform inbox.effect(stmt.consumer_query, doc, array[el.i]);
    else
      perform inbox.effect(stmt.partial, doc, array[el.i]);
    end if;
  elsif (el.e, el.t, el.s) < (r.epoch, r.time, r.seq)
        and inbox.fill(stmt, el.key, change, el.e, el.t, el.s, el.u) = 0 and outcome = 'APPLIED' then
    outcome := 'SUPERSEDED';
  end if;

  if outcome = 'PARKED' then
    perform inbox.set_aside(stmt, change, el.old_key, 'KEY_SHIFT', null, inbox.key_shift(), its_partition, null);
  else
    insert into inbox.applied as a (origin, seq_id, status, statement, partition, "offset")
    values (el.o, el.s, outcome, stmt.id, its_partition, el.f)
    on conflict do nothing;
  end if;
  if r.parked then
    perform inbox.settle_parked(stmt, el.key, el.e, el.t, el.s, newer and el.u is null, outcome <> 'SUPERSEDED');
  end if;
  perform inbox.settle_shifts(stmt, el.key);
  return 'DONE';
end
$$;

create function inbox.effect_counts(query text, changes json, samples integer[], copies bigint[]) returns void
language plpgsql volatile set lock_timeout = '3s' as $$
begin
  execute query using changes, samples, copies;
end
$$;

create function inbox.effect_uncounted(query text, images uuid[], nets bigint[], its_relation integer) returns void
language plpgsql volatile set lock_timeout = '3s' as $$
begin
  execute query using images, nets, its_relation;
end
$$;

-- One batch of one relation without a key: signed counts per row image, so that every order of arrival ends in the same
-- table (faults seen: F15). A delete that comes before its insert is owed, and the insert pays it. `applied` is the gate.
create function inbox.apply_counts(stmt inbox.statement, changes json, its_partition integer) returns void
language plpgsql volatile as $$
declare
  fresh integer[];
  images uuid[];
  nets bigint[];
  samples integer[];
begin
  with c as (
    select distinct on (o, s) i, o, s, f, lies_in
    from json_to_recordset(changes) as x("~i" integer, "~o" smallint, "~s" bigint, "~f" bigint, "~pt" integer)
    cross join lateral (select "~i" as i, "~o" as o, "~s" as s, "~f" as f, coalesce("~pt", its_partition) as lies_in) as named
    order by o, s, i
  ), logged as (
    insert into inbox.applied (origin, seq_id, status, statement, partition, "offset")
    select o, s, 'APPLIED', stmt.id, lies_in, f from c
    on conflict do nothing
    returning origin, seq_id
  )
  select array_agg(c.i) into fresh from c join logged l on l.origin = c.o and l.seq_id = c.s;
  if fresh is null then return; end if;

  execute stmt.guard into images, nets, samples using changes, fresh;
  if images is null then return; end if;

  -- Locks the images in one order; all below runs with a snapshot taken after that.
  insert into inbox.owed as o (relation, image, n)
  select stmt.relation, x.image, 0 from unnest(images) as x(image) order by x.image
  on conflict (relation, image) do update set n = o.n;

  perform inbox.effect_counts(stmt.consumer_query, changes,
    (select array_agg(x.sample order by x.sample) from unnest(images, nets, samples) as x(image, net, sample)
       join inbox.owed o on o.relation = stmt.relation and o.image = x.image where x.net > -o.n),
    (select array_agg(x.net + o.n order by x.sample) from unnest(images, nets, samples) as x(image, net, sample)
       join inbox.owed o on o.relation = stmt.relation and o.image = x.image where x.net > -o.n));
  update inbox.owed o set n = least(o.n + x.net, 0)
  from unnest(images, nets) as x(image, net)
  where o.relation = stmt.relation and o.image = x.image and x.net > 0;

  if exists (select from unnest(nets) as net where net < 0) then
    perform inbox.effect_uncounted('with left_row as (' || stmt.leave || '), gone as (select image, count(*) as n from left_row group by image)
             update inbox.owed o set n = o.n + need.net + coalesce(gone.n, 0)
             from unnest($1, $2) as need(image, net) left join gone on gone.image = need.image
             where o.relation = $3 and o.image = need.image',
          (select array_agg(x.image order by x.image) from unnest(images, nets) as x(image, net) where x.net < 0),
          (select array_agg(x.net order by x.image) from unnest(images, nets) as x(image, net) where x.net < 0),
          stmt.relation);
  end if;
  delete from inbox.owed o where o.relation = stmt.relation and o.image = any(images) and o.n = 0;
end
$$;

-- True when this term still owns the partition; locks the position row, which every write of a consumer hangs on.
create function inbox.holds(its_group text, its_topic text, its_partition integer, its_term bigint) returns boolean
language plpgsql volatile as $$
begin
  perform 1 from inbox.position p
  where p.consumer_group = its_group and p.topic = its_topic and p.partition = its_partition and p.term = its_term
  for update;
  return found;
end
$$;

-- What the elements of one document say of themselves, each array in the order of the document.
create type inbox.heads as (
  i integer[], special boolean[], deleted boolean[], origin smallint[], epoch integer[], time bigint[], seq bigint[], "offset" bigint[], uncarried jsonb[], key text[], partition integer[]
);

-- Upserts row_version in key order, logs every outcome that is plain, and names who won. One statement for all relations,
-- so its plan is kept: planning it took a third of a call of one change. Without nested loops, since a plan that is kept
-- cannot know that there are 1,000 changes and not ten.
create function inbox.guard(
  stmt inbox.statement, heads inbox.heads, old_keys text[], its_partition integer,
  out winners integer[], out partials integer[], out singles integer[], out lost integer[], out touched text[]
) language plpgsql volatile set enable_nestloop = 'off' as $$
begin
  with c as materialized (
    select x.*, count(*) over of_key as n, count(x.u) over of_key as incomplete
    from unnest(heads.i, heads.special, heads.deleted, heads.origin, heads.epoch, heads.time, heads.seq, heads."offset", heads.uncarried, heads.key, heads.partition)
      as x(i, x, del, o, e, t, s, f, u, key, lies_in)
    -- What has an outcome keeps it: it may be older than its row by a key change that left no version here. Looked up one
    -- by one, or without nested loops the whole table would be read.
    where (select true from inbox.applied a where a.origin = x.o and a.seq_id = x.s) is null
    window of_key as (partition by x.key)
  ), single as materialized (
    select c.key from c where c.x or (c.n > 1 and c.incomplete > 0)
    union select old.key from unnest(old_keys) as old(key) where old.key is not null
    union select s.key from inbox.shift s where s.relation = stmt.relation and s.key = any(heads.key)
  ), newest as materialized (
    select distinct on (c.key) c.* from c where not exists (select from single where single.key = c.key)
    order by c.key, c.e desc, c.t desc, c.s desc
  ), won as (
    insert into inbox.row_version as r
      (relation, key, origin, epoch, time, seq, deleted, behind, was_epoch, was_time, was_seq)
    select stmt.relation, w.* from (
      select n.key, n.o, n.e, n.t, n.s, n.del, n.u,
        case when n.n > 1 then 0 end, case when n.n > 1 then 0 end, case when n.n > 1 then 0 end from newest n
      union all
      select single.key, 0, 0, 0, 0, true, null, null, null, null from single
      order by 1
    ) w
    on conflict (relation, key) do update
    set origin = excluded.origin, epoch = excluded.epoch, time = excluded.time, seq = excluded.seq,
        deleted = excluded.deleted,
        behind = case when excluded.behind is not null
          then inbox.behind_of(r.behind, r.epoch, r.time, r.seq, excluded.behind) end,
        was_epoch = case when excluded.was_seq is not null then r.epoch end,
        was_time = case when excluded.was_seq is not null then r.time end,
        was_seq = case when excluded.was_seq is not null then r.seq end
    where (excluded.epoch, excluded.time, excluded.seq) > (r.epoch, r.time, r.seq) and not r.parked
    returning r.key, r.was_epoch, r.was_time, r.was_seq
  ), ended as materialized (
    select c.i, c.o, c.s, c.f, c.lies_in,
      won.key is not null and (won.was_seq is null or (c.e, c.t, c.s) > (won.was_epoch, won.was_time, won.was_seq)) as applied
    from c left join won on won.key = c.key
    where not exists (select from single where single.key = c.key)
  ), logged as (
    -- Without "on conflict", which costs 2 us a change: whoever logs the same change at the same time makes this call fail,
    -- and when it comes again what is logged is left out above.
    insert into inbox.applied (origin, seq_id, status, statement, partition, "offset")
    select x.o, x.s, case when x.applied then 'APPLIED' else 'SUPERSEDED' end, stmt.id, coalesce(x.lies_in, its_partition), x.f
    from ended x order by x.o, x.s
  )
  select (select array_agg(n.i) from newest n join won on won.key = n.key where n.u is null),
    (select array_agg(n.i) from newest n join won on won.key = n.key where n.u is not null),
    (select array_agg(c.i order by c.e, c.t, c.s) from c where exists (select from single where single.key = c.key)),
    (select array_agg(x.i order by x.i) from ended x where not x.applied),
    (select array_agg(won.key) from won)
  into winners, partials, singles, lost, touched;
end
$$;

-- One batch of one relation with a key. Two steps, because in one snapshot a delete overtakes an insert of the same row
-- that another partition is applying, and the row lives for ever (faults seen: F1): first the guard upserts row_version
-- in key order, which takes the locks and names the winners; then, with a new snapshot, the effects.
-- Elements of keys where versions of columns matter (key changes, several changes of a row with a partial image among
-- them) go one by one in the order of their versions.
-- lost: the ordinals of superseded changes. held: those of rows that are parked, which apply_each must take.
create function inbox.apply_rows(stmt inbox.statement, changes json, its_partition integer, out lost integer[], out held integer[])
language plpgsql volatile as $$
declare
  old_keys text[];
  heads inbox.heads;
  winners integer[];
  partials integer[];
  singles integer[];
  touched text[];
  single record;
begin
  if strpos(changes::text, '"~x":true') > 0 then
    execute stmt.old_keys into old_keys using changes;
  end if;
  execute stmt.guard into heads using changes;
  select g.* into winners, partials, singles, lost, touched from inbox.guard(stmt, heads, old_keys, its_partition) as g;
  if winners is not null then
    perform inbox.effect(stmt.consumer_query, changes, winners);
  end if;
  if partials is not null then
    perform inbox.effect(stmt.partial, changes, partials);
  end if;
  if lost is not null then
    select still.lost, still.held into lost, held from inbox.hold_back(stmt, changes, lost) as still;
  end if;
  if singles is not null then
    for single in
      select e.change, e.i from unnest(singles) with ordinality as s(i, place)
      join json_array_elements(changes) with ordinality as e(change, i) on e.i = s.i order by s.place
    loop
      if inbox.apply_one(stmt, single.change, its_partition, false) = 'HELD' then
        held := held || single.i::integer;
      end if;
    end loop;
  end if;
  if lost is not null then
    lost := inbox.fill_late(stmt, changes, lost);
  end if;
  if exists (select from inbox.shift s where s.relation = stmt.relation) then
    perform inbox.settle_shifts(stmt, k.key)
    from (select distinct x.key from inbox.shift x where x.relation = stmt.relation and x.key = any(touched) order by x.key) as k;
  end if;
end
$$;

-- The guard takes no change of a parked row, so those are among the superseded ones, which they may not be: their
-- outcomes are taken back. Asked after the guard, whose locks keep the flags as they are.
create function inbox.hold_back(stmt inbox.statement, changes json, late_ones integer[], out lost integer[], out held integer[])
language plpgsql volatile as $$
declare
  late record;
  el record;
begin
  lost := late_ones;
  if not exists (select from inbox.row_version r where r.relation = stmt.relation and r.parked) then return; end if;
  for late in
    select e.change, e.i::integer as i from json_array_elements(changes) with ordinality as e(change, i) where e.i = any(late_ones)
  loop
    execute stmt.one into el using json_build_array(late.change);
    continue when not exists (
      select from inbox.row_version r where r.relation = stmt.relation and r.key = el.key and r.parked
        and (el.e, el.t, el.s) > (r.epoch, r.time, r.seq)
    );
    delete from inbox.applied a where a.origin = el.o and a.seq_id = el.s;
    lost := array_remove(lost, late.i);
    held := held || late.i;
  end loop;
  lost := nullif(lost, '{}');
end
$$;
create index row_version_parked on inbox.row_version (relation) where parked;

-- Superseded changes of rows that are behind in some column may still carry its value. Returns those that did not.
create function inbox.fill_late(stmt inbox.statement, changes json, lost integer[]) returns integer[]
language plpgsql volatile as $$
declare
  late record;
  el record;
  still_lost integer[] := lost;
begin
  if not exists (select from inbox.row_version r where r.relation = stmt.relation and r.behind is not null) then
    return lost;
  end if;
  for late in
    select e.change, e.i::integer as i from json_array_elements(changes) with ordinality as e(change, i) where e.i = any(lost)
  loop
    execute stmt.one into el using json_build_array(late.change);
    if inbox.fill(stmt, el.key, late.change, el.e, el.t, el.s, el.u) > 0 then
      update inbox.applied a set status = 'APPLIED' where a.origin = el.o and a.seq_id = el.s;
      perform inbox.settle_shifts(stmt, el.key);
      still_lost := array_remove(still_lost, late.i);
    end if;
  end loop;
  return nullif(still_lost, '{}');
end
$$;
create index row_version_behind on inbox.row_version (relation) where behind is not null;

-- What the statements of a target were made from: its columns with types, modifiers, NOT NULL and what generates them.
-- plpgsql and not SQL: a function of SQL is planned at every call, which took 0.18 ms of each apply.
create function inbox.shape_of(schema_name text, table_name text) returns uuid
language plpgsql stable as $$
begin
  return (
    select md5(string_agg(format('%s %s:%s %s %s%s', a.attname, a.atttypid, a.atttypmod, a.attnotnull, a.attgenerated, a.attidentity), ',' order by a.attnum))::uuid
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    where n.nspname = schema_name and c.relname = table_name
  );
end
$$;

-- The CHECKs of a table, as text that names its columns bare. pg_get_expr waits for the table: 3 s, as inbox.effect.
create function inbox.checks_of(schema_name text, table_name text) returns json
language plpgsql stable set lock_timeout = '3s' as $$
begin
  return (
    select coalesce(json_agg(json_build_object('name', k.conname, 'expression', pg_get_expr(k.conbin, k.conrelid), 'columns',
      (select coalesce(json_agg(a.attname), '[]') from pg_attribute a where a.attrelid = c.oid and a.attnum = any(k.conkey)))), '[]')
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    join pg_constraint k on k.conrelid = c.oid and k.contype = 'c'
    where n.nspname = schema_name and c.relname = table_name
  );
end
$$;

-- True while relation and target are as they were when the statements were made; holds the relation it so until the end of the transaction.
-- Shared here, exclusive in whoever changes the relation: no batch is half of the old kind and half of the new.
create function inbox.is_current(stmt inbox.statement, its_state text default 'ACTIVE') returns boolean
language plpgsql volatile as $$
begin
  perform pg_advisory_xact_lock_shared(7161, stmt.relation);
  perform 1 from outbox.relation r
  where r.id = stmt.relation and r.revision = stmt.revision and r.state = its_state
    and inbox.shape_of(stmt.schema_name, stmt.table_name) is not distinct from stmt.target_shape;
  return found;
end
$$;

-- Where the partition stands now; it does not wait for anything any more. its_next null: it stays where it was.
create function inbox.move_position(
  its_group text, its_topic text, its_partition integer, its_next bigint, its_last bigint, its_last_origin smallint, its_last_seq_id bigint
) returns void language plpgsql volatile as $$
begin
  if its_next is not null then
    update inbox.position p
    set next_offset = its_next, last_offset = coalesce(its_last, p.last_offset),
        last_origin = coalesce(its_last_origin, p.last_origin), last_seq_id = coalesce(its_last_seq_id, p.last_seq_id),
        waiting_since = null, waiting_for = null, waiting_seq_id = null
    where p.consumer_group = its_group and p.topic = its_topic and p.partition = its_partition;
  end if;
end
$$;

-- What the consumer sends for one relation of what its partitions have: one statement, atomic without a client-side
-- transaction. The arrays have an item for each partition; "~pt" of a change names its partition where there are several.
-- outcome: OK, FENCED (another holder has one of the partitions), STALE (the relation changed, or was stopped: look again).
-- nexts null: other relations of the same batch are still to come, the positions stay. They stay too where changes are
-- held: they go on in inbox.apply_singly.
-- Plans: the statements of these functions are look-ups by primary key. Planned once, and never as a scan, they cannot go
-- wrong on tables that were empty then; planned at every call they took 0.25 ms of the 2.0 ms a call of one change takes.
-- The relation's own statements go through EXECUTE and are planned each time.
create function inbox.apply(
  its_group text, its_topic text, partitions integer[], terms bigint[], statement_id integer, changes json,
  nexts bigint[], lasts bigint[], last_origins smallint[], last_seq_ids bigint[],
  out outcome text, out superseded integer[], out held integer[]
) language plpgsql volatile
set plan_cache_mode = 'force_generic_plan' set enable_seqscan = 'off' set timezone = 'UTC' set datestyle = 'ISO, MDY'
set intervalstyle = 'postgres' set bytea_output = 'hex' as $$
declare
  stmt inbox.statement;
  at integer;
begin
  outcome := 'FENCED';
  for at in select m.at from unnest(partitions) with ordinality as m(partition, at) order by m.partition loop
    if not inbox.holds(its_group, its_topic, partitions[at], terms[at]) then return; end if;
  end loop;

  if statement_id is not null then
    select s.* into stmt from inbox.statement s where s.id = statement_id;
    outcome := 'STALE';
    if not inbox.is_current(stmt) then return; end if;
    if stmt.keyed then
      select r.lost, r.held into superseded, held from inbox.apply_rows(stmt, changes, partitions[1]) as r;
    else
      perform inbox.apply_counts(stmt, changes, partitions[1]);
    end if;
  end if;

  if held is null then
    for at in 1 .. cardinality(partitions) loop
      perform inbox.move_position(its_group, its_topic, partitions[at], nexts[at], lasts[at], last_origins[at], last_seq_ids[at]);
    end loop;
  end if;
  outcome := 'OK';
end
$$;

-- Down Migration

drop schema inbox cascade;
