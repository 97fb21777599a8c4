-- Up Migration

-- What operators did: a line for each change or relation they touched, in the transaction of what they did. Where that
-- takes several transactions (retry, publish, resume) the line is there before, and outcome, which is added at the end,
-- says what it came to: a line without one was cut short.
-- before: the record an edit replaced, unless it is large and producer_log has it; after: what replaced it, unless large.
create table auditlog.action (
  id bigint generated always as identity primary key,
  at timestamptz not null default clock_timestamp(),
  actor text not null,
  command text not null check (command in ('edit', 'retry', 'skip', 'publish', 'resume', 'stop', 'policy')),
  origin smallint,
  seq_id bigint,
  relation text,
  before text,
  after text,
  note text,
  outcome text
);
create index action_change on auditlog.action (seq_id, origin) where seq_id is not null;
create index action_relation on auditlog.action (relation, id) where seq_id is null;

-- Gives a parked change up. Its entry stays as a memory, and can be tried again by hand; what is newer of its row is tried
-- at once. Returns the status it had; null where it is not parked any more, was taken up meanwhile, or is skipped already.
create function inbox.skip(its_origin smallint, its_seq_id bigint, note text) returns text
language plpgsql volatile set lock_timeout = '2s' as $$
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
$$;

-- Stops a relation, also one that a failure stopped: then it does not go on by itself. The lock waits for batches under
-- way, so nothing of it is applied after this returns; 2 s, since consumers wait behind the one who waits.
create function inbox.stop_by_operator(its_relation integer, why text) returns void
language plpgsql volatile set lock_timeout = '2s' as $$
begin
  perform pg_advisory_xact_lock(7161, its_relation);
  update outbox.relation r
  set state = 'STOPPED', stop_reason = why, stopped_by = 'operator',
      stopped_at = case when r.state = 'STOPPED' then r.stopped_at else clock_timestamp() end
  where r.id = its_relation;
end
$$;

-- Down Migration

drop function inbox.stop_by_operator(integer, text);
drop function inbox.skip(smallint, bigint, text);
drop table auditlog.action;
