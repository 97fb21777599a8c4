-- Up Migration

-- Who is told of failures, and when next. A channel comes into being when a process that has it set asks for the first
-- time; asked_at is when one asked last. One process holds it for a while (as with lanes, term grows with each claim).
-- batch: what is being told, folded out of outbox.notice; it stays until it is told, or given up after too many tries.
-- quiet: how long after told_at nothing more is told; it grows while things go on failing.
create table outbox.notice_channel (
  channel text primary key check (channel in ('webhook', 'mail')),
  holder text,
  term bigint not null default 0,
  held_until timestamptz not null default '-infinity',
  asked_at timestamptz not null default clock_timestamp(),
  batch jsonb,
  tries smallint not null default 0,
  quiet interval not null default '0',
  told_at timestamptz not null default '-infinity',
  next_at timestamptz not null default '-infinity'
) with (fillfactor = 50);

-- What a channel has not been told yet. Numbers and names only: never a value of a row, nor a message, which quotes one.
-- FAILED: a change was given up; STOPPED: a relation, by a failure; REJECTED: a request that is no change.
create table outbox.notice (
  channel text not null,
  id bigint generated always as identity,
  kind text not null check (kind in ('FAILED', 'STOPPED', 'REJECTED')),
  origin smallint,
  seq_id bigint,
  relation text,
  side text,
  reason text,
  sqlstate text,
  made_at timestamptz not null default clock_timestamp(),
  primary key (channel, id)
);

-- Puts a failure down for every channel that somebody asked for within 7 days; without one it costs a look at an empty
-- table. Planned once: connections of this service plan every statement anew, which took longer than the rest. The facts are taken out of head with patterns, since json with a \u0000 in it cannot be read: inside of a text
-- a quote is escaped, so `"code":` is found only where it is a name.
create function outbox.put_notice() returns trigger
language plpgsql set plan_cache_mode = 'force_generic_plan' as $$
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
$$;

-- Row triggers with a condition, and not one per statement: the transition table of that would copy every event.
create trigger event_notice after insert on outbox.event
for each row when (new.kind = 'error') execute function outbox.put_notice();
create trigger relation_notice after update of state on outbox.relation
for each row when (new.state = 'STOPPED' and old.state <> 'STOPPED' and new.stopped_by = 'failure') execute function outbox.put_notice();
create trigger rejected_request_notice after insert on auditlog.rejected_request
for each row execute function outbox.put_notice();

-- Down Migration

drop trigger rejected_request_notice on auditlog.rejected_request;
drop trigger relation_notice on outbox.relation;
drop trigger event_notice on outbox.event;
drop function outbox.put_notice();
drop table outbox.notice;
drop table outbox.notice_channel;
