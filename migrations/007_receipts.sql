-- Up Migration

-- Two databases: changes are taken in by the first and applied in the second. What the first has to know of them leaves
-- here a receipt, in the transaction of the outcome; the consumer ships it (outbox/receipt.ts). A row says only that there
-- is news: the outcome itself is read from inbox.applied when it is shipped, so a change is never told in the wrong order.
-- number grows with every news of a change, since it is drawn under the lock of its row in applied; the part above 2^48 is
-- the origin of this database, so that it grows too after a restore that raised the origin.
-- scale factor 0: after an hour without the first database millions of rows leave at once.
create sequence inbox.receipt_number as bigint maxvalue 281474976710655;
create table inbox.receipt (
  origin smallint not null,
  seq_id bigint not null,
  number bigint not null,
  noted_at timestamptz not null default clock_timestamp(),
  primary key (origin, seq_id)
) with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
        autovacuum_vacuum_insert_scale_factor = 0.2);

-- In the first database: the number of the receipt an outcome was told by. An older one never replaces it.
alter table inbox.applied add column receipt bigint;

-- Whose turn it is to ship the receipts of an origin. It saves work and nothing hangs on it: who ships twice tells twice.
create table inbox.shipper (
  origin smallint primary key,
  holder text not null,
  held_until timestamptz not null
) with (fillfactor = 50);

-- Origins this database had before. Changes that were taken in under them keep them, and their outcomes are still told.
create table outbox.former_origin (
  origin smallint primary key,
  until timestamptz not null default clock_timestamp()
);
create view outbox.own_origin as
select origin from outbox.database union select origin from outbox.former_origin;

create function outbox.remember_origin() returns trigger language plpgsql as $$
begin
  insert into outbox.former_origin (origin)
  select old.origin where exists (select from auditlog.producer_log) on conflict do nothing;
  return null;
end
$$;
create trigger remember_origin after update on outbox.database
for each row when (old.origin <> new.origin) execute function outbox.remember_origin();

-- In the order of the key: two applies that note the same changes must not wait for each other.
create function inbox.note_receipts() returns trigger language plpgsql as $$
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
$$;
create trigger receipt_insert after insert on inbox.applied referencing new table as noted
for each statement execute function inbox.note_receipts();
create trigger receipt_update after update on inbox.applied referencing new table as noted
for each statement execute function inbox.note_receipts();
alter table inbox.applied disable trigger receipt_insert;
alter table inbox.applied disable trigger receipt_update;

create function inbox.keeps_receipts() returns boolean language sql stable
return (
  select t.tgenabled <> 'D' from pg_trigger t where t.tgrelid = 'inbox.applied'::regclass and t.tgname = 'receipt_insert'
);

-- Switched on where the database is the second of two. What was applied before is told as well, so off and on again tells
-- everything anew (after a restore of the first database). Enabling waits for applies under way, so none falls between.
create function inbox.keep_receipts(wanted boolean) returns void language plpgsql as $$
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
$$;

-- True while the holder may ship the receipts of this origin: 10 seconds from the last renewal. Others only read here.
create function inbox.may_ship(its_origin smallint, its_holder text) returns boolean language plpgsql as $$
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
$$;

-- Rebuilding a table takes its changes from producer_log, and those are in the other database: the table would be emptied
-- and stay empty.
create function outbox.refuse_rebuild() returns trigger language plpgsql as $$
begin
  if inbox.keeps_receipts() and exists (select from inbox.statement s where s.relation = old.id) then
    raise exception 'changes of %.% were already applied here, and this database does not have them', old.source_schema, old.source_table
      using errcode = 'P0001', hint = 'with two databases a key is declared in the second, before the first change of the table is applied';
  end if;
  return new;
end
$$;
create trigger refuse_rebuild before update on outbox.relation
for each row when (old.created and old.key_columns is distinct from new.key_columns) execute function outbox.refuse_rebuild();

-- Down Migration

drop trigger refuse_rebuild on outbox.relation;
drop function outbox.refuse_rebuild();
drop function inbox.may_ship(smallint, text);
drop function inbox.keep_receipts(boolean);
drop function inbox.keeps_receipts();
drop trigger receipt_update on inbox.applied;
drop trigger receipt_insert on inbox.applied;
drop function inbox.note_receipts();
drop trigger remember_origin on outbox.database;
drop function outbox.remember_origin();
drop view outbox.own_origin;
drop table outbox.former_origin;
drop table inbox.shipper;
alter table inbox.applied drop column receipt;
drop table inbox.receipt;
drop sequence inbox.receipt_number;
