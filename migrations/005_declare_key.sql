-- Up Migration

-- Declares the key of a relation and returns how many of its changes are published again because of it.
-- Rows that were matched by their full image have no versions, so a table that was made from payloads is emptied and
-- rebuilt from producer_log; in the meantime live changes are applied too, since the version of a row decides.
-- Waits for batches of the relation that are under way (lock 7161, which inbox.apply shares).
create function outbox.declare_key(its_source text, schema_name text, table_name text, key_columns text[]) returns bigint
language plpgsql set lock_timeout = '30s' as $$
declare
  r outbox.relation;
  target regclass;
  column_name text;
  replayed bigint := 0;
begin
  select * into r from outbox.meet(its_source, schema_name, table_name);
  perform pg_advisory_xact_lock(7161, r.id);
  select * into r from outbox.relation x where x.id = r.id for update;
  if r.key_columns = declare_key.key_columns then return 0; end if;

  target := to_regclass(format('%I.%I', r.target_schema, r.target_table));
  if target is not null and r.created then
    foreach column_name in array declare_key.key_columns loop
      execute format('alter table %s add column if not exists %I text', target, column_name);
    end loop;
    execute format('truncate %s', target);
    execute (select coalesce(string_agg(format('alter table %s drop constraint %I', target, c.conname), '; '), 'select 1')
             from pg_constraint c where c.conrelid = target and c.contype = 'p');
    execute format('alter table %s add primary key (%s)', target,
                   (select string_agg(quote_ident(name), ', ' order by place) from unnest(declare_key.key_columns) with ordinality as k(name, place)));
    delete from inbox.owed o where o.relation = r.id;
    delete from inbox.shift s where s.relation = r.id;
    delete from inbox.row_version v where v.relation = r.id;
    insert into outbox.event (lane, position, seq_id, bytes)
    select outbox.lane_of(d.lanes, p.schema_name, p.table_name, p.row_key), nextval('outbox.position'), p.seq_id,
           octet_length(p.producer_payload::text)
    from auditlog.producer_log p cross join outbox.database d
    where p.schema_name = r.source_schema and p.table_name = r.source_table
      and exists (select from inbox.applied a where a.origin = p.origin and a.seq_id = p.seq_id)
    order by p.seq_id;
    get diagnostics replayed = row_count;
  elsif target is not null and not exists (
    select from pg_index i
    where i.indrelid = target and i.indisunique and i.indimmediate and i.indpred is null and i.indexprs is null
      and (select array_agg(a.attname::text order by a.attname) from pg_attribute a
           where a.attrelid = target and a.attnum = any(i.indkey::int2[]))
        = (select array_agg(name order by name) from unnest(declare_key.key_columns) as name)
  ) then
    raise exception 'the target table %.% has no unique index on (%)', r.target_schema, r.target_table, array_to_string(declare_key.key_columns, ', ')
      using errcode = 'P0001', hint = format('create unique index on %s (%s)', target, array_to_string(declare_key.key_columns, ', '));
  elsif r.key_columns is null and exists (select from inbox.statement s where s.relation = r.id) then
    raise exception 'changes of %.% were already applied without a key', r.source_schema, r.source_table
      using errcode = 'P0001', hint = 'the table is not of this service''s making: load it anew under another name, then declare the key';
  end if;

  update outbox.relation x
  set key_columns = declare_key.key_columns, known_from = 'registered'
  where x.id = r.id;
  return replayed;
end
$$;

-- Down Migration

drop function outbox.declare_key(text, text, text, text[]);
