-- All migrations together, made by `npm run cli -- schema dump`; a test fails when it is stale.

create sequence auditlog.action_id_seq as bigint cache 1;

create sequence auditlog.rejected_request_id_seq as bigint cache 1;

create sequence inbox.receipt_number as bigint cache 1;

create sequence inbox.statement_id_seq as integer cache 1;

create sequence outbox.notice_id_seq as bigint cache 1;

create sequence outbox."position" as bigint cache 1;

create sequence outbox.relation_id_seq as integer cache 1;

create table auditlog.action (
  id bigint generated always as identity not null,
  at timestamp with time zone default clock_timestamp() not null,
  actor text not null,
  command text not null,
  origin smallint,
  seq_id bigint,
  relation text,
  before text,
  after text,
  note text,
  outcome text,
  CHECK ((command = ANY (ARRAY['edit'::text, 'retry'::text, 'skip'::text, 'publish'::text, 'resume'::text, 'stop'::text, 'policy'::text]))),
  PRIMARY KEY (id)
);

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
  kind text,
  origin smallint,
  PRIMARY KEY ("position"),
  CHECK ((producer_publish_status = ANY (ARRAY['PENDING'::text, 'PUBLISHED'::text, 'RETRYING'::text, 'FAILED'::text])))
) with (autovacuum_vacuum_scale_factor=0.02, autovacuum_vacuum_threshold=10000, autovacuum_vacuum_insert_scale_factor=0.05, autovacuum_analyze_scale_factor=0.05);

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

create table auditlog.retention (
  the_only boolean default true not null,
  behind bigint default 0 not null,
  dropped bigint default 0 not null,
  begun_at timestamp with time zone default '-infinity'::timestamp with time zone not null,
  PRIMARY KEY (the_only),
  CHECK (the_only)
) with (fillfactor=50);

create table auditlog.settled (
  the_only boolean default true not null,
  up_to bigint default 0 not null,
  PRIMARY KEY (the_only),
  CHECK (the_only)
) with (fillfactor=50, autovacuum_vacuum_scale_factor=0, autovacuum_vacuum_threshold=1000);

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
  receipt bigint,
  PRIMARY KEY (origin, seq_id),
  CHECK ((status = ANY (ARRAY['APPLIED'::text, 'SUPERSEDED'::text, 'PARKED'::text, 'RETRYING'::text, 'FAILED'::text, 'SKIPPED'::text])))
) with (autovacuum_vacuum_scale_factor=0.02, autovacuum_vacuum_threshold=10000, autovacuum_vacuum_insert_scale_factor=0.05, autovacuum_analyze_scale_factor=0.05);

create table inbox.owed (
  relation integer not null,
  image uuid not null,
  n bigint not null,
  PRIMARY KEY (relation, image)
) with (autovacuum_vacuum_scale_factor=0, autovacuum_vacuum_threshold=5000);

create table inbox.parked (
  origin smallint not null,
  seq_id bigint not null,
  relation integer not null,
  key text,
  epoch integer not null,
  "time" bigint not null,
  reason text not null,
  sqlstate text,
  message text not null,
  attempts smallint default 0 not null,
  waits integer default 0 not null,
  retry_at timestamp with time zone,
  topic text not null,
  record_key text,
  payload text not null,
  traceparent text,
  change json,
  told_at timestamp with time zone,
  parked_at timestamp with time zone default clock_timestamp() not null,
  PRIMARY KEY (origin, seq_id)
) with (autovacuum_vacuum_scale_factor=0, autovacuum_vacuum_threshold=1000);

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
) with (fillfactor=50, autovacuum_vacuum_scale_factor=0, autovacuum_vacuum_threshold=1000);

create table inbox.receipt (
  origin smallint not null,
  seq_id bigint not null,
  number bigint not null,
  noted_at timestamp with time zone default clock_timestamp() not null,
  PRIMARY KEY (origin, seq_id)
) with (fillfactor=80, autovacuum_vacuum_scale_factor=0, autovacuum_vacuum_threshold=20000, autovacuum_vacuum_insert_scale_factor=0.2);

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
) with (fillfactor=80, autovacuum_vacuum_scale_factor=0.02, autovacuum_vacuum_threshold=10000, autovacuum_analyze_scale_factor=0.05);

create table inbox.shift (
  relation integer not null,
  key text not null,
  origin smallint not null,
  seq_id bigint not null,
  epoch integer not null,
  "time" bigint not null,
  change json not null,
  past jsonb default '[]'::jsonb not null,
  taken boolean default false not null,
  PRIMARY KEY (relation, key, epoch, "time", seq_id, origin)
);

create table inbox.shipper (
  origin smallint not null,
  holder text not null,
  held_until timestamp with time zone not null,
  PRIMARY KEY (origin)
) with (fillfactor=50);

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
  CHECK (((lanes >= 1) AND (lanes <= 9999))),
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
  origin smallint,
  topic text,
  head text,
  CHECK ((kind = ANY (ARRAY['change'::text, 'retry'::text, 'error'::text]))),
  PRIMARY KEY (lane, "position")
) with (autovacuum_vacuum_scale_factor=0, autovacuum_vacuum_threshold=20000, autovacuum_vacuum_insert_scale_factor=0.2);

create table outbox.former_origin (
  origin smallint not null,
  until timestamp with time zone default clock_timestamp() not null,
  PRIMARY KEY (origin)
);

create table outbox.lane (
  lane smallint not null,
  kind text default 'change'::text not null,
  holder text,
  term bigint default 0 not null,
  held_until timestamp with time zone default '-infinity'::timestamp with time zone not null,
  floor bigint default 0 not null,
  CHECK ((kind = ANY (ARRAY['change'::text, 'retry'::text, 'error'::text]))),
  PRIMARY KEY (lane)
) with (fillfactor=50, autovacuum_vacuum_scale_factor=0, autovacuum_vacuum_threshold=500);

create table outbox.notice (
  channel text not null,
  id bigint generated always as identity not null,
  kind text not null,
  origin smallint,
  seq_id bigint,
  relation text,
  side text,
  reason text,
  sqlstate text,
  made_at timestamp with time zone default clock_timestamp() not null,
  CHECK ((kind = ANY (ARRAY['FAILED'::text, 'STOPPED'::text, 'REJECTED'::text]))),
  PRIMARY KEY (channel, id)
);

create table outbox.notice_channel (
  channel text not null,
  holder text,
  term bigint default 0 not null,
  held_until timestamp with time zone default '-infinity'::timestamp with time zone not null,
  asked_at timestamp with time zone default clock_timestamp() not null,
  batch jsonb,
  tries smallint default 0 not null,
  quiet interval default '00:00:00'::interval not null,
  told_at timestamp with time zone default '-infinity'::timestamp with time zone not null,
  next_at timestamp with time zone default '-infinity'::timestamp with time zone not null,
  CHECK ((channel = ANY (ARRAY['webhook'::text, 'mail'::text]))),
  PRIMARY KEY (channel)
) with (fillfactor=50);

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
  stopped_by text,
  stopped_at timestamp with time zone,
  queue_closed_until timestamp with time zone,
  on_refusal text default 'park'::text not null,
  revision integer default 1 not null,
  met_at timestamp with time zone default clock_timestamp() not null,
  CHECK ((known_from = ANY (ARRAY['registered'::text, 'target'::text, 'payload'::text]))),
  CHECK ((on_refusal = ANY (ARRAY['park'::text, 'skip'::text]))),
  PRIMARY KEY (id),
  UNIQUE (source_schema, source_table),
  CHECK ((state = ANY (ARRAY['ACTIVE'::text, 'STOPPED'::text]))),
  CHECK ((stopped_by = ANY (ARRAY['failure'::text, 'operator'::text])))
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
) with (autovacuum_vacuum_scale_factor=0.02, autovacuum_vacuum_threshold=10000, autovacuum_vacuum_insert_scale_factor=0.05, autovacuum_analyze_scale_factor=0.05);

create table auditlog.producer_log_000000 partition of auditlog.producer_log FOR VALUES FROM ('0') TO ('5000000');

create table auditlog.producer_log_000001 partition of auditlog.producer_log FOR VALUES FROM ('5000000') TO ('10000000');

create table auditlog.producer_log_000002 partition of auditlog.producer_log FOR VALUES FROM ('10000000') TO ('15000000');

create table auditlog.producer_log_default partition of auditlog.producer_log DEFAULT;

CREATE INDEX action_change ON auditlog.action USING btree (seq_id, origin) WHERE (seq_id IS NOT NULL);

CREATE INDEX action_relation ON auditlog.action USING btree (relation, id) WHERE (seq_id IS NULL);

CREATE INDEX applied_not_plainly ON inbox.applied USING btree (status, seq_id) WHERE (status <> 'APPLIED'::text);

CREATE INDEX parked_due ON inbox.parked USING btree (retry_at) WHERE (retry_at IS NOT NULL);

CREATE INDEX parked_row ON inbox.parked USING btree (relation, key, epoch, "time", seq_id);

CREATE INDEX publish_log_not_published ON auditlog.publish_log USING btree (producer_publish_status, seq_id) WHERE (producer_publish_status <> 'PUBLISHED'::text);

CREATE INDEX rejected_request_waiting ON auditlog.rejected_request USING btree (id) WHERE (state = 'WAITING'::text);

CREATE INDEX row_version_behind ON inbox.row_version USING btree (relation) WHERE (behind IS NOT NULL);

CREATE INDEX row_version_parked ON inbox.row_version USING btree (relation) WHERE parked;

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
 SELECT p.seq_id,
    p.origin,
    p.schema_name,
    p.table_name,
    p.operation,
    l.producer_publish_status,
    l.producer_failure_log,
    l.producer_publish_time,
    NULL::text AS consumer_deploy_status,
    NULL::text AS consumer_failure_log,
    NULL::timestamp with time zone AS consumer_update_time
   FROM (auditlog.producer_log p
     JOIN auditlog.publish_log l ON (((l.seq_id = p.seq_id) AND l.latest)))
  WHERE ((l.producer_publish_status = 'FAILED'::text) AND (l.kind IS NULL) AND (( SELECT a.seq_id
           FROM inbox.applied a
          WHERE ((a.origin = p.origin) AND (a.seq_id = p.seq_id))) IS NULL))
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

create view auditlog.partition as
 SELECT c.oid AS relid,
    (c.relname)::text AS name,
    (b.bound[1])::bigint AS low,
    ((b.bound[2])::bigint - 1) AS high
   FROM ((pg_inherits i
     JOIN pg_class c ON ((c.oid = i.inhrelid)))
     CROSS JOIN LATERAL ( SELECT regexp_match(pg_get_expr(c.relpartbound, c.oid), 'FROM \(''(\d+)''\) TO \(''(\d+)''\)'::text) AS bound) b)
  WHERE ((i.inhparent = ('auditlog.producer_log'::regclass)::oid) AND (b.bound IS NOT NULL));

create view auditlog.pending as
 SELECT p.seq_id,
    p.origin,
    p.schema_name,
    p.table_name,
    p.operation,
    p.received_at,
    COALESCE((l.producer_publish_status = 'PUBLISHED'::text), false) AS published,
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
            x.latest,
            x.kind,
            x.origin
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
           FROM auditlog.settled)) AND ((p.seq_id + 1) <= '9000000000000000000'::bigint)) AND ((l."position" IS NULL) OR ((a.seq_id IS NULL) AND ((l.producer_publish_status <> 'FAILED'::text) OR (l.kind IS NOT NULL)))));

create view outbox.own_origin as
 SELECT database.origin
   FROM outbox.database
UNION
 SELECT former_origin.origin
   FROM outbox.former_origin;

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

CREATE OR REPLACE FUNCTION auditlog.drop_partition(up_to bigint)
 RETURNS text
 LANGUAGE plpgsql
 SET lock_timeout TO '100ms'
AS $function$
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
$function$
;

CREATE OR REPLACE FUNCTION auditlog.kept(low bigint, high bigint)
 RETURNS SETOF bigint
 LANGUAGE sql
 STABLE
BEGIN ATOMIC
 SELECT k.seq_id
    FROM (outbox.own_origin o
      JOIN inbox.parked k ON (((k.origin = o.origin) AND ((k.seq_id >= kept.low) AND (k.seq_id <= kept.high)))))
 UNION
  SELECT a.seq_id
    FROM inbox.applied a
   WHERE ((a.status = ANY (ARRAY['PARKED'::text, 'RETRYING'::text, 'FAILED'::text])) AND (a.status <> 'APPLIED'::text) AND ((a.seq_id >= kept.low) AND (a.seq_id <= kept.high)))
 UNION
  SELECT l.seq_id
    FROM auditlog.publish_log l
   WHERE ((l.producer_publish_status = ANY (ARRAY['PENDING'::text, 'RETRYING'::text, 'FAILED'::text])) AND (l.producer_publish_status <> 'PUBLISHED'::text) AND ((l.seq_id >= kept.low) AND (l.seq_id <= kept.high)) AND l.latest)
 UNION
  SELECT e.seq_id
    FROM outbox.event e
   WHERE (((e.seq_id >= kept.low) AND (e.seq_id <= kept.high)) AND (e.origin IS NULL));
END
;

CREATE OR REPLACE FUNCTION auditlog.last_before(cut timestamp with time zone)
 RETURNS bigint
 LANGUAGE plpgsql
 STABLE
AS $function$
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
$function$
;

CREATE OR REPLACE FUNCTION inbox.apply(its_group text, its_topic text, partitions integer[], terms bigint[], statement_id integer, changes json, nexts bigint[], lasts bigint[], last_origins smallint[], last_seq_ids bigint[], OUT outcome text, OUT superseded integer[], OUT held integer[])
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
$function$
;

CREATE OR REPLACE FUNCTION inbox.apply_each(stmt inbox.statement, changes json, its_partition integer, course jsonb)
 RETURNS void
 LANGUAGE plpgsql
AS $function$
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
$function$
;

CREATE OR REPLACE FUNCTION inbox.apply_item(stmt inbox.statement, item inbox.item, its_key text, its_partition integer, course jsonb)
 RETURNS void
 LANGUAGE plpgsql
AS $function$
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
$function$
;

CREATE OR REPLACE FUNCTION inbox.apply_item_once(stmt inbox.statement, item inbox.item, its_partition integer)
 RETURNS void
 LANGUAGE plpgsql
AS $function$
begin
  if item.q is not null then
    raise exception using errcode = item.q ->> 'sqlstate', message = item.q ->> 'message';
  elsif stmt.keyed then
    perform inbox.apply_one(stmt, item.change, its_partition, true);
  else
    perform inbox.apply_counts(stmt, json_build_array(item.change), its_partition);
  end if;
end
$function$
;

CREATE OR REPLACE FUNCTION inbox.apply_one(stmt inbox.statement, change json, its_partition integer, alone boolean)
 RETURNS text
 LANGUAGE plpgsql
AS $function$
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
$function$
;

CREATE OR REPLACE FUNCTION inbox.apply_rows(stmt inbox.statement, changes json, its_partition integer, OUT lost integer[], OUT held integer[])
 RETURNS record
 LANGUAGE plpgsql
AS $function$
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
$function$
;

CREATE OR REPLACE FUNCTION inbox.apply_singly(its_group text, its_topic text, its_partition integer, its_term bigint, statement_id integer, changes json, course jsonb, its_next bigint, its_last bigint, its_last_origin smallint, its_last_seq_id bigint)
 RETURNS text
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
  if not inbox.holds(its_group, its_topic, its_partition, its_term) then return 'FENCED'; end if;
  select s.* into stmt from inbox.statement s where s.id = statement_id;
  if not inbox.is_current(stmt) then return 'STALE'; end if;
  perform inbox.apply_each(stmt, changes, its_partition, course);
  perform inbox.move_position(its_group, its_topic, its_partition, its_next, its_last, its_last_origin, its_last_seq_id);
  return 'OK';
end
$function$
;

CREATE OR REPLACE FUNCTION inbox.behind_of(behind jsonb, its_epoch integer, its_time bigint, its_seq bigint, uncarried jsonb)
 RETURNS jsonb
 LANGUAGE sql
 IMMUTABLE
RETURN (SELECT jsonb_object_agg(name.name, COALESCE((behind_of.behind -> name.name), jsonb_build_array(behind_of.its_epoch, behind_of.its_time, behind_of.its_seq))) AS jsonb_object_agg FROM jsonb_object_keys(behind_of.uncarried) name(name))
;

CREATE OR REPLACE FUNCTION inbox.checks_of(schema_name text, table_name text)
 RETURNS json
 LANGUAGE plpgsql
 STABLE
 SET lock_timeout TO '3s'
AS $function$
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
$function$
;

CREATE OR REPLACE FUNCTION inbox.close_queue(its_relation integer, by text)
 RETURNS boolean
 LANGUAGE plpgsql
 SET lock_timeout TO '2s'
AS $function$
begin
  perform pg_advisory_xact_lock(7161, its_relation);
  update outbox.relation r set queue_closed_until = clock_timestamp() + interval '10 s'
  where r.id = its_relation and r.state = 'STOPPED' and r.stopped_by = by;
  return found;
end
$function$
;

CREATE OR REPLACE FUNCTION inbox.effect(query text, changes json, winners integer[])
 RETURNS void
 LANGUAGE plpgsql
 SET lock_timeout TO '3s'
AS $function$
begin
  execute query using changes, winners;
end
$function$
;

CREATE OR REPLACE FUNCTION inbox.effect_counts(query text, changes json, samples integer[], copies bigint[])
 RETURNS void
 LANGUAGE plpgsql
 SET lock_timeout TO '3s'
AS $function$
begin
  execute query using changes, samples, copies;
end
$function$
;

CREATE OR REPLACE FUNCTION inbox.effect_fill(query text, changes json, names text[])
 RETURNS void
 LANGUAGE plpgsql
 SET lock_timeout TO '3s'
AS $function$
begin
  execute query using changes, names;
end
$function$
;

CREATE OR REPLACE FUNCTION inbox.effect_left(query text, changes json, OUT found_rows integer, OUT gone integer)
 RETURNS record
 LANGUAGE plpgsql
 SET lock_timeout TO '3s'
AS $function$
begin
  execute query into found_rows, gone using changes;
end
$function$
;

CREATE OR REPLACE FUNCTION inbox.effect_uncounted(query text, images uuid[], nets bigint[], its_relation integer)
 RETURNS void
 LANGUAGE plpgsql
 SET lock_timeout TO '3s'
AS $function$
begin
  execute query using images, nets, its_relation;
end
$function$
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
  perform inbox.effect_fill(stmt.fill, json_build_array(change), names);
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

CREATE OR REPLACE FUNCTION inbox.guard(stmt inbox.statement, heads inbox.heads, old_keys text[], its_partition integer, OUT winners integer[], OUT partials integer[], OUT singles integer[], OUT lost integer[], OUT touched text[])
 RETURNS record
 LANGUAGE plpgsql
 SET enable_nestloop TO 'off'
AS $function$
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
$function$
;

CREATE OR REPLACE FUNCTION inbox.hold_back(stmt inbox.statement, changes json, late_ones integer[], OUT lost integer[], OUT held integer[])
 RETURNS record
 LANGUAGE plpgsql
AS $function$
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

CREATE OR REPLACE FUNCTION inbox.is_current(stmt inbox.statement, its_state text DEFAULT 'ACTIVE'::text)
 RETURNS boolean
 LANGUAGE plpgsql
AS $function$
begin
  perform pg_advisory_xact_lock_shared(7161, stmt.relation);
  perform 1 from outbox.relation r
  where r.id = stmt.relation and r.revision = stmt.revision and r.state = its_state
    and inbox.shape_of(stmt.schema_name, stmt.table_name) is not distinct from stmt.target_shape;
  return found;
end
$function$
;

CREATE OR REPLACE FUNCTION inbox.is_plain_queue(changes json)
 RETURNS boolean
 LANGUAGE plpgsql
AS $function$
declare
  there bigint;
begin
  select count(*) into there from (
    select from inbox.items(changes) i join inbox.parked p on p.origin = i.o and p.seq_id = i.s and p.reason = i.was
    where p.key is null and p.attempts = 0 for update of p
  ) as locked;
  return there = json_array_length(changes);
end
$function$
;

CREATE OR REPLACE FUNCTION inbox.is_refusal(sqlstate text)
 RETURNS boolean
 LANGUAGE sql
 IMMUTABLE
RETURN ((sqlstate = '42804'::text) OR ("left"(sqlstate, 2) <> ALL (ARRAY['08'::text, '25'::text, '26'::text, '28'::text, '3D'::text, '40'::text, '53'::text, '57'::text, '58'::text, 'F0'::text, 'XX'::text, '0A'::text, '3F'::text, '42'::text, '55'::text])))
;

CREATE OR REPLACE FUNCTION inbox.items(changes json)
 RETURNS SETOF inbox.item
 LANGUAGE sql
 STABLE
BEGIN ATOMIC
 SELECT e.change,
     (m."~i")::text AS "~i",
     m."~o",
     m."~s",
     m."~e",
     m."~t",
     COALESCE(m."~x", false) AS "coalesce",
     COALESCE(m."~w", false) AS "coalesce",
     m."~n",
     m."~y",
     m."~q",
     m."~op"
    FROM (json_array_elements(items.changes) e(change)
      CROSS JOIN LATERAL json_to_record(e.change) m("~i" integer, "~o" smallint, "~s" bigint, "~e" integer, "~t" bigint, "~x" boolean, "~w" boolean, "~n" integer, "~y" text, "~q" json, "~op" text))
   ORDER BY m."~e", m."~t", m."~s", m."~i";
END
;

CREATE OR REPLACE FUNCTION inbox.keep_receipts(wanted boolean)
 RETURNS void
 LANGUAGE plpgsql
AS $function$
begin
  if wanted = inbox.keeps_receipts() then return; end if;
  if not wanted then
    alter table inbox.applied disable trigger receipt_insert;
    alter table inbox.applied disable trigger receipt_update;
    return;
  end if;
  alter table inbox.applied enable trigger receipt_insert;
  alter table inbox.applied enable trigger receipt_update;
  insert into inbox.receipt (origin, seq_id, number)
  select a.origin, a.seq_id, (d.origin::bigint << 48) + nextval('inbox.receipt_number')
  from outbox.database d cross join inbox.applied a where a.origin not in (select o.origin from outbox.own_origin o)
  on conflict (origin, seq_id) do update set number = excluded.number;
end
$function$
;

CREATE OR REPLACE FUNCTION inbox.keeps_receipts()
 RETURNS boolean
 LANGUAGE sql
 STABLE
RETURN (SELECT (t.tgenabled <> 'D'::"char") FROM pg_trigger t WHERE ((t.tgrelid = ('inbox.applied'::regclass)::oid) AND (t.tgname = 'receipt_insert'::name)))
;

CREATE OR REPLACE FUNCTION inbox.kept_change(change json, moves boolean, record text)
 RETURNS json
 LANGUAGE sql
 IMMUTABLE
RETURN CASE WHEN (moves OR (octet_length(record) <= 1000000)) THEN (((change)::jsonb - '{~p,~k,~r,~w,~n,~y,~q}'::text[]))::json ELSE NULL::json END
;

CREATE OR REPLACE FUNCTION inbox.key_shift()
 RETURNS text
 LANGUAGE sql
 IMMUTABLE
RETURN 'the new key is written; at the old key stands a row that is not the before-image'::text
;

CREATE OR REPLACE FUNCTION inbox.leave(stmt inbox.statement, its_key text, change json, its_origin smallint, its_epoch integer, its_time bigint, its_seq bigint)
 RETURNS text
 LANGUAGE plpgsql
AS $function$
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
$function$
;

CREATE OR REPLACE FUNCTION inbox.leave_old_key(stmt inbox.statement, p inbox.parked)
 RETURNS void
 LANGUAGE plpgsql
AS $function$
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
$function$
;

CREATE OR REPLACE FUNCTION inbox.may_ship(its_origin smallint, its_holder text)
 RETURNS boolean
 LANGUAGE plpgsql
AS $function$
declare
  s inbox.shipper;
begin
  select * into s from inbox.shipper x where x.origin = its_origin;
  if s.holder <> its_holder and s.held_until > clock_timestamp() then return false; end if;
  if s.holder = its_holder and s.held_until > clock_timestamp() + interval '5 s' then return true; end if;
  insert into inbox.shipper as x (origin, holder, held_until)
  values (its_origin, its_holder, clock_timestamp() + interval '10 s')
  on conflict (origin) do update set holder = excluded.holder, held_until = excluded.held_until
  where x.holder = excluded.holder or x.held_until < clock_timestamp();
  return found;
end
$function$
;

CREATE OR REPLACE FUNCTION inbox.move_position(its_group text, its_topic text, its_partition integer, its_next bigint, its_last bigint, its_last_origin smallint, its_last_seq_id bigint)
 RETURNS void
 LANGUAGE plpgsql
AS $function$
begin
  if its_next is not null then
    update inbox.position p
    set next_offset = its_next, last_offset = coalesce(its_last, p.last_offset),
        last_origin = coalesce(its_last_origin, p.last_origin), last_seq_id = coalesce(its_last_seq_id, p.last_seq_id),
        waiting_since = null, waiting_for = null, waiting_seq_id = null
    where p.consumer_group = its_group and p.topic = its_topic and p.partition = its_partition;
  end if;
end
$function$
;

CREATE OR REPLACE FUNCTION inbox.no_statement(its_relation integer, its_topic text, its_destination text)
 RETURNS integer
 LANGUAGE sql
BEGIN ATOMIC
 INSERT INTO inbox.statement AS s (relation, revision, topicname, destination, schema_name, table_name, keyed, consumer_query, guard, leave)  SELECT r.id,
             0,
             no_statement.its_topic AS its_topic,
             no_statement.its_destination AS its_destination,
             r.target_schema,
             r.target_table,
             false,
             '',
             '',
             ''
            FROM outbox.relation r
           WHERE (r.id = no_statement.its_relation) ON CONFLICT(relation, revision, topicname, md5(consumer_query), md5(guard)) DO UPDATE SET leave = ''::text
   RETURNING s.id;
END
;

CREATE OR REPLACE FUNCTION inbox.note_receipts()
 RETURNS trigger
 LANGUAGE plpgsql
AS $function$
declare
  epoch constant bigint := (select d.origin::bigint << 48 from outbox.database d);
begin
  insert into inbox.receipt (origin, seq_id, number)
  select n.origin, n.seq_id, epoch + nextval('inbox.receipt_number')
  from noted n where n.origin not in (select o.origin from outbox.own_origin o)
  order by n.origin, n.seq_id
  on conflict (origin, seq_id) do update set number = excluded.number;
  return null;
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
$function$
;

CREATE OR REPLACE FUNCTION inbox.park_all(stmt inbox.statement, changes json, its_partition integer)
 RETURNS void
 LANGUAGE sql
BEGIN ATOMIC
 WITH c AS (
          SELECT DISTINCT ON (x."~o", x."~s") x."~o",
             x."~s",
             x."~e",
             x."~t",
             x."~f",
             x."~p",
             x."~k",
             x."~r",
             x."~reason",
             x."~message"
            FROM json_to_recordset(park_all.changes) x("~o" smallint, "~s" bigint, "~e" integer, "~t" bigint, "~f" bigint, "~p" text, "~k" text, "~r" text, "~reason" text, "~message" text)
         ), logged AS (
          INSERT INTO inbox.applied (origin, seq_id, status, statement, partition, "offset", failure)  SELECT c."~o",
                     c."~s",
                     'PARKED',
                     (park_all.stmt).id AS id,
                     park_all.its_partition AS its_partition,
                     c."~f",
                     ((c."~reason" || ': '::text) || c."~message")
                    FROM c ON CONFLICT DO NOTHING
           RETURNING applied.origin,
             applied.seq_id
         )
  INSERT INTO inbox.parked (origin, seq_id, relation, epoch, "time", reason, message, topic, record_key, payload, traceparent)  SELECT c."~o",
             c."~s",
             (park_all.stmt).relation AS relation,
             c."~e",
             c."~t",
             c."~reason",
             c."~message",
             (park_all.stmt).topicname AS topicname,
             c."~k",
             c."~p",
             c."~r"
            FROM (c
              JOIN logged l ON (((l.origin = c."~o") AND (l.seq_id = c."~s")))) ON CONFLICT DO NOTHING;
END
;

CREATE OR REPLACE FUNCTION inbox.park_refused(stmt inbox.statement, changes json, key_of jsonb, its_partition integer, course jsonb)
 RETURNS text[]
 LANGUAGE plpgsql
AS $function$
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
$function$
;

CREATE OR REPLACE FUNCTION inbox.publish_due(most integer)
 RETURNS integer
 LANGUAGE plpgsql
AS $function$
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
$function$
;

CREATE OR REPLACE FUNCTION inbox.refuse(stmt inbox.statement, item inbox.item, its_key text, state text, why text, its_partition integer, course jsonb)
 RETURNS void
 LANGUAGE plpgsql
AS $function$
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
$function$
;

CREATE OR REPLACE FUNCTION inbox.resume(its_relation integer, by text)
 RETURNS boolean
 LANGUAGE plpgsql
 SET lock_timeout TO '2s'
AS $function$
begin
  perform pg_advisory_xact_lock(7161, its_relation);
  perform 1 from outbox.relation r where r.id = its_relation and r.state = 'STOPPED' and r.stopped_by = by for update;
  if not found then return null; end if;
  if exists (select from inbox.parked p where p.relation = its_relation and p.reason = 'RELATION_STOPPED') then return false; end if;
  update outbox.relation r set state = 'ACTIVE', stop_reason = null, stopped_by = null, stopped_at = null, queue_closed_until = null where r.id = its_relation;
  return true;
end
$function$
;

CREATE OR REPLACE FUNCTION inbox.set_aside(stmt inbox.statement, change json, its_key text, its_reason text, its_sqlstate text, why text, its_partition integer, course jsonb)
 RETURNS void
 LANGUAGE plpgsql
AS $function$
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

CREATE OR REPLACE FUNCTION inbox.settle_parked(stmt inbox.statement, its_key text, its_epoch integer, its_time bigint, its_seq bigint, whole boolean, again boolean)
 RETURNS void
 LANGUAGE plpgsql
AS $function$
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
$function$
;

CREATE OR REPLACE FUNCTION inbox.settle_past(stmt inbox.statement, its_key text, before jsonb, its_epoch integer, its_time bigint, its_seq bigint, INOUT past jsonb, OUT images jsonb[], OUT came boolean)
 RETURNS record
 LANGUAGE plpgsql
AS $function$
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
$function$
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

CREATE OR REPLACE FUNCTION inbox.skip(its_origin smallint, its_seq_id bigint, note text)
 RETURNS text
 LANGUAGE plpgsql
 SET lock_timeout TO '2s'
AS $function$
declare
  p inbox.parked;
  stmt inbox.statement;
  was text;
begin
  select * into p from inbox.parked x where x.origin = its_origin and x.seq_id = its_seq_id and x.reason <> 'SKIPPED';
  if not found then return null; end if;
  -- The row's lock first, as whoever applies takes them.
  if p.key is not null then
    perform 1 from inbox.row_version r where r.relation = p.relation and r.key = p.key for update;
  end if;
  update inbox.parked x set reason = 'SKIPPED', retry_at = null
  where x.origin = its_origin and x.seq_id = its_seq_id and x.reason <> 'SKIPPED' and x.key is not distinct from p.key;
  if not found then return null; end if;
  select a.status into was from inbox.applied a where a.origin = its_origin and a.seq_id = its_seq_id;
  update inbox.applied a set status = 'SKIPPED', failure = 'SKIPPED: ' || note || coalesce('; ' || a.failure, ''), applied_at = clock_timestamp()
  where a.origin = its_origin and a.seq_id = its_seq_id;
  if p.key is not null then
    select s.* into stmt from inbox.applied a join inbox.statement s on s.id = a.statement where a.origin = its_origin and a.seq_id = its_seq_id;
    perform inbox.settle_parked(stmt, p.key, p.epoch, p.time, p.seq_id, false, true);
  end if;
  return was;
end
$function$
;

CREATE OR REPLACE FUNCTION inbox.stop(its_group text, its_topic text, its_partition integer, its_term bigint, its_relation integer, its_destination text, why text, changes json, its_next bigint, its_last bigint, its_last_origin smallint, its_last_seq_id bigint)
 RETURNS text
 LANGUAGE plpgsql
AS $function$
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
$function$
;

CREATE OR REPLACE FUNCTION inbox.stop_by_operator(its_relation integer, why text)
 RETURNS void
 LANGUAGE plpgsql
 SET lock_timeout TO '2s'
AS $function$
begin
  perform pg_advisory_xact_lock(7161, its_relation);
  update outbox.relation r
  set state = 'STOPPED', stop_reason = why, stopped_by = 'operator',
      stopped_at = case when r.state = 'STOPPED' then r.stopped_at else clock_timestamp() end
  where r.id = its_relation;
end
$function$
;

CREATE OR REPLACE FUNCTION inbox.supersede(stmt inbox.statement, p inbox.parked)
 RETURNS void
 LANGUAGE plpgsql
AS $function$
begin
  delete from inbox.parked x where x.origin = p.origin and x.seq_id = p.seq_id;
  if p.reason = 'SKIPPED' then return; end if;
  update inbox.applied a set status = 'SUPERSEDED', failure = a.failure || '; settled by a newer image of its row', applied_at = clock_timestamp()
  where a.origin = p.origin and a.seq_id = p.seq_id;
  if p.change ->> '~x' = 'true' then
    perform inbox.leave_old_key(stmt, p);
  end if;
end
$function$
;

CREATE OR REPLACE FUNCTION inbox.take_out(stmt inbox.statement, item inbox.item, was inbox.parked, its_key text, its_partition integer)
 RETURNS void
 LANGUAGE plpgsql
AS $function$
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
$function$
;

CREATE OR REPLACE FUNCTION inbox.take_up(statement_id integer, changes json, its_partition integer, its_state text, singly boolean, course jsonb)
 RETURNS text
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
$function$
;

CREATE OR REPLACE FUNCTION inbox.tell_failures(origins smallint[], seq_ids bigint[], course jsonb)
 RETURNS void
 LANGUAGE sql
BEGIN ATOMIC
 INSERT INTO outbox.event (lane, "position", seq_id, attempt, kind, bytes, origin, topic, head)  SELECT outbox.side_lane('error'::text, p.seq_id) AS side_lane,
             nextval('outbox."position"'::regclass) AS nextval,
             p.seq_id,
             p.attempts,
             'error',
             (octet_length(p.payload) + octet_length(h.head)),
             NULLIF(p.origin, d.origin) AS "nullif",
             (tell_failures.course ->> 'error_topic'::text),
             h.head
            FROM (((UNNEST(tell_failures.origins, tell_failures.seq_ids) f(origin, seq_id)
              JOIN inbox.parked p ON (((p.origin = f.origin) AND (p.seq_id = f.seq_id))))
              CROSS JOIN outbox.database d)
              CROSS JOIN LATERAL ( SELECT ((('"recipients":'::text || ((tell_failures.course -> 'recipients'::text))::text) || ',"error":'::text) || (json_build_object('code', p.reason, 'message', p.message, 'sqlstate', p.sqlstate, 'side', 'deploy', 'attempts', p.attempts))::text) AS head) h);
END
;

CREATE OR REPLACE FUNCTION inbox.waits_behind(its_relation integer, its_key text, its_epoch integer, its_time bigint, its_seq bigint)
 RETURNS boolean
 LANGUAGE sql
 STABLE
RETURN (EXISTS (SELECT FROM inbox.parked p WHERE ((p.relation = waits_behind.its_relation) AND (p.key = waits_behind.its_key) AND (ROW(p.epoch, p."time", p.seq_id) < ROW(waits_behind.its_epoch, waits_behind.its_time, waits_behind.its_seq)) AND (p.reason = ANY (ARRAY['REFUSED'::text, 'WAITING'::text, 'BEHIND'::text])))))
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
  elsif r.key_columns is distinct from declare_key.key_columns and exists (select from inbox.statement s where s.relation = r.id and s.revision > 0) then
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

CREATE OR REPLACE FUNCTION outbox.put_notice()
 RETURNS trigger
 LANGUAGE plpgsql
 SET plan_cache_mode TO 'force_generic_plan'
AS $function$
begin
  if tg_table_name = 'event' then
    with fact as materialized (
      select substring(new.head from '"side"\s*:\s*"([a-z]{1,20})"') as side,
             substring(new.head from '"code"\s*:\s*"([A-Z][A-Z0-9_]{0,62})"') as code,
             substring(new.head from '"sqlstate"\s*:\s*"([0-9A-Z]{5})"') as sqlstate
    )
    insert into outbox.notice (channel, kind, origin, seq_id, side, reason, sqlstate)
    select c.channel, 'FAILED', new.origin, new.seq_id, f.side, f.code, f.sqlstate
    from outbox.notice_channel c cross join fact f where c.asked_at > now() - interval '7 days';
  elsif tg_table_name = 'relation' then
    insert into outbox.notice (channel, kind, relation, reason)
    select c.channel, 'STOPPED', new.source_schema || '.' || new.source_table, 'RELATION_STOPPED'
    from outbox.notice_channel c where c.asked_at > now() - interval '7 days';
  else
    insert into outbox.notice (channel, kind)
    select c.channel, 'REJECTED' from outbox.notice_channel c where c.asked_at > now() - interval '7 days';
  end if;
  return null;
end
$function$
;

CREATE OR REPLACE FUNCTION outbox.raise_origin(its_origin smallint, past bigint, OUT was smallint, OUT past_now bigint, OUT settled_up_to bigint, OUT raised integer)
 RETURNS record
 LANGUAGE plpgsql
 SET lock_timeout TO '5s'
AS $function$
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
$function$
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

CREATE OR REPLACE FUNCTION outbox.refuse_rebuild()
 RETURNS trigger
 LANGUAGE plpgsql
AS $function$
begin
  if inbox.keeps_receipts() and exists (select from inbox.statement s where s.relation = old.id) then
    raise exception 'changes of %.% were already applied here, and this database does not have them', old.source_schema, old.source_table
      using errcode = 'P0001', hint = 'with two databases a key is declared in the second, before the first change of the table is applied';
  end if;
  return new;
end
$function$
;

CREATE OR REPLACE FUNCTION outbox.refuse_short_rebuild()
 RETURNS trigger
 LANGUAGE plpgsql
AS $function$
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
$function$
;

CREATE OR REPLACE FUNCTION outbox.remember_origin()
 RETURNS trigger
 LANGUAGE plpgsql
AS $function$
begin
  insert into outbox.former_origin (origin)
  select old.origin where exists (select from auditlog.producer_log) on conflict do nothing;
  return null;
end
$function$
;

CREATE OR REPLACE FUNCTION outbox.row_key_of(payload json, operation text, table_name text, key_columns text[])
 RETURNS text
 LANGUAGE sql
 IMMUTABLE
RETURN (SELECT CASE WHEN bool_and((v.value IS NOT NULL)) THEN (('['::text || string_agg((to_json(rtrim(v.value)))::text, ','::text ORDER BY k.place)) || ']'::text) ELSE NULL::text END AS "case" FROM ((unnest(row_key_of.key_columns) WITH ORDINALITY k(name, place) CROSS JOIN LATERAL (SELECT (COALESCE((row_key_of.payload -> 'DATA'::text), ((row_key_of.payload -> row_key_of.table_name) -> row_key_of.operation)) -> k.name) AS node) n) CROSS JOIN LATERAL (SELECT CASE json_typeof(n.node) WHEN 'object'::text THEN (n.node ->> 'old'::text) WHEN 'null'::text THEN NULL::text ELSE (n.node #>> '{}'::text[]) END AS value) v))
;

CREATE OR REPLACE FUNCTION outbox.set_lanes(wanted smallint, most integer, rest interval, OUT outcome text, OUT was smallint, OUT waiting integer)
 RETURNS record
 LANGUAGE plpgsql
 SET lock_timeout TO '2s'
AS $function$
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
$function$
;

CREATE OR REPLACE FUNCTION outbox.side_lane(kind text, seq_id bigint)
 RETURNS smallint
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE
RETURN ((CASE kind WHEN 'retry'::text THEN 10000 ELSE 20000 END + (seq_id % (4)::bigint)))::smallint
;

CREATE TRIGGER event_notice AFTER INSERT ON outbox.event FOR EACH ROW WHEN ((new.kind = 'error'::text)) EXECUTE FUNCTION outbox.put_notice();

CREATE TRIGGER receipt_insert AFTER INSERT ON inbox.applied REFERENCING NEW TABLE AS noted FOR EACH STATEMENT EXECUTE FUNCTION inbox.note_receipts();

CREATE TRIGGER receipt_update AFTER UPDATE ON inbox.applied REFERENCING NEW TABLE AS noted FOR EACH STATEMENT EXECUTE FUNCTION inbox.note_receipts();

CREATE TRIGGER refuse_rebuild BEFORE UPDATE ON outbox.relation FOR EACH ROW WHEN ((old.created AND (old.key_columns IS DISTINCT FROM new.key_columns))) EXECUTE FUNCTION outbox.refuse_rebuild();

CREATE TRIGGER refuse_short_rebuild BEFORE UPDATE ON outbox.relation FOR EACH ROW WHEN ((old.created AND (old.key_columns IS DISTINCT FROM new.key_columns))) EXECUTE FUNCTION outbox.refuse_short_rebuild();

CREATE TRIGGER rejected_request_notice AFTER INSERT ON auditlog.rejected_request FOR EACH ROW EXECUTE FUNCTION outbox.put_notice();

CREATE TRIGGER relation_notice AFTER UPDATE OF state ON outbox.relation FOR EACH ROW WHEN (((new.state = 'STOPPED'::text) AND (old.state <> 'STOPPED'::text) AND (new.stopped_by = 'failure'::text))) EXECUTE FUNCTION outbox.put_notice();

CREATE TRIGGER relation_revision BEFORE UPDATE ON outbox.relation FOR EACH ROW EXECUTE FUNCTION outbox.count_revision();

CREATE TRIGGER remember_origin AFTER UPDATE ON outbox.database FOR EACH ROW WHEN ((old.origin <> new.origin)) EXECUTE FUNCTION outbox.remember_origin();
