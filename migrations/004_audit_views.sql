-- Up Migration

-- Every change up to here is published and has an outcome, or could not be published; the services move it. Only what lies
-- above can be pending.
create table auditlog.settled (
  the_only boolean primary key default true check (the_only),
  up_to bigint not null default 0
) with (fillfactor = 50);
insert into auditlog.settled default values;

create view auditlog.consumer_log as
select a.origin, a.seq_id, s.topicname, s.destination, s.schema_name, s.table_name, s.consumer_query,
       a.status as consumer_deploy_status, a.failure as consumer_failure_log, a.applied_at as consumer_update_time,
       a.attempt, a.partition, a."offset"
from inbox.applied a join inbox.statement s on s.id = a.statement;

-- What is still on its way: above the watermark, and neither both published and deployed nor given up before it was
-- published (kind null: the record of a retry may be given up too, and then the change was published before).
-- Row by row (lateral, limit 1): the planner cannot know how few rows lie above the watermark and would read all of
-- applied to join them. It takes a third of all rows for one comparison with a subquery and 0.5 % for a "between": said
-- three times, the guess is near what is true, and a look at 10 million rows is not compiled (JIT) for a second before it
-- runs.
create view auditlog.pending as
select p.seq_id, p.origin, p.schema_name, p.table_name, p.operation, p.received_at,
       coalesce(l.producer_publish_status = 'PUBLISHED', false) as published, a.seq_id is not null as deployed,
       coalesce(l.producer_publish_status, 'PENDING') as producer_publish_status, l.producer_failure_log, l.producer_publish_time,
       coalesce(a.status, 'PENDING') as consumer_deploy_status, a.failure as consumer_failure_log, a.applied_at as consumer_update_time
from auditlog.producer_log p
left join lateral (select * from auditlog.publish_log x where x.seq_id = p.seq_id and x.latest limit 1) l on true
left join lateral (select * from inbox.applied x where x.origin = p.origin and x.seq_id = p.seq_id limit 1) a on true
where p.seq_id > (select up_to from auditlog.settled)
  and p.seq_id - (select up_to from auditlog.settled) between 1 and 9000000000000000000
  and p.seq_id + 1 between (select up_to from auditlog.settled) and 9000000000000000000
  and (l.position is null or (a.seq_id is null and (l.producer_publish_status <> 'FAILED' or l.kind is not null)));

-- One row per change. What could not be published has no deploy status, unless it was written all the same by a send that
-- nobody answered. The outcome is looked up by a scalar, since a "not exists" may be planned as a hash of all outcomes.
-- The first branch has both statuses as plain columns, so that a filter uses their partial indexes (through a case it took
-- 800 ms on 400,000 rows, see faults seen F21).
create view auditlog.audit_log as
select p.seq_id, p.origin, p.schema_name, p.table_name, p.operation,
       l.producer_publish_status, l.producer_failure_log, l.producer_publish_time,
       a.status as consumer_deploy_status, a.failure as consumer_failure_log, a.applied_at as consumer_update_time
from auditlog.producer_log p
join auditlog.publish_log l on l.seq_id = p.seq_id and l.latest
join inbox.applied a on a.origin = p.origin and a.seq_id = p.seq_id
union all
select p.seq_id, p.origin, p.schema_name, p.table_name, p.operation,
       l.producer_publish_status, l.producer_failure_log, l.producer_publish_time, null::text, null::text, null::timestamptz
from auditlog.producer_log p
join auditlog.publish_log l on l.seq_id = p.seq_id and l.latest
where l.producer_publish_status = 'FAILED' and l.kind is null
  and (select a.seq_id from inbox.applied a where a.origin = p.origin and a.seq_id = p.seq_id) is null
union all
select seq_id, origin, schema_name, table_name, operation, producer_publish_status, producer_failure_log, producer_publish_time,
       consumer_deploy_status, consumer_failure_log, consumer_update_time
from auditlog.pending;

-- Down Migration

drop view auditlog.audit_log;
drop view auditlog.pending;
drop view auditlog.consumer_log;
drop table auditlog.settled;
