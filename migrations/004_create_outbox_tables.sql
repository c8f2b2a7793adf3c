-- The outbox, and the ledger that outbox-cdc keeps beside it.
--
-- Apply it with "outbox-cdc init" or with "psql -f": both make the same tables, in either order, any number of times.
-- Nothing here names a schema: everything is made in the first schema of the search_path. Two settings, which init sets
-- where they are needed, change what is made:
--
--   outbox.mapped = on            the events are in a table of your own: event_outbox and its view are left out
--   outbox.event_id_type = text   the ids of that table are not of type uuid
--
-- +goose Up

-- Tables of these names may exist already, made by something else. Going on beside them would only fail later and less
-- clearly, so nothing is touched unless their columns are exactly ours.
-- +goose StatementBegin
do $$
declare
  clash text;
begin
  select string_agg(format('table %I is not ours (columns missing: %s; columns unknown: %s)', name,
           coalesce((select string_agg(c, ', ') from unnest(ours) c where c <> all (theirs)), 'none'),
           coalesce((select string_agg(c, ', ') from unnest(theirs) c where c <> all (ours)), 'none')), '; ' order by name)
    into clash
    from (select name, string_to_array(columns, ' ') as ours,
                 array(select attname::text from pg_attribute
                       where attrelid = to_regclass(format('%I.%I', current_schema(), name)) and attnum > 0 and not attisdropped
                       order by attnum) as theirs
          from (values
            ('event_outbox', 'id aggregate_type aggregate_id event_type event_version payload metadata created_at max_retries '
              || 'tenant_id correlation_id causation_id'),
            ('outbox_processors', 'id connector processor_name processor_type configuration is_active since heartbeat_at '
              || 'last_processed_at metrics'),
            ('outbox_delivery_log', 'id event_id processor_id attempt_number status started_at completed_at duration_ms '
              || 'error_message commit_lsn tx_index epoch'),
            ('outbox_parked', 'processor_id commit_lsn tx_index event_id agg_hash status attempts tries tried_at '
              || 'next_attempt_at parked_at error_message event payload replay'),
            ('outbox_checkpoints', 'slot_name state system_identifier timeline prefix_lsn prefix_index confirmed_lsn '
              || 'batch_seq epoch slot_epoch owner recorder_pid recorder_started updated_at'),
            ('outbox_backlog', 'id processor_id mode base_lsn base_index start_lsn snapshot_xmax filter cursor ordinal estimate '
              || 'status created_at'),
            ('outbox_metrics', 'id processor_id metric_type time_window value unit metadata')
          ) as expected (name, columns)
          where name <> 'event_outbox' or coalesce(current_setting('outbox.mapped', true), '') <> 'on') as tables
    where theirs <> '{}' and not (theirs @> ours and ours @> theirs);
  if clash is null then
    select string_agg(format('%s.event_id is of type %s, the outbox''s id needs %s', attrelid::regclass,
             format_type(atttypid, null), wanted), '; ' order by attrelid)
      into clash
      from pg_attribute, coalesce(nullif(current_setting('outbox.event_id_type', true), ''), 'uuid') as wanted
      where attrelid in (to_regclass(format('%I.outbox_delivery_log', current_schema())),
                         to_regclass(format('%I.outbox_parked', current_schema())))
        and attname = 'event_id' and format_type(atttypid, null) <> wanted;
  end if;
  if clash is not null then
    raise exception using errcode = 'duplicate_table', message = clash, hint =
      'use an outbox table that has other columns by mapping them (source.table and source.columns); '
      'put the ledger beside other tables of these names by source.ledger_schema';
  end if;
end
$$;
-- +goose StatementEnd

-- A version 7 uuid whose 12 bits behind the version hold the fraction of the millisecond, so that ids made by one server
-- sort by microsecond. (uuidv7() exists from PostgreSQL 18 on.) The body binds its names when it is created, so the
-- caller's search_path cannot change what it calls.
create or replace function outbox_uuid_v7() returns uuid
  language sql volatile parallel safe
  return (
    select (lpad(to_hex(us / 1000), 12, '0') || '7' || lpad(to_hex(us % 1000 * 4096 / 1000), 3, '0')
            || right(replace(gen_random_uuid()::text, '-', ''), 16))::uuid
    from (select floor(extract(epoch from clock_timestamp()) * 1000000)::bigint) as now (us)
  );

-- Insert-only: an event is told once and never changed, and the connector never writes here. payload is json, not jsonb,
-- so that the bytes that were committed are the bytes delivered; jsonb, text or bytea work as well.
-- +goose StatementBegin
do $$
begin
  if coalesce(current_setting('outbox.mapped', true), '') <> 'on' then
    create table if not exists event_outbox (
      id             uuid        primary key default outbox_uuid_v7(),
      aggregate_type text        not null,
      aggregate_id   text        not null,
      event_type     text        not null,
      event_version  int         not null default 1,
      payload        json        not null,
      metadata       jsonb       not null default '{}',
      created_at     timestamptz not null default clock_timestamp(),
      max_retries    int,                             -- retries after the first attempt; null: the sink's setting
      tenant_id      text,
      correlation_id text,
      causation_id   text
    );
    create index if not exists idx_outbox_aggregate on event_outbox (aggregate_type, aggregate_id);
    create index if not exists idx_outbox_tenant_id on event_outbox (tenant_id) where tenant_id is not null;
    -- The order in which a backlog is walked, and in which housekeeping deletes.
    create index if not exists idx_outbox_created_at on event_outbox (created_at, id);
  end if;
end
$$;
-- +goose StatementEnd

-- One row a sink, made when the connector first starts with it. Ids count from 1: processor 0 stands in the other tables
-- for "no sink" (a row that is no valid event, an event that no route wants) and has no row here.
create table if not exists outbox_processors (
  id                int     primary key generated by default as identity,
  connector         text    not null,
  processor_name    text    not null,
  processor_type    text    not null,
  configuration     jsonb   not null default '{}',    -- without secrets
  is_active         boolean not null default true,    -- false: paused by a person
  since             timestamptz not null default now(), -- events before this are not owed to the sink
  heartbeat_at      timestamptz,
  last_processed_at timestamptz,
  metrics           jsonb   not null default '{}',
  unique (connector, processor_name)
);

-- What happened, append-only. No unique key (a crash may leave a delivery twice, told apart by epoch) and no foreign keys:
-- an event can arrive on the stream before its row is visible to anybody, and old outbox rows are deleted before old
-- log rows. Partitioned by UTC day, so that retention drops tables instead of deleting rows.
create table if not exists outbox_delivery_log (
  id             bigint generated always as identity (cache 1000), -- orders the rows of one recorder, no more
  event_id       uuid,                      -- null: a row without an id, kept as a dead letter
  processor_id   int         not null,
  attempt_number int         not null,
  status         text        not null check (status in ('delivered', 'failed', 'dead', 'discarded')),
  started_at     timestamptz,
  completed_at   timestamptz not null,
  duration_ms    real,
  error_message  text,
  commit_lsn     pg_lsn      not null, -- with tx_index the event's position; below index 0 for rows never streamed
  tx_index       bigint      not null,
  epoch          int         not null
) partition by range (completed_at);

-- What is still owed, by value: what later becomes of the outbox's row never matters to it. The key is the order of
-- delivery. It is a queue, whose deleted rows stay in the indexes until vacuum has been there, hence the settings.
create table if not exists outbox_parked (
  processor_id    int         not null,
  commit_lsn      pg_lsn      not null,
  tx_index        bigint      not null,
  event_id        uuid,                      -- null: a row without an id
  agg_hash        bigint      not null, -- of aggregate type and id; picks the lane by abs(agg_hash % lanes)
  status          text        not null check (status in ('parked', 'dead')),
  attempts        int         not null default 0, -- tries that were refused
  tries           int         not null default 0, -- all tries
  tried_at        timestamptz,                    -- the first try
  next_attempt_at timestamptz,                    -- null: untried, or dead and passed over; infinity: dead and holding its aggregate
  parked_at       timestamptz not null default now(),
  error_message   text,
  event           json        not null,           -- the event without its payload
  payload         bytea,
  replay          boolean     not null default false,
  primary key (processor_id, commit_lsn, tx_index)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_cost_delay = 0,
        toast.autovacuum_vacuum_scale_factor = 0.01, toast.autovacuum_vacuum_cost_delay = 0);

-- How far a slot's stream is settled. Half of each page is left free: the row is updated with every batch, in place.
create table if not exists outbox_checkpoints (
  slot_name         text   primary key,
  state             text   not null check (state in ('building', 'ready')),
  system_identifier text,
  timeline          int,
  prefix_lsn        pg_lsn,                     -- everything up to here, this position included, is settled
  prefix_index      bigint,
  confirmed_lsn     pg_lsn,
  batch_seq         bigint not null default 0,  -- tells after a lost COMMIT whether it went through
  epoch             int    not null default 0,  -- raised by every session
  slot_epoch        int    not null default 0,  -- the epoch when the slot was made
  owner             text,
  recorder_pid      int,                        -- the session's writer, ended by the next session; pids are used
  recorder_started  timestamptz,                -- again, so its backend_start as well
  updated_at        timestamptz not null default now()
) with (fillfactor = 50);

-- Rows of the outbox that the stream never carried, or that a person wants again: one job a sink.
create table if not exists outbox_backlog (
  id            bigint primary key generated always as identity,
  processor_id  int    not null,
  mode          text   not null check (mode in ('missing', 'replay')),
  base_lsn      pg_lsn,
  base_index    bigint,
  start_lsn     pg_lsn,
  snapshot_xmax xid8,  -- a row committed before the slot was made may become visible later, until no older xid runs
  filter        jsonb,
  cursor        jsonb,
  ordinal       bigint not null default 0,
  estimate      bigint,
  status        text   not null,
  created_at    timestamptz not null default now()
);

create table if not exists outbox_metrics (
  id           bigint    primary key generated always as identity,
  processor_id int       not null,
  metric_type  text      not null,
  time_window  tstzrange not null,
  value        double precision not null,
  unit         text,
  metadata     jsonb     not null default '{}'
);

-- Only on tables that are new, hence without rows: a type that a view or an index uses cannot be changed.
-- +goose StatementBegin
do $$
begin
  if current_setting('outbox.event_id_type', true) = 'text'
     and exists (select from pg_attribute where attrelid = 'outbox_delivery_log'::regclass and attname = 'event_id' and atttypid = 'uuid'::regtype) then
    alter table outbox_delivery_log alter column event_id type text;
    alter table outbox_parked alter column event_id type text;
  end if;
end
$$;
-- +goose StatementEnd

create index if not exists idx_outbox_log_event_id on outbox_delivery_log (event_id);
-- What lies beyond the prefix is read at every start; positions come almost in order.
create index if not exists idx_outbox_log_commit_lsn on outbox_delivery_log using brin (commit_lsn);
create index if not exists idx_outbox_status on outbox_delivery_log (status, completed_at) where status <> 'delivered';
create index if not exists idx_outbox_pending_events on outbox_parked (event_id);
-- The heads: of each aggregate the tried rows, by which it is held.
create index if not exists idx_outbox_retry_ready on outbox_parked (processor_id, agg_hash, commit_lsn, tx_index)
  include (next_attempt_at) where next_attempt_at is not null;

-- Makes the log's partitions of the UTC day of first and of the days after it, and returns how many were missing. The
-- connector calls it ahead of time and, when an insert finds no partition, with the time of that row. There is no default
-- partition: its rows would stand in the way of the day's own one, and outlive it.
--
-- A partition is made on its own and then attached, which lets readers and writers of the log go on; "create table …
-- partition of" waits for every one of them, and stops all who come after.
--
-- It runs as its owner, so the connector needs no right to create tables. Therefore what it calls is named with its schema
-- and cast to the exact type: in a schema where others may create functions, theirs could fit better.
-- +goose StatementBegin
create or replace function outbox_make_partitions(first timestamptz default now(), days_ahead int default 7) returns int
  language plpgsql security definer
as $$
declare
  log       oid := 'outbox_delivery_log'::regclass;
  midnight  timestamp;
  partition text;
  made      int := 0;
begin
  if days_ahead < 0 or days_ahead > 31 then
    raise exception using errcode = 'invalid_parameter_value', message = 'days_ahead is not within 0 and 31';
  end if;
  -- Two callers at once: the second waits, and then finds them made.
  perform pg_catalog.pg_advisory_xact_lock('pg_catalog.pg_class'::regclass::oid::int, log::int);
  for i in 0 .. days_ahead loop
    midnight := (first at time zone 'UTC')::date::timestamp + i * interval '1 day';
    partition := 'outbox_delivery_log_' || pg_catalog.to_char(midnight, 'YYYYMMDD');
    continue when exists (select from pg_catalog.pg_inherits
                          where inhparent = log and inhrelid = pg_catalog.to_regclass(partition)::oid);
    execute pg_catalog.format('create table if not exists %I (like outbox_delivery_log including constraints including storage)',
      partition);
    execute pg_catalog.format('alter table outbox_delivery_log attach partition %I for values from (%L) to (%L)', partition,
      pg_catalog.to_char(midnight, 'YYYY-MM-DD') || ' 00:00:00+00',
      pg_catalog.to_char(midnight + interval '1 day', 'YYYY-MM-DD') || ' 00:00:00+00');
    made := made + 1;
  end loop;
  return made;
end
$$;
-- +goose StatementEnd
revoke execute on function outbox_make_partitions(timestamptz, int) from public;

-- It must find the owner's tables and nobody else's: pg_temp, where anybody may create, is searched first unless it is
-- named last.
-- +goose StatementBegin
do $$
begin
  execute format('alter function outbox_make_partitions(timestamptz, int) set search_path = %I, pg_temp', current_schema());
end
$$;
-- +goose StatementEnd

-- +goose StatementBegin
do $$ begin perform outbox_make_partitions(); end $$;
-- +goose StatementEnd

-- What became of each event; the worst sink wins: dead, parked, pending, delivered. Which sinks an event is owed to is the
-- connector's knowledge (its routes), so one that some sinks have settled counts as pending until all known sinks have,
-- or until the prefix has passed it. Made for looking at single events and at the newest ones: counting all of them reads
-- all of the log.
-- +goose StatementBegin
do $$
begin
  if coalesce(current_setting('outbox.mapped', true), '') <> 'on' then
    create or replace view event_outbox_status as
    select e.id, e.aggregate_type, e.aggregate_id, e.event_type, e.tenant_id, e.created_at, s.status,
           case when s.status in ('delivered', 'discarded') then l.settled_at end as processed_at,
           greatest(p.tries, l.tries, 1) - 1 as retry_count,
           p.next_retry_at,
           case when s.status not in ('delivered', 'discarded') then coalesce(p.error_message, l.error_message) end as error_message
    from event_outbox e
    cross join lateral (
      select coalesce(bool_or(status = 'dead'), false) as dead, count(*) > 0 as owed, max(tries) as tries,
             min(next_attempt_at) filter (where status = 'parked') as next_retry_at,
             (array_agg(error_message order by status, parked_at desc) filter (where error_message is not null))[1] as error_message
      from outbox_parked where event_id = e.id) p
    cross join lateral (
      select count(distinct processor_id) filter (where status <> 'failed') as processors, max(attempt_number) as tries,
             coalesce(bool_or(status = 'delivered'), false) as delivered,
             max(completed_at) filter (where status <> 'failed') as settled_at,
             (array_agg(error_message order by completed_at desc) filter (where error_message is not null))[1] as error_message,
             bool_or(exists (select from outbox_checkpoints c where r.tx_index >= 0 and r.epoch >= c.slot_epoch
                               and (r.commit_lsn, r.tx_index) > (c.prefix_lsn, c.prefix_index))) as beyond_prefix
      from outbox_delivery_log r where event_id = e.id) l
    cross join lateral (
      select case when p.dead then 'dead'
                  when p.owed then 'parked'
                  when l.processors = 0 then 'pending'
                  when l.beyond_prefix and l.processors < (select count(*) from outbox_processors) then 'pending'
                  when l.delivered then 'delivered'
                  else 'discarded' end as status) s;
  end if;
end
$$;
-- +goose StatementEnd
