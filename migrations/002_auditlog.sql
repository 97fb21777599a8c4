-- Up Migration

create schema auditlog;

-- Every accepted change, once, with the text as it came. Append-only; partitioned so that old ones leave by a drop.
-- No foreign key points here: an enforced one locks this row for every child (25 % of the throughput, measured).
create table auditlog.producer_log (
  seq_id bigint not null default nextval('outbox.position'),
  origin smallint not null,
  topicname text not null,
  source text not null,
  schema_name text not null,
  table_name text not null,
  operation text not null check (operation in ('INSERT', 'UPDATE', 'DELETE')),
  producer_payload json not null,
  clean_payload text,
  raw bytea,
  dialect text not null,
  row_key text,
  source_time timestamptz not null,
  epoch integer not null default 1,
  traceparent text,
  received_at timestamptz not null default clock_timestamp(),
  primary key (seq_id)
) partition by range (seq_id);
comment on column auditlog.producer_log.producer_payload is 'the text as received; relay fields in it are kept but never trusted';
comment on column auditlog.producer_log.clean_payload is 'the text without relay fields, only where it had some: what the record is made from';
comment on column auditlog.producer_log.raw is 'the bytes as received, only where they differ from the text';
comment on column auditlog.producer_log.source_time is 'when the source captured the change; the second part of its version';

-- The safety net: an insert never fails for want of a partition. add_partitions empties it again.
create table auditlog.producer_log_default partition of auditlog.producer_log default;

-- Makes the partition of the current position and `ahead` more, 5 million numbers each; called at start and every minute.
-- Attaching instead of "create ... partition of": the latter locks out every insert, the former only other DDL.
create function auditlog.add_partitions(ahead integer default 2) returns integer
language plpgsql set lock_timeout = '2s' as $$
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
$$;
select auditlog.add_partitions();

-- One row per event that was published or given up, keyed by the event's position: a replay of a seq_id is a row of its own.
-- kind null: the change itself; origin null: a change of this database. Records of failures, and changes of others, are
-- never the latest row of a change.
create table auditlog.publish_log (
  position bigint primary key,
  seq_id bigint not null,
  attempt smallint not null default 0,
  producer_publish_status text not null check (producer_publish_status in ('PENDING', 'PUBLISHED', 'RETRYING', 'FAILED')),
  producer_failure_log text,
  producer_publish_time timestamptz not null default clock_timestamp(),
  partition integer,
  "offset" bigint,
  latest boolean not null default true,
  kind text,
  origin smallint
);
-- Unique: audit_log must never show two rows for one change (I12).
create unique index publish_log_latest on auditlog.publish_log (seq_id) where latest;
-- Partial: filters for what is not plainly published read only that.
create index publish_log_not_published on auditlog.publish_log (producer_publish_status, seq_id)
  where producer_publish_status <> 'PUBLISHED';

-- What could not be read as a change. The trigger that posted it never retries, so this is a work list.
create table auditlog.rejected_request (
  id bigint generated always as identity primary key,
  received_at timestamptz not null default clock_timestamp(),
  path text not null,
  headers jsonb not null,
  body bytea not null,
  reason text not null,
  detail text,
  state text not null default 'WAITING' check (state in ('WAITING', 'RETRIED')),
  retried_at timestamptz,
  seq_ids bigint[]
);
create index rejected_request_waiting on auditlog.rejected_request (id) where state = 'WAITING';

-- Down Migration

drop schema auditlog cascade;
