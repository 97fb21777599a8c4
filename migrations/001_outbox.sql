-- Up Migration

create schema outbox;

-- One row: what makes this database one origin. `lanes` is a constant of the database and not of a process: another
-- number would send half of all rows to another lane while events of the old lane still wait.
create table outbox.database (
  the_only boolean primary key default true check (the_only),
  origin smallint not null default 1 check (origin > 0),
  lanes smallint not null default 64 check (lanes between 1 and 9999)
);
insert into outbox.database default values;

-- seq_id and position come from here. cache 1, or a later change could get the smaller number (faults seen: F7e).
create sequence outbox.position as bigint cache 1;

-- The lane of a row. md5 and not hashtext: the value must be the same in every version and on every platform.
create function outbox.lane_of(lanes smallint, schema_name text, table_name text, row_key text) returns smallint
language sql immutable parallel safe
return (('x' || left(md5(schema_name || '.' || table_name || chr(31) || coalesce(row_key, '')), 8))::bit(32)::bigint
        % lanes)::smallint;

-- A relay's right to a lane. Retries and error records have lanes of their own, so that a topic which cannot be written
-- holds up nobody else; their order says nothing, since a row's version decides. fillfactor 50: renewing every half second must stay inside the page (HOT).
create table outbox.lane (
  lane smallint primary key,
  kind text not null default 'change' check (kind in ('change', 'retry', 'error')),
  holder text,
  term bigint not null default 0,
  held_until timestamptz not null default '-infinity',
  floor bigint not null default 0
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
insert into outbox.lane (lane) select generate_series(0, 63)::smallint;
insert into outbox.lane (lane, kind) select 10000 + n, 'retry' from generate_series(0, 3) as n;
insert into outbox.lane (lane, kind) select 20000 + n, 'error' from generate_series(0, 3) as n;

-- The lane of a retry or of an error record.
create function outbox.side_lane(kind text, seq_id bigint) returns smallint
language sql immutable parallel safe
return (case kind when 'retry' then 10000 else 20000 end + seq_id % 4)::smallint;

-- Relays that are alive: how many there are decides the fair share of lanes of each.
create table outbox.relay (
  holder text primary key,
  alive_until timestamptz not null
) with (fillfactor = 50);

-- What waits to be published. Rows leave with the ack, so the table stays small; the primary key is the order of reading.
-- kind: a change of producer_log, the retry of a change that is parked in the inbox, or the record of a failure.
-- origin null: a change of this database. topic null: the change's own. head: members in front of the change's own.
-- scale factor 0: after a backlog of millions the next vacuum must not wait for millions of dead rows more.
create table outbox.event (
  lane smallint not null,
  position bigint not null,
  seq_id bigint not null,
  attempt smallint not null default 0,
  kind text not null default 'change' check (kind in ('change', 'retry', 'error')),
  bytes integer not null,
  due_at timestamptz,
  origin smallint,
  topic text,
  head text,
  primary key (lane, position)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
        autovacuum_vacuum_insert_scale_factor = 0.2);

-- The posts already accepted: event key -> seq_id. content_hash is there only for keys that a client chose.
create table outbox.seen (
  event_key uuid primary key,
  seq_id bigint not null,
  content_hash uuid
);

-- The catalogue. key_columns null: no key is known, rows are matched by their full image.
-- columns are those the source was seen to have; created: the table was made from payloads, so it gains columns.
-- epoch is the first part of every version and grows whenever the way of capture changes.
-- revision grows with every change of this row, so that a consumer can tell that its statements are stale.
create table outbox.relation (
  id integer generated always as identity primary key,
  source text not null,
  source_schema text not null,
  source_table text not null,
  target_schema text not null,
  target_table text not null,
  known_from text not null check (known_from in ('registered', 'target', 'payload')),
  key_columns text[],
  columns text[] not null default '{}',
  created boolean not null default false,
  capture text not null default 'posts',
  epoch integer not null default 1,
  state text not null default 'ACTIVE' check (state in ('ACTIVE', 'STOPPED')),
  stop_reason text,
  stopped_by text check (stopped_by in ('failure', 'operator')),
  stopped_at timestamptz,
  queue_closed_until timestamptz,
  on_refusal text not null default 'park' check (on_refusal in ('park', 'skip')),
  revision integer not null default 1,
  met_at timestamptz not null default clock_timestamp(),
  unique (source_schema, source_table)
);

create function outbox.count_revision() returns trigger language plpgsql as $$
begin
  new.revision := old.revision + 1;
  return new;
end
$$;
create trigger relation_revision before update on outbox.relation
for each row execute function outbox.count_revision();

-- The key of a table that exists in this database, in the order of its primary key; null where it has none.
create function outbox.primary_key_of(schema_name text, table_name text) returns text[]
language sql stable
return (
  select array_agg(a.attname::text order by k.place)
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
  join pg_index i on i.indrelid = c.oid and i.indisprimary
  cross join lateral unnest(i.indkey::int2[]) with ordinality as k(attnum, place)
  join pg_attribute a on a.attrelid = c.oid and a.attnum = k.attnum and k.place <= i.indnkeyatts
  where n.nspname = schema_name and c.relname = table_name
);

-- First sight of a relation: an existing target table lends its primary key. Safe when many meet it at once.
create function outbox.meet(its_source text, schema_name text, table_name text) returns setof outbox.relation
language plpgsql as $$
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
$$;

-- Down Migration

drop schema outbox cascade;
