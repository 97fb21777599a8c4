-- Up Migration

-- The row key of a stored payload, as the listener computes it: the old values of the key columns, blanks at the end
-- dropped; null where one of them is missing.
create function outbox.row_key_of(payload json, operation text, table_name text, key_columns text[]) returns text
language sql immutable
return (
  select case when bool_and(v.value is not null) then '[' || string_agg(to_json(rtrim(v.value))::text, ',' order by k.place) || ']' end
  from unnest(key_columns) with ordinality as k(name, place)
  cross join lateral (select coalesce(payload -> 'DATA', payload -> table_name -> operation) -> k.name as node) n
  cross join lateral (select case json_typeof(n.node) when 'object' then n.node ->> 'old' when 'null' then null else n.node #>> '{}' end as value) v
);

-- Declares the key of a relation and returns how many of its changes are published again because of it.
-- Rows that were matched by their full image have no versions, so a table that was made from payloads is emptied and
-- built again from producer_log. Until then the audit shows its changes as PENDING; live changes are applied meanwhile,
-- since the version of a row decides.
-- Waits for batches of the relation that are under way (lock 7161, which inbox.apply and inbox.park share).
create function outbox.declare_key(its_source text, schema_name text, table_name text, key_columns text[]) returns bigint
language plpgsql set lock_timeout = '30s' as $$
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
$$;

-- Empties a table that was made from payloads, gives it the key, forgets the outcomes of its changes and puts them into
-- the outbox again. The watermark goes back, so that the audit shows them as pending.
create function outbox.rebuild(r outbox.relation, target regclass, new_key text[]) returns bigint
language plpgsql as $$
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
$$;

-- Down Migration

drop function outbox.declare_key(text, text, text, text[]);
drop function outbox.rebuild(outbox.relation, regclass, text[]);
drop function outbox.row_key_of(json, text, text, text[]);
