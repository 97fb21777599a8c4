-- All migrations together, made by `npm run cli -- schema dump`; a test fails when it is stale.

create sequence auditlog.rejected_request_id_seq as bigint cache 1;

create sequence inbox.statement_id_seq as integer cache 1;

create sequence outbox."position" as bigint cache 1;

create sequence outbox.relation_id_seq as integer cache 1;

create table auditlog.producer_log (
  seq_id bigint default nextval('outbox."position"'::regclass) not null,
  origin smallint not null,
  topicname text not null,
  source text not null,
  schema_name text not null,
  table_name text not null,
  operation text not null,
  producer_payload json not null,
  clean_payload text,
  raw bytea,
  dialect text not null,
  row_key text,
  source_time timestamp with time zone not null,
  epoch integer default 1 not null,
  traceparent text,
  received_at timestamp with time zone default clock_timestamp() not null,
  CHECK ((operation = ANY (ARRAY['INSERT'::text, 'UPDATE'::text, 'DELETE'::text]))),
  PRIMARY KEY (seq_id)
) partition by RANGE (seq_id);

create table auditlog.publish_log (
  "position" bigint not null,
  seq_id bigint not null,
  attempt smallint default 0 not null,
  producer_publish_status text not null,
  producer_failure_log text,
  producer_publish_time timestamp with time zone default clock_timestamp() not null,
  partition integer,
  "offset" bigint,
  latest boolean default true not null,
  PRIMARY KEY ("position"),
  CHECK ((producer_publish_status = ANY (ARRAY['PENDING'::text, 'PUBLISHED'::text, 'RETRYING'::text, 'FAILED'::text])))
);

create table auditlog.rejected_request (
  id bigint generated always as identity not null,
  received_at timestamp with time zone default clock_timestamp() not null,
  path text not null,
  headers jsonb not null,
  body bytea not null,
  reason text not null,
  detail text,
  state text default 'WAITING'::text not null,
  retried_at timestamp with time zone,
  seq_ids bigint[],
  PRIMARY KEY (id),
  CHECK ((state = ANY (ARRAY['WAITING'::text, 'RETRIED'::text])))
);

create table auditlog.settled (
  the_only boolean default true not null,
  up_to bigint default 0 not null,
  PRIMARY KEY (the_only),
  CHECK (the_only)
) with (fillfactor=50);

create table inbox.applied (
  origin smallint not null,
  seq_id bigint not null,
  status text not null,
  attempt smallint default 0 not null,
  statement integer not null,
  partition integer not null,
  "offset" bigint not null,
  failure text,
  applied_at timestamp with time zone default clock_timestamp() not null,
  PRIMARY KEY (origin, seq_id),
  CHECK ((status = ANY (ARRAY['APPLIED'::text, 'SUPERSEDED'::text, 'PARKED'::text, 'RETRYING'::text, 'FAILED'::text, 'SKIPPED'::text])))
);

create table inbox.owed (
  relation integer not null,
  image uuid not null,
  n bigint not null,
  PRIMARY KEY (relation, image)
);

create table inbox.parked (
  origin smallint not null,
  seq_id bigint not null,
  relation integer not null,
  key text,
  reason text not null,
  message text not null,
  change json not null,
  attempts smallint default 0 not null,
  parked_at timestamp with time zone default clock_timestamp() not null,
  PRIMARY KEY (origin, seq_id)
);

create table inbox."position" (
  consumer_group text not null,
  topic text not null,
  partition integer not null,
  next_offset bigint default 0 not null,
  last_offset bigint,
  last_origin smallint,
  last_seq_id bigint,
  holder text not null,
  term bigint default 1 not null,
  raised_at timestamp with time zone default clock_timestamp() not null,
  waiting_since timestamp with time zone,
  waiting_for text,
  waiting_seq_id bigint,
  PRIMARY KEY (consumer_group, topic, partition)
) with (fillfactor=50);

create table inbox.row_version (
  relation integer not null,
  key text not null,
  origin smallint not null,
  epoch integer not null,
  "time" bigint not null,
  seq bigint not null,
  deleted boolean not null,
  parked boolean default false not null,
  was_epoch integer,
  was_time bigint,
  was_seq bigint,
  behind jsonb,
  PRIMARY KEY (relation, key)
) with (fillfactor=80);

create table inbox.shift (
  relation integer not null,
  key text not null,
  origin smallint not null,
  seq_id bigint not null,
  epoch integer not null,
  "time" bigint not null,
  change json not null,
  taken boolean default false not null,
  PRIMARY KEY (relation, key, epoch, "time", seq_id, origin)
);

create table inbox.statement (
  id integer generated always as identity not null,
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
  target_shape uuid,
  PRIMARY KEY (id)
);

create table outbox.database (
  the_only boolean default true not null,
  origin smallint default 1 not null,
  lanes smallint default 64 not null,
  CHECK ((lanes > 0)),
  CHECK ((origin > 0)),
  PRIMARY KEY (the_only),
  CHECK (the_only)
);

create table outbox.event (
  lane smallint not null,
  "position" bigint not null,
  seq_id bigint not null,
  attempt smallint default 0 not null,
  kind text default 'change'::text not null,
  bytes integer not null,
  due_at timestamp with time zone,
  CHECK ((kind = 'change'::text)),
  PRIMARY KEY (lane, "position")
) with (autovacuum_vacuum_scale_factor=0, autovacuum_vacuum_threshold=20000, autovacuum_vacuum_insert_scale_factor=0.2);

create table outbox.lane (
  lane smallint not null,
  holder text,
  term bigint default 0 not null,
  held_until timestamp with time zone default '-infinity'::timestamp with time zone not null,
  floor bigint default 0 not null,
  PRIMARY KEY (lane)
) with (fillfactor=50, autovacuum_vacuum_scale_factor=0, autovacuum_vacuum_threshold=500);

create table outbox.relation (
  id integer generated always as identity not null,
  source text not null,
  source_schema text not null,
  source_table text not null,
  target_schema text not null,
  target_table text not null,
  known_from text not null,
  key_columns text[],
  columns text[] default '{}'::text[] not null,
  created boolean default false not null,
  capture text default 'posts'::text not null,
  epoch integer default 1 not null,
  state text default 'ACTIVE'::text not null,
  stop_reason text,
  revision integer default 1 not null,
  met_at timestamp with time zone default clock_timestamp() not null,
  CHECK ((known_from = ANY (ARRAY['registered'::text, 'target'::text, 'payload'::text]))),
  PRIMARY KEY (id),
  UNIQUE (source_schema, source_table),
  CHECK ((state = ANY (ARRAY['ACTIVE'::text, 'STOPPED'::text])))
);

create table outbox.relay (
  holder text not null,
  alive_until timestamp with time zone not null,
  PRIMARY KEY (holder)
) with (fillfactor=50);

create table outbox.seen (
  event_key uuid not null,
  seq_id bigint not null,
  content_hash uuid,
  PRIMARY KEY (event_key)
);

create table auditlog.producer_log_000000 partition of auditlog.producer_log FOR VALUES FROM ('0') TO ('5000000');

create table auditlog.producer_log_000001 partition of auditlog.producer_log FOR VALUES FROM ('5000000') TO ('10000000');

create table auditlog.producer_log_000002 partition of auditlog.producer_log FOR VALUES FROM ('10000000') TO ('15000000');

create table auditlog.producer_log_default partition of auditlog.producer_log DEFAULT;

CREATE INDEX applied_not_plainly ON inbox.applied USING btree (status, seq_id) WHERE (status <> 'APPLIED'::text);

CREATE INDEX parked_row ON inbox.parked USING btree (relation, key);

CREATE INDEX publish_log_not_published ON auditlog.publish_log USING btree (producer_publish_status, seq_id) WHERE (producer_publish_status <> 'PUBLISHED'::text);

CREATE INDEX rejected_request_waiting ON auditlog.rejected_request USING btree (id) WHERE (state = 'WAITING'::text);

CREATE INDEX row_version_behind ON inbox.row_version USING btree (relation) WHERE (behind IS NOT NULL);

CREATE UNIQUE INDEX publish_log_latest ON auditlog.publish_log USING btree (seq_id) WHERE latest;

CREATE UNIQUE INDEX statement_text ON inbox.statement USING btree (relation, revision, topicname, md5(consumer_query), md5(guard));

create view auditlog.audit_log as
 SELECT p.seq_id,
    p.origin,
    p.schema_name,
    p.table_name,
    p.operation,
    l.producer_publish_status,
    l.producer_failure_log,
    l.producer_publish_time,
    a.status AS consumer_deploy_status,
    a.failure AS consumer_failure_log,
    a.applied_at AS consumer_update_time
   FROM ((auditlog.producer_log p
     JOIN auditlog.publish_log l ON (((l.seq_id = p.seq_id) AND l.latest)))
     JOIN inbox.applied a ON (((a.origin = p.origin) AND (a.seq_id = p.seq_id))))
UNION ALL
 SELECT pending.seq_id,
    pending.origin,
    pending.schema_name,
    pending.table_name,
    pending.operation,
    pending.producer_publish_status,
    pending.producer_failure_log,
    pending.producer_publish_time,
    pending.consumer_deploy_status,
    pending.consumer_failure_log,
    pending.consumer_update_time
   FROM auditlog.pending;

create view auditlog.consumer_log as
 SELECT a.origin,
    a.seq_id,
    s.topicname,
    s.destination,
    s.schema_name,
    s.table_name,
    s.consumer_query,
    a.status AS consumer_deploy_status,
    a.failure AS consumer_failure_log,
    a.applied_at AS consumer_update_time,
    a.attempt,
    a.partition,
    a."offset"
   FROM (inbox.applied a
     JOIN inbox.statement s ON ((s.id = a.statement)));

create view auditlog.pending as
 SELECT p.seq_id,
    p.origin,
    p.schema_name,
    p.table_name,
    p.operation,
    p.received_at,
    (l."position" IS NOT NULL) AS published,
    (a.seq_id IS NOT NULL) AS deployed,
    COALESCE(l.producer_publish_status, 'PENDING'::text) AS producer_publish_status,
    l.producer_failure_log,
    l.producer_publish_time,
    COALESCE(a.status, 'PENDING'::text) AS consumer_deploy_status,
    a.failure AS consumer_failure_log,
    a.applied_at AS consumer_update_time
   FROM ((auditlog.producer_log p
     LEFT JOIN LATERAL ( SELECT x."position",
            x.seq_id,
            x.attempt,
            x.producer_publish_status,
            x.producer_failure_log,
            x.producer_publish_time,
            x.partition,
            x."offset",
            x.latest
           FROM auditlog.publish_log x
          WHERE ((x.seq_id = p.seq_id) AND x.latest)
         LIMIT 1) l ON (true))
     LEFT JOIN LATERAL ( SELECT x.origin,
            x.seq_id,
            x.status,
            x.attempt,
            x.statement,
            x.partition,
            x."offset",
            x.failure,
            x.applied_at
           FROM inbox.applied x
          WHERE ((x.origin = p.origin) AND (x.seq_id = p.seq_id))
         LIMIT 1) a ON (true))
  WHERE ((p.seq_id > ( SELECT settled.up_to
           FROM auditlog.settled)) AND (((p.seq_id - ( SELECT settled.up_to
           FROM auditlog.settled)) >= 1) AND ((p.seq_id - ( SELECT settled.up_to
           FROM auditlog.settled)) <= '9000000000000000000'::bigint)) AND (((p.seq_id + 1) >= ( SELECT settled.up_to
           FROM auditlog.settled)) AND ((p.seq_id + 1) <= '9000000000000000000'::bigint)) AND ((l."position" IS NULL) OR (a.seq_id IS NULL)));

CREATE OR REPLACE FUNCTION auditlog.add_partitions(ahead integer DEFAULT 2)
 RETURNS integer
 LANGUAGE plpgsql
 SET lock_timeout TO '2s'
AS $function$
declare
  step constant bigint := 5000000;
  slot bigint;
  name text;
  made integer := 0;
begin
  perform pg_advisory_xact_lock(hashtextextended('auditlog.producer_log', 0));
  for slot in select generate_series(s.last_value / step, s.last_value / step + ahead) from outbox.position s loop
    name := 'producer_log_' || lpad(slot::text, 6, '0');
    continue when to_regclass('auditlog.' || name) is not null;
    -- Attaching needs this lock anyway; taken before the rows are moved, none can come behind them.
    lock table auditlog.producer_log_default in access exclusive mode;
    execute format('create table auditlog.%I (like auditlog.producer_log including all)', name);
    execute format('with moved as (delete from auditlog.producer_log_default where seq_id >= %s and seq_id < %s returning *)
                    insert into auditlog.%I select * from moved', slot * step, (slot + 1) * step, name);
    execute format('alter table auditlog.producer_log attach partition auditlog.%I for values from (%s) to (%s)',
                   name, slot * step, (slot + 1) * step);
    made := made + 1;
  end loop;
  return made;
end
$function$
;

CREATE OR REPLACE FUNCTION inbox.apply(its_group text, its_topic text, its_partition integer, its_term bigint, statement_id integer, changes json, its_next bigint, its_last bigint, its_last_origin smallint, its_last_seq_id bigint, OUT outcome text, OUT superseded integer[])
 RETURNS record
 LANGUAGE plpgsql
 SET plan_cache_mode TO 'force_generic_plan'
 SET enable_seqscan TO 'off'
 SET "TimeZone" TO 'UTC'
 SET "DateStyle" TO 'ISO, MDY'
 SET "IntervalStyle" TO 'postgres'
 SET bytea_output TO 'hex'
AS $function$
declare
  stmt inbox.statement;
begin
  outcome := 'FENCED';
  if not inbox.holds(its_group, its_topic, its_partition, its_term) then return; end if;

  if statement_id is not null then
    select s.* into stmt from inbox.statement s where s.id = statement_id;
    outcome := 'STALE';
    if not inbox.is_current(stmt) then return; end if;
    if stmt.keyed then
      superseded := inbox.apply_rows(stmt, changes, its_partition);
    else
      perform inbox.apply_counts(stmt, changes, its_partition);
    end if;
  end if;

  if its_next is not null then
    update inbox.position p
    set next_offset = its_next, last_offset = coalesce(its_last, p.last_offset),
        last_origin = coalesce(its_last_origin, p.last_origin), last_seq_id = coalesce(its_last_seq_id, p.last_seq_id),
        waiting_since = null, waiting_for = null, waiting_seq_id = null
    where p.consumer_group = its_group and p.topic = its_topic and p.partition = its_partition;
  end if;
  outcome := 'OK';
end
$function$
;

CREATE OR REPLACE FUNCTION inbox.apply_counts(stmt inbox.statement, changes json, its_partition integer)
 RETURNS void
 LANGUAGE plpgsql
AS $function$
declare
  fresh integer[];
  images uuid[];
  nets bigint[];
  samples integer[];
begin
  with c as (
    select distinct on (o, s) i, o, s, f
    from json_to_recordset(changes) as x("~i" integer, "~o" smallint, "~s" bigint, "~f" bigint)
    cross join lateral (select "~i" as i, "~o" as o, "~s" as s, "~f" as f) as named
    order by o, s, i
  ), logged as (
    insert into inbox.applied (origin, seq_id, status, statement, partition, "offset")
    select o, s, 'APPLIED', stmt.id, its_partition, f from c
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

  execute stmt.consumer_query using changes,
    (select array_agg(x.sample order by x.sample) from unnest(images, nets, samples) as x(image, net, sample)
       join inbox.owed o on o.relation = stmt.relation and o.image = x.image where x.net > -o.n),
    (select array_agg(x.net + o.n order by x.sample) from unnest(images, nets, samples) as x(image, net, sample)
       join inbox.owed o on o.relation = stmt.relation and o.image = x.image where x.net > -o.n);
  update inbox.owed o set n = least(o.n + x.net, 0)
  from unnest(images, nets) as x(image, net)
  where o.relation = stmt.relation and o.image = x.image and x.net > 0;

  if exists (select from unnest(nets) as net where net < 0) then
    execute 'with left_row as (' || stmt.leave || '), gone as (select image, count(*) as n from left_row group by image)
             update inbox.owed o set n = o.n + need.net + coalesce(gone.n, 0)
             from unnest($1, $2) as need(image, net) left join gone on gone.image = need.image
             where o.relation = $3 and o.image = need.image'
    using (select array_agg(x.image order by x.image) from unnest(images, nets) as x(image, net) where x.net < 0),
          (select array_agg(x.net order by x.image) from unnest(images, nets) as x(image, net) where x.net < 0),
          stmt.relation;
  end if;
  delete from inbox.owed o where o.relation = stmt.relation and o.image = any(images) and o.n = 0;
end
$function$
;

CREATE OR REPLACE FUNCTION inbox.apply_one(stmt inbox.statement, change json, its_partition integer)
 RETURNS void
 LANGUAGE plpgsql
AS $function$
declare
  doc constant json := json_build_array(change);
  el record;
  r inbox.row_version;
  outcome text := 'APPLIED';
  why text;
begin
  execute stmt.one into el using doc;
  if el.old_key <> el.key and inbox.leave(stmt, el.old_key, change, el.o, el.e, el.t, el.s) = 'shifted' then
    outcome := 'PARKED';
    why := 'KEY_SHIFT: the new key is written; at the old key stands a row that is not the before-image';
  end if;

  select * into r from inbox.row_version v where v.relation = stmt.relation and v.key = el.key for update;
  if (el.e, el.t, el.s) > (r.epoch, r.time, r.seq) then
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
      execute stmt.consumer_query using doc, array[el.i];
    else
      execute stmt.partial using doc, array[el.i];
    end if;
  elsif (el.e, el.t, el.s) < (r.epoch, r.time, r.seq)
        and inbox.fill(stmt, el.key, change, el.e, el.t, el.s, el.u) = 0 and outcome = 'APPLIED' then
    outcome := 'SUPERSEDED';
  end if;

  insert into inbox.applied as a (origin, seq_id, status, statement, partition, "offset", failure)
  values (el.o, el.s, outcome, stmt.id, its_partition, el.f, why)
  on conflict do nothing;
  if found and outcome = 'PARKED' then
    insert into inbox.parked (origin, seq_id, relation, key, reason, message, change)
    values (el.o, el.s, stmt.relation, el.old_key, 'KEY_SHIFT', why, change)
    on conflict do nothing;
  end if;
  perform inbox.settle_shifts(stmt, el.key);
end
$function$
;

CREATE OR REPLACE FUNCTION inbox.apply_rows(stmt inbox.statement, changes json, its_partition integer)
 RETURNS integer[]
 LANGUAGE plpgsql
AS $function$
declare
  old_keys text[];
  winners integer[];
  partials integer[];
  singles integer[];
  lost integer[];
  touched text[];
  single record;
begin
  if strpos(changes::text, '"~x":true') > 0 then
    execute stmt.old_keys into old_keys using changes;
  end if;
  execute stmt.guard into winners, partials, singles, lost, touched
    using changes, stmt.relation, old_keys, stmt.id, its_partition;
  if winners is not null then
    execute stmt.consumer_query using changes, winners;
  end if;
  if partials is not null then
    execute stmt.partial using changes, partials;
  end if;
  if singles is not null then
    for single in
      select e.change from unnest(singles) with ordinality as s(i, place)
      join json_array_elements(changes) with ordinality as e(change, i) on e.i = s.i order by s.place
    loop
      perform inbox.apply_one(stmt, single.change, its_partition);
    end loop;
  end if;
  if lost is not null then
    lost := inbox.fill_late(stmt, changes, lost);
  end if;
  if exists (select from inbox.shift s where s.relation = stmt.relation) then
    perform inbox.settle_shifts(stmt, k.key)
    from (select distinct x.key from inbox.shift x where x.relation = stmt.relation and x.key = any(touched) order by x.key) as k;
  end if;
  return lost;
end
$function$
;

CREATE OR REPLACE FUNCTION inbox.behind_of(behind jsonb, its_epoch integer, its_time bigint, its_seq bigint, uncarried jsonb)
 RETURNS jsonb
 LANGUAGE sql
 IMMUTABLE
RETURN (SELECT jsonb_object_agg(name.name, COALESCE((behind_of.behind -> name.name), jsonb_build_array(behind_of.its_epoch, behind_of.its_time, behind_of.its_seq))) AS jsonb_object_agg FROM jsonb_object_keys(behind_of.uncarried) name(name))
;

CREATE OR REPLACE FUNCTION inbox.fill(stmt inbox.statement, its_key text, change json, its_epoch integer, its_time bigint, its_seq bigint, uncarried jsonb)
 RETURNS integer
 LANGUAGE plpgsql
AS $function$
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
  execute stmt.fill using json_build_array(change), names;
  update inbox.row_version r
  set behind = r.behind || (select jsonb_object_agg(name, jsonb_build_array(its_epoch, its_time, its_seq)) from unnest(names) as name)
  where r.relation = stmt.relation and r.key = its_key;
  return cardinality(names);
end
$function$
;

CREATE OR REPLACE FUNCTION inbox.fill_late(stmt inbox.statement, changes json, lost integer[])
 RETURNS integer[]
 LANGUAGE plpgsql
AS $function$
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
$function$
;

CREATE OR REPLACE FUNCTION inbox.holds(its_group text, its_topic text, its_partition integer, its_term bigint)
 RETURNS boolean
 LANGUAGE plpgsql
AS $function$
begin
  perform 1 from inbox.position p
  where p.consumer_group = its_group and p.topic = its_topic and p.partition = its_partition and p.term = its_term
  for update;
  return found;
end
$function$
;

CREATE OR REPLACE FUNCTION inbox.is_current(stmt inbox.statement)
 RETURNS boolean
 LANGUAGE plpgsql
AS $function$
begin
  perform pg_advisory_xact_lock_shared(7161, stmt.relation);
  perform 1 from outbox.relation r
  where r.id = stmt.relation and r.revision = stmt.revision and r.state = 'ACTIVE'
    and inbox.shape_of(stmt.schema_name, stmt.table_name) is not distinct from stmt.target_shape;
  return found;
end
$function$
;

CREATE OR REPLACE FUNCTION inbox.leave(stmt inbox.statement, its_key text, change json, its_origin smallint, its_epoch integer, its_time bigint, its_seq bigint)
 RETURNS text
 LANGUAGE plpgsql
AS $function$
declare
  found_rows integer;
  gone integer;
begin
  perform 1 from inbox.row_version r
  where r.relation = stmt.relation and r.key = its_key
    and (its_epoch, its_time, its_seq) > (r.epoch, r.time, r.seq);
  if not found then return 'settled'; end if;
  insert into inbox.shift (relation, key, origin, seq_id, epoch, time, change)
  values (stmt.relation, its_key, its_origin, its_seq, its_epoch, its_time, change)
  on conflict do nothing;
  execute stmt.leave into found_rows, gone using json_build_array(change);
  if gone > 0 then
    update inbox.row_version r set deleted = true, behind = null
    where r.relation = stmt.relation and r.key = its_key;
    update inbox.shift x set taken = true
    where x.relation = stmt.relation and x.key = its_key and x.origin = its_origin and x.seq_id = its_seq;
    return 'left';
  end if;
  return case when found_rows > 0 then 'shifted' else 'absent' end;
end
$function$
;

CREATE OR REPLACE FUNCTION inbox.park(its_group text, its_topic text, its_partition integer, its_term bigint, statement_id integer, changes json)
 RETURNS text
 LANGUAGE plpgsql
AS $function$
declare
  stmt inbox.statement;
begin
  if not inbox.holds(its_group, its_topic, its_partition, its_term) then return 'FENCED'; end if;
  select s.* into stmt from inbox.statement s where s.id = statement_id;
  if not inbox.is_current(stmt) then return 'STALE'; end if;
  with c as (
    select distinct on (x."~o", x."~s") x.*, e.change
    from json_array_elements(changes) as e(change)
    cross join lateral json_to_record(e.change)
      as x("~o" smallint, "~s" bigint, "~f" bigint, "~reason" text, "~message" text)
  ), logged as (
    insert into inbox.applied (origin, seq_id, status, statement, partition, "offset", failure)
    select c."~o", c."~s", 'PARKED', statement_id, its_partition, c."~f", c."~reason" || ': ' || c."~message" from c
    on conflict do nothing
    returning origin, seq_id
  )
  insert into inbox.parked (origin, seq_id, relation, reason, message, change)
  select c."~o", c."~s", stmt.relation, c."~reason", c."~message", c.change
  from c join logged l on l.origin = c."~o" and l.seq_id = c."~s"
  on conflict do nothing;
  return 'OK';
end
$function$
;

CREATE OR REPLACE FUNCTION inbox.settle(its_origin smallint, its_seq_id bigint)
 RETURNS void
 LANGUAGE sql
BEGIN ATOMIC
 DELETE FROM inbox.parked p
   WHERE ((p.origin = settle.its_origin) AND (p.seq_id = settle.its_seq_id) AND (p.reason = 'KEY_SHIFT'::text));
 UPDATE inbox.applied a SET status = 'APPLIED'::text, failure = NULL::text, applied_at = clock_timestamp()
   WHERE ((a.origin = settle.its_origin) AND (a.seq_id = settle.its_seq_id) AND (a.status = 'PARKED'::text) AND (a.failure ~~ 'KEY_SHIFT%'::text));
END
;

CREATE OR REPLACE FUNCTION inbox.settle_shifts(stmt inbox.statement, its_key text)
 RETURNS void
 LANGUAGE plpgsql
AS $function$
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
$function$
;

CREATE OR REPLACE FUNCTION inbox.shape_of(schema_name text, table_name text)
 RETURNS uuid
 LANGUAGE plpgsql
 STABLE
AS $function$
begin
  return (
    select md5(string_agg(format('%s %s:%s %s %s%s', a.attname, a.atttypid, a.atttypmod, a.attnotnull, a.attgenerated, a.attidentity), ',' order by a.attnum))::uuid
    from pg_class c
    join pg_namespace n on n.oid = c.relnamespace
    join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    where n.nspname = schema_name and c.relname = table_name
  );
end
$function$
;

CREATE OR REPLACE FUNCTION outbox.count_revision()
 RETURNS trigger
 LANGUAGE plpgsql
AS $function$
begin
  new.revision := old.revision + 1;
  return new;
end
$function$
;

CREATE OR REPLACE FUNCTION outbox.declare_key(its_source text, schema_name text, table_name text, key_columns text[])
 RETURNS bigint
 LANGUAGE plpgsql
 SET lock_timeout TO '30s'
AS $function$
declare
  r outbox.relation;
  target regclass;
  unknown text[];
  replayed bigint := 0;
begin
  select * into r from outbox.meet(its_source, schema_name, table_name);
  perform pg_advisory_xact_lock(7161, r.id);
  select * into r from outbox.relation x where x.id = r.id for update;
  if r.key_columns = declare_key.key_columns then return 0; end if;

  select array_agg(name) into unknown from unnest(declare_key.key_columns) as name where not name = any(r.columns);
  if cardinality(r.columns) > 0 and unknown is not null then
    raise exception 'no change of %.% carries the column %', r.source_schema, r.source_table, array_to_string(unknown, ', ')
      using errcode = 'P0001', hint = format('take from: %s', array_to_string(r.columns, ', '));
  end if;

  target := to_regclass(format('%I.%I', r.target_schema, r.target_table));
  if target is not null and r.created then
    replayed := outbox.rebuild(r, target, declare_key.key_columns);
  elsif target is not null and not exists (
    select from pg_index i
    where i.indrelid = target and i.indisunique and i.indimmediate and i.indpred is null and i.indexprs is null
      and (select array_agg(a.attname::text order by a.attname) from pg_attribute a
           join unnest(i.indkey::int2[]) with ordinality as k(attnum, place) on k.attnum = a.attnum and k.place <= i.indnkeyatts
           where a.attrelid = target)
        = (select array_agg(name order by name) from unnest(declare_key.key_columns) as name)
  ) then
    raise exception 'the target table %.% has no unique index on (%)', r.target_schema, r.target_table, array_to_string(declare_key.key_columns, ', ')
      using errcode = 'P0001', hint = format('create unique index on %s (%s)', target, array_to_string(declare_key.key_columns, ', '));
  elsif r.key_columns is distinct from declare_key.key_columns and exists (select from inbox.statement s where s.relation = r.id) then
    raise exception 'changes of %.% were already applied with %', r.source_schema, r.source_table,
      coalesce('the key ' || array_to_string(r.key_columns, ', '), 'no key')
      using errcode = 'P0001', hint = 'the table is not of this service''s making: load it anew under another name, then declare the key';
  end if;

  update outbox.relation x
  set key_columns = declare_key.key_columns, known_from = 'registered'
  where x.id = r.id;
  update auditlog.producer_log p
  set row_key = outbox.row_key_of(coalesce(p.clean_payload::json, p.producer_payload), p.operation, p.table_name, declare_key.key_columns)
  where p.schema_name = r.source_schema and p.table_name = r.source_table;
  return replayed;
end
$function$
;

CREATE OR REPLACE FUNCTION outbox.lane_of(lanes smallint, schema_name text, table_name text, row_key text)
 RETURNS smallint
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE
RETURN ((((('x'::text || "left"(md5(((((schema_name || '.'::text) || table_name) || chr(31)) || COALESCE(row_key, ''::text))), 8)))::bit(32))::bigint % (lanes)::bigint))::smallint
;

CREATE OR REPLACE FUNCTION outbox.meet(its_source text, schema_name text, table_name text)
 RETURNS SETOF outbox.relation
 LANGUAGE plpgsql
AS $function$
begin
  return query select * from outbox.relation where source_schema = schema_name and source_table = table_name;
  if found then return; end if;
  insert into outbox.relation (source, source_schema, source_table, target_schema, target_table, known_from, key_columns)
  select its_source, schema_name, table_name, schema_name, table_name,
         case when to_regclass(format('%I.%I', schema_name, table_name)) is null then 'payload' else 'target' end,
         outbox.primary_key_of(schema_name, table_name)
  on conflict (source_schema, source_table) do nothing;
  return query select * from outbox.relation where source_schema = schema_name and source_table = table_name;
end
$function$
;

CREATE OR REPLACE FUNCTION outbox.primary_key_of(schema_name text, table_name text)
 RETURNS text[]
 LANGUAGE sql
 STABLE
RETURN (SELECT array_agg((a.attname)::text ORDER BY k.place) AS array_agg FROM ((((pg_class c JOIN pg_namespace n ON ((n.oid = c.relnamespace))) JOIN pg_index i ON (((i.indrelid = c.oid) AND i.indisprimary))) CROSS JOIN LATERAL unnest((i.indkey)::smallint[]) WITH ORDINALITY k(attnum, place)) JOIN pg_attribute a ON (((a.attrelid = c.oid) AND (a.attnum = k.attnum) AND (k.place <= i.indnkeyatts)))) WHERE ((n.nspname = primary_key_of.schema_name) AND (c.relname = primary_key_of.table_name)))
;

CREATE OR REPLACE FUNCTION outbox.rebuild(r outbox.relation, target regclass, new_key text[])
 RETURNS bigint
 LANGUAGE plpgsql
AS $function$
declare
  ddl text;
  replayed bigint;
begin
  execute format('truncate %s', target);
  for ddl in
    select format('alter table %s drop constraint %I', target, c.conname)
    from pg_constraint c where c.conrelid = target and c.contype = 'p'
  loop
    execute ddl;
  end loop;
  for ddl in
    select format('alter table %s alter column %I drop not null', target, a.attname)
    from pg_attribute a where a.attrelid = target and a.attnum > 0 and a.attnotnull and not a.attisdropped
  loop
    execute ddl;
  end loop;
  execute format('alter table %s add primary key (%s)', target,
                 (select string_agg(quote_ident(name), ', ' order by place) from unnest(new_key) with ordinality as k(name, place)));
  delete from inbox.owed o where o.relation = r.id;
  delete from inbox.shift s where s.relation = r.id;
  delete from inbox.parked k where k.relation = r.id;
  delete from inbox.row_version v where v.relation = r.id;
  with forgotten as (
    delete from inbox.applied a using auditlog.producer_log p
    where a.origin = p.origin and a.seq_id = p.seq_id and p.schema_name = r.source_schema and p.table_name = r.source_table
    returning p.seq_id, octet_length(coalesce(p.clean_payload, p.producer_payload::text)) as bytes,
      outbox.row_key_of(coalesce(p.clean_payload::json, p.producer_payload), p.operation, p.table_name, new_key) as row_key
  ), again as (
    insert into outbox.event (lane, position, seq_id, bytes)
    select outbox.lane_of(d.lanes, r.source_schema, r.source_table, f.row_key), nextval('outbox.position'), f.seq_id, f.bytes
    from (select pg_current_xact_id()) x cross join forgotten f cross join outbox.database d order by f.seq_id
    returning seq_id
  ), back as (
    update auditlog.settled s set up_to = least(s.up_to, (select min(seq_id) from again) - 1)
    where exists (select from again)
  )
  select count(*) into replayed from again;
  return replayed;
end
$function$
;

CREATE OR REPLACE FUNCTION outbox.row_key_of(payload json, operation text, table_name text, key_columns text[])
 RETURNS text
 LANGUAGE sql
 IMMUTABLE
RETURN (SELECT CASE WHEN bool_and((v.value IS NOT NULL)) THEN (('['::text || string_agg((to_json(rtrim(v.value)))::text, ','::text ORDER BY k.place)) || ']'::text) ELSE NULL::text END AS "case" FROM ((unnest(row_key_of.key_columns) WITH ORDINALITY k(name, place) CROSS JOIN LATERAL (SELECT (COALESCE((row_key_of.payload -> 'DATA'::text), ((row_key_of.payload -> row_key_of.table_name) -> row_key_of.operation)) -> k.name) AS node) n) CROSS JOIN LATERAL (SELECT CASE json_typeof(n.node) WHEN 'object'::text THEN (n.node ->> 'old'::text) WHEN 'null'::text THEN NULL::text ELSE (n.node #>> '{}'::text[]) END AS value) v))
;

CREATE TRIGGER relation_revision BEFORE UPDATE ON outbox.relation FOR EACH ROW EXECUTE FUNCTION outbox.count_revision();
