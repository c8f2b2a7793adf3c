-- The outbox, and the ledger that outbox-cdc keeps beside it.
--
-- Apply it with "outbox-cdc init" or with "psql -f": both make the same tables, in either order, any number of times. It is
-- one statement, so it does everything or nothing. Everything is made in the first schema of the search_path. Four
-- settings, which init sets where they are needed, change what is made:
--
--   outbox.schema = cdc           everything is made in this schema, whatever the search_path is
--   outbox.mapped = on            the events are in a table of your own: event_outbox and its view are left out
--   outbox.event_id_type = text   the ids of that table are not of type uuid
--   outbox.partitioned = on       event_outbox is partitioned by day; apply 008_partitioned_outbox.sql as well, which makes the days
--
-- Other roles may be allowed to create things in that schema: up to PostgreSQL 14 everybody may do so in "public". A
-- function, operator or type of theirs that fits an expression better than PostgreSQL's own would run with the rights of
-- whoever applies this file, or be bound into a default or a view for good. Two rules prevent it:
--
--   1. The search_path is pg_catalog while this runs. A name without a schema is therefore PostgreSQL's own. Our own names
--      are written with their schema, which format() puts in the place of %1$I.
--   2. What has one of our names already is used only if it belongs to a trusted role. "create table if not exists" would use
--      anybody's table, so nothing is created that way.
--
-- +goose Up
-- +goose StatementBegin
do $migration$
declare
  -- These lines are evaluated before the search_path is changed, so they name pg_catalog.
  path      pg_catalog.text := pg_catalog.current_setting('search_path');
  ledger    pg_catalog.text := pg_catalog.current_schema();
  namespace pg_catalog.oid;
  mapped    boolean;
  by_day    boolean;             -- event_outbox is partitioned
  id_type   pg_catalog.text;     -- of event ids in the ledger
  trusted   pg_catalog.oid[];    -- the roles whose tables, views and functions are used
  have      pg_catalog.text[] := '{}'; -- those of our relations that exist already
  strangers pg_catalog.text;
  clash     pg_catalog.text;
  functions pg_catalog.oid[] := '{}';
  item      record;
begin
  set local search_path = pg_catalog, pg_temp;
  ledger := coalesce(nullif(current_setting('outbox.schema', true), ''), ledger);
  mapped := coalesce(current_setting('outbox.mapped', true), '') = 'on';
  by_day := coalesce(current_setting('outbox.partitioned', true), '') = 'on';
  id_type := coalesce(nullif(current_setting('outbox.event_id_type', true), ''), 'uuid');
  namespace := (select oid from pg_namespace where nspname = ledger);
  if namespace is null then
    raise exception using errcode = 'invalid_schema_name', message = format('schema %s does not exist', coalesce(quote_ident(ledger), 'of the search_path')),
      hint = 'create the schema, or correct the search_path';
  end if;
  if id_type not in ('uuid', 'text') then
    raise exception using errcode = 'invalid_parameter_value', message = 'outbox.event_id_type is neither uuid nor text';
  end if;

  -- Trusted are whoever runs this, the roles that he is a member of, and who may do anything in this schema or database
  -- anyway: their owners and superusers. A superuser counts as a member of every role, which says nothing about these.
  --
  -- A membership counts only if it was given by one of these masters, or up to PostgreSQL 15 by a role with CREATEROLE, which
  -- can do anything there. Others can make a login a member of their own roles: up to PostgreSQL 14 of themselves ("grant
  -- mallory to owner"), and in each version of a role of which they have the ADMIN OPTION.
  trusted := array(
    with recursive masters as (
      select r.oid from pg_roles r, pg_namespace n, pg_database d
      where n.oid = namespace and d.datname = current_database()
        and (pg_has_role(r.oid, n.nspowner, 'usage') or pg_has_role(r.oid, d.datdba, 'usage'))),
    mine as (
      select oid from pg_roles where rolname = current_user
      union
      select m.roleid from mine join pg_auth_members m on m.member = mine.oid join pg_roles g on g.oid = m.grantor
      where not (select rolsuper from pg_roles where rolname = current_user) and pg_has_role(current_user, m.roleid, 'usage')
        and (g.oid in (select oid from masters) or g.rolcreaterole and current_setting('server_version_num')::int < 160000))
    select oid from masters union select oid from mine);

  -- Relations and types of our names may exist already, made by something else. Going on beside them would only fail later
  -- and less clearly, so nothing is touched unless all of them are ours.
  for item in
    select name, parent, columns, c.oid as relation, t.oid as type, r.rolname as owner, coalesce(c.relowner, t.typowner) = any (trusted) as is_trusted,
           case
             when columns is not null then c.relkind in ('r', 'p')
             when parent is not null then exists (select from pg_index x join pg_class p on p.oid = x.indrelid
                                                  where x.indexrelid = c.oid and p.relname = parent and p.relnamespace = namespace)
             else c.relkind = 'v'
           end as is_kind,
           string_to_array(columns, ' ') as ours,
           case name when 'outbox_delivery_log' then array['member'] when 'outbox_checkpoints' then array['database_oid', 'database_name', 'source_hosts']
             when 'outbox_backlog' then array['reason', 'walked', 'finished_at'] when 'outbox_processors' then array['state'] end as later, -- what a ledger of an older version lacks; the next files add it
           array(select attname::text from pg_attribute where attrelid = c.oid and attnum > 0 and not attisdropped order by attnum) as theirs
    from (values
      ('event_outbox', null, 'id aggregate_type aggregate_id event_type event_version payload metadata created_at max_retries '
        || 'tenant_id correlation_id causation_id'),
      ('event_outbox_status', null, null),
      ('idx_outbox_aggregate', 'event_outbox', null),
      ('idx_outbox_created_at', 'event_outbox', null),
      ('idx_outbox_log_commit_lsn', 'outbox_delivery_log', null),
      ('idx_outbox_log_event_id', 'outbox_delivery_log', null),
      ('idx_outbox_pending_events', 'outbox_parked', null),
      ('idx_outbox_retry_ready', 'outbox_parked', null),
      ('idx_outbox_status', 'outbox_delivery_log', null),
      ('idx_outbox_tenant_id', 'event_outbox', null),
      ('outbox_backlog', null, 'id processor_id mode base_lsn base_index start_lsn snapshot_xmax filter cursor ordinal estimate '
        || 'status created_at reason walked finished_at'),
      ('outbox_checkpoints', null, 'slot_name state system_identifier timeline prefix_lsn prefix_index confirmed_lsn '
        || 'batch_seq epoch slot_epoch owner recorder_pid recorder_started updated_at database_oid database_name source_hosts'),
      ('outbox_delivery_log', null, 'id event_id processor_id attempt_number status started_at completed_at duration_ms '
        || 'error_message commit_lsn tx_index epoch member'),
      ('outbox_metrics', null, 'id processor_id metric_type time_window value unit metadata'),
      ('outbox_migrations', null, 'id version_id is_applied tstamp'),
      ('outbox_parked', null, 'processor_id commit_lsn tx_index event_id agg_hash status attempts tries tried_at '
        || 'next_attempt_at parked_at error_message event payload replay'),
      ('outbox_retention', null, 'id log_dropped_until last_pass_at report'),
      ('outbox_processors', null, 'id connector processor_name processor_type configuration is_active since heartbeat_at '
        || 'last_processed_at metrics state')
    ) as expected (name, parent, columns)
    left join pg_class c on c.relnamespace = namespace and c.relname = name
    left join pg_type t on c.oid is null and t.typnamespace = namespace and t.typname = name
    left join pg_roles r on r.oid = coalesce(c.relowner, t.typowner)
    where coalesce(c.oid, t.oid) is not null
      and not (mapped and (name = 'event_outbox_status' or coalesce(parent, name) = 'event_outbox'))
    order by name
  loop
    have := have || item.name;
    if not item.is_trusted then
      strangers := concat_ws('; ', strangers, format('%I.%I belongs to role %I', ledger, item.name, item.owner));
    elsif item.relation is null then
      clash := concat_ws('; ', clash, format('%I is a type, and a table cannot have its name', item.name));
    elsif not item.is_kind then
      clash := concat_ws('; ', clash, format('relation %I is not ours (it is no %s)', item.name,
        case when item.columns is not null then 'table' when item.parent is not null then 'index of ' || item.parent else 'view' end));
    elsif not (item.theirs || item.later @> item.ours and item.ours @> item.theirs) then
      clash := concat_ws('; ', clash, format('table %I is not ours (columns missing: %s; columns unknown: %s)', item.name,
        coalesce((select string_agg(col, ', ') from unnest(item.ours) as col where col <> all (item.theirs || item.later)), 'none'),
        coalesce((select string_agg(col, ', ') from unnest(item.theirs) as col where col <> all (item.ours)), 'none')));
    end if;
  end loop;
  if strangers is not null then
    raise exception using errcode = 'duplicate_table', message = strangers || ', who could run code with your rights through it', hint =
      'drop it, or make it yours (alter ... owner to ...) after looking at its triggers, rules and defaults; '
      'or put the ledger into a schema where others cannot create anything, by source.ledger_schema';
  end if;
  if clash is null and by_day and not mapped and exists (select from pg_class where relnamespace = namespace and relname = 'event_outbox' and relkind = 'r') then
    raise exception using errcode = 'duplicate_table', message = format('%I.event_outbox exists and is not partitioned, and outbox.partitioned asks for a partitioned one', ledger),
      hint = 'docs/partitions.md#existing says how to make it partitioned, with its rows; without --partitioned it stays as it is';
  end if;
  if clash is null then
    select string_agg(format('%s.event_id is of type %s, the outbox''s id needs %s', c.relname, format_type(a.atttypid, null), id_type), '; ' order by c.relname)
      into clash
      from pg_attribute a join pg_class c on c.oid = a.attrelid
      where c.relnamespace = namespace and c.relname in ('outbox_delivery_log', 'outbox_parked')
        and a.attname = 'event_id' and format_type(a.atttypid, null) <> id_type;
  end if;
  if clash is not null then
    raise exception using errcode = 'duplicate_table', message = clash, hint =
      'use an outbox table that has other columns by mapping them (source.table and source.columns); '
      'put the ledger beside other tables of these names by source.ledger_schema';
  end if;

  -- A version 7 uuid whose 12 bits behind the version hold the fraction of the millisecond, so that ids made by one server
  -- sort by microsecond. (uuidv7() exists from PostgreSQL 18 on.)
  execute format($$
    create or replace function %1$I.outbox_uuid_v7() returns uuid
      language sql volatile parallel safe
      return (
        select (lpad(to_hex(us / 1000), 12, '0') || '7' || lpad(to_hex(mod(us, 1000) * 4096 / 1000), 3, '0')
                || right(replace(gen_random_uuid()::text, '-', ''), 16))::uuid
        from (select floor(extract(epoch from clock_timestamp()) * 1000000)::bigint) as now (us)
      )
  $$, ledger);
  functions := functions || to_regprocedure(format('%I.outbox_uuid_v7()', ledger))::oid;

  -- The tables and their indexes, in this order. %2$s is the type of event ids, %3$s the index method that suits it. A btree
  -- takes no value above 2.7 kB, and whoever inserts one would get the error: values that may be longer have a hash index.
  -- %4$s and %5$s are what differs in an event_outbox that is partitioned.
  for item in
    select name, statement from (values

    -- Insert-only: an event is told once and never changed, and the connector never writes here. payload is json, not
    -- jsonb, so that the bytes that were committed are the bytes delivered; jsonb, text or bytea work as well.
    ('event_outbox', $$
    create table %1$I.event_outbox (
      id             uuid        %4$s default %1$I.outbox_uuid_v7(),
      aggregate_type text        not null check (aggregate_type <> ''),
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
    )%5$s$$),
    -- Takes the rows of every day that has no partition, so that no insert fails. A unique key of the whole table would need
    -- created_at in it, and two rows of one id would differ in that. So each partition has a key of its own: an id is unique in its day.
    ('event_outbox_default', 'create table %1$I.event_outbox_default partition of %1$I.event_outbox (primary key (id)) default'),
    ('idx_outbox_aggregate', 'create index idx_outbox_aggregate on %1$I.event_outbox using hash (aggregate_id)'),
    -- Tenants are few, and a hash index gets slow with a value that a million rows share. This one says of each block range
    -- which tenants may be in it.
    ('idx_outbox_tenant_id', 'create index idx_outbox_tenant_id on %1$I.event_outbox using brin (tenant_id text_bloom_ops)'),
    -- The order in which a backlog is walked, and in which housekeeping deletes.
    ('idx_outbox_created_at', 'create index idx_outbox_created_at on %1$I.event_outbox (created_at, id)'),

    -- One row a sink, made when the connector first starts with it. Ids count from 1: processor 0 stands in the other
    -- tables for "no sink" (a row that is no valid event, an event that no route wants) and has no row here.
    ('outbox_processors', $$
    create table %1$I.outbox_processors (
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
      state             jsonb,                            -- the sink's condition, as the connector that streams has last seen it
      unique (connector, processor_name)
    )$$),

    -- What happened, append-only. No unique key (a crash may leave a delivery twice, told apart by epoch) and no foreign
    -- keys: an event can arrive on the stream before its row is visible to anybody, and old outbox rows are deleted before
    -- old log rows. Partitioned by UTC day, so that retention drops tables instead of deleting rows.
    ('outbox_delivery_log', $$
    create table %1$I.outbox_delivery_log (
      id             bigint generated always as identity (cache 1000), -- orders the rows of one recorder, no more
      event_id       %2$s,                      -- null: a row without an id, kept as a dead letter
      processor_id   int         not null,
      attempt_number int         not null,
      status         text        not null check (status in ('delivered', 'failed', 'dead', 'discarded')),
      started_at     timestamptz,
      completed_at   timestamptz not null,
      duration_ms    real,
      error_message  text,
      commit_lsn     pg_lsn      not null, -- with tx_index the event's position; below index 0 for rows never streamed
      tx_index       bigint      not null,
      epoch          int         not null,
      member         text                    -- of a composite sink, which one took the event; null in all other rows
    ) partition by range (completed_at)$$),
    ('idx_outbox_log_event_id', 'create index idx_outbox_log_event_id on %1$I.outbox_delivery_log using %3$s (event_id)'),
    -- What lies beyond the prefix is read at every start; positions come almost in order.
    ('idx_outbox_log_commit_lsn', 'create index idx_outbox_log_commit_lsn on %1$I.outbox_delivery_log using brin (commit_lsn)'),
    ('idx_outbox_status', $$create index idx_outbox_status on %1$I.outbox_delivery_log (status, completed_at) where status <> 'delivered'$$),

    -- What is still owed, by value: what later becomes of the outbox's row never matters to it. The key is the order of
    -- delivery. It is a queue, whose deleted rows stay in the indexes until vacuum has been there, hence the settings.
    ('outbox_parked', $$
    create table %1$I.outbox_parked (
      processor_id    int         not null,
      commit_lsn      pg_lsn      not null,
      tx_index        bigint      not null,
      event_id        %2$s,                      -- null: a row without an id
      agg_hash        bigint      not null, -- of aggregate type and id; picks the lane by abs(agg_hash modulo lanes)
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
            toast.autovacuum_vacuum_scale_factor = 0.01, toast.autovacuum_vacuum_cost_delay = 0)$$),
    ('idx_outbox_pending_events', 'create index idx_outbox_pending_events on %1$I.outbox_parked using %3$s (event_id)'),
    -- The heads: of each aggregate the tried rows, by which it is held.
    ('idx_outbox_retry_ready', $$
    create index idx_outbox_retry_ready on %1$I.outbox_parked (processor_id, agg_hash, commit_lsn, tx_index)
      include (next_attempt_at) where next_attempt_at is not null$$),

    -- How far a slot's stream is settled. Half of each page is left free: the row is updated with every batch, in place.
    ('outbox_checkpoints', $$
    create table %1$I.outbox_checkpoints (
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
      updated_at        timestamptz not null default now(),
      database_oid      oid,                        -- with the system identifier and the name: which database the slot is of
      database_name     text,
      source_hosts      text                        -- hosts and ports as configured: a copy of the server is reached by others
    ) with (fillfactor = 50)$$),

    -- Rows of the outbox that the stream never carried, or that a person wants again: one job a sink.
    ('outbox_backlog', $$
    create table %1$I.outbox_backlog (
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
      status        text   not null,       -- running, done
      created_at    timestamptz not null default now(),
      reason        text,                  -- what has filed it: init, resync, reconcile, sink, replay
      walked        bigint not null default 0, -- rows of the outbox that it has compared
      finished_at   timestamptz
    )$$),

    ('outbox_metrics', $$
    create table %1$I.outbox_metrics (
      id           bigint    primary key generated always as identity,
      processor_id int       not null,
      metric_type  text      not null,
      time_window  tstzrange not null,
      value        double precision not null,
      unit         text,
      metadata     jsonb     not null default '{}'
    )$$),

    -- One row: how far the log was dropped, and what the last pass of the cleanup has done. File 007 fills it.
    ('outbox_retention', $$
    create table %1$I.outbox_retention (
      id                int         primary key default 1 check (id = 1),
      log_dropped_until timestamptz,                       -- the end of the newest partition of the log that was dropped with rows in it
      last_pass_at      timestamptz,
      report            jsonb       not null default '{}' -- what the last pass has deleted, and what stays for which reason
    )$$),

    -- Which of these files have been applied.
    ('outbox_migrations', $$
    create table %1$I.outbox_migrations (
      id         int       primary key generated by default as identity,
      version_id bigint    not null,
      is_applied boolean   not null,
      tstamp     timestamp not null default now()
    )$$)

    ) as ours (name, statement)
    where name <> all (have)
      and not (mapped and name in ('event_outbox', 'event_outbox_default', 'idx_outbox_aggregate', 'idx_outbox_tenant_id', 'idx_outbox_created_at'))
      and (name <> 'event_outbox_default' or by_day and 'event_outbox' <> all (have))
  loop
    execute format(item.statement, ledger, id_type, case id_type when 'text' then 'hash' else 'btree' end,
      case when by_day then 'not null' else 'primary key' end, case when by_day then ' partition by range (created_at)' else '' end);
  end loop;

  -- Makes the log's partitions of the UTC day of first and of the days after it, and returns how many were missing. The
  -- connector calls it ahead of time and, when an insert finds no partition, with the time of that row. There is no default
  -- partition: its rows would stand in the way of the day's own one, and outlive it.
  --
  -- A partition is made on its own and then attached, which lets readers and writers of the log go on; "create table ...
  -- partition of" waits for every one of them, and stops all who come after.
  --
  -- It runs as its owner, so the connector needs no right to create tables. What it calls is PostgreSQL's own, by its
  -- search_path. A day's partition is known by its bounds, not by its name. A table of that name is attached only if the
  -- log's owner owns it, because then it is one that was detached. Anybody else could have made triggers on it.
  execute format($$
    create or replace function %1$I.outbox_make_partitions(first timestamptz default now(), days_ahead int default 7) returns int
      language plpgsql security definer
      set search_path = pg_catalog, pg_temp set timezone = 'UTC' set datestyle = 'ISO'
      as %2$L
  $$, ledger, format($$
declare
  ledger    constant text := %L;$$, ledger) || $body$
  log       oid := format('%I.outbox_delivery_log', ledger)::regclass;
  present   text[];
  day       date;
  lower     text;
  upper     text;
  partition text;
  made      int := 0;
begin
  if days_ahead < 0 or days_ahead > 31 then
    raise exception using errcode = 'invalid_parameter_value', message = 'days_ahead is not within 0 and 31';
  end if;
  -- Two callers at once: the second waits, and then finds them made.
  perform pg_advisory_xact_lock('pg_class'::regclass::oid::int, log::int);
  present := array(select pg_get_expr(c.relpartbound, c.oid) from pg_inherits join pg_class c on c.oid = inhrelid where inhparent = log);
  for i in 0 .. days_ahead loop
    day := (first at time zone 'UTC')::date + i;
    lower := day::text || ' 00:00:00+00';
    upper := (day + 1)::text || ' 00:00:00+00';
    continue when format('FOR VALUES FROM (%L) TO (%L)', lower, upper) = any (present);
    partition := 'outbox_delivery_log_' || to_char(day, 'YYYYMMDD');
    if not exists (select from pg_class c join pg_class l on l.oid = log and l.relnamespace = c.relnamespace and l.relowner = c.relowner
                   where c.relname = partition and c.relkind = 'r' and not c.relispartition) then
      if exists (select from pg_class c join pg_class l on l.oid = log and l.relnamespace = c.relnamespace where c.relname = partition)
         or exists (select from pg_type t join pg_class l on l.oid = log and l.relnamespace = t.typnamespace where t.typname = partition) then
        partition := partition || '_' || left(gen_random_uuid()::text, 8); -- which nobody can have taken on purpose
      end if;
      execute format('create table %1$I.%2$I (like %1$I.outbox_delivery_log including constraints including storage)', ledger, partition);
    end if;
    execute format('alter table %1$I.outbox_delivery_log attach partition %1$I.%2$I for values from (%3$L) to (%4$L)', ledger, partition, lower, upper);
    made := made + 1;
  end loop;
  return made;
end
$body$);
  execute format('revoke execute on function %I.outbox_make_partitions(timestamptz, int) from public', ledger);
  functions := functions || to_regprocedure(format('%I.outbox_make_partitions(timestamptz, int)', ledger))::oid;

  -- What became of each event; the worst sink wins: dead, parked, pending, discarded, delivered. An event is expired if the ledger
  -- has no row of it, and may have dropped the partition of the log that had one: its time is before log_dropped_until. An event counts as discarded if a
  -- person has discarded a dead letter of it, or if nobody has accepted it. Which sinks an event is owed to is the
  -- connector's knowledge (its routes), so one that some sinks have settled counts as pending until all known sinks have,
  -- or until the prefix has passed it. Made for looking at single events and at the newest ones: counting all of them reads
  -- all of the log.
  --
  -- A view depends on the columns that it names, and PostgreSQL then refuses to change their type. So it reads them through
  -- functions that take the whole row, and whose text is parsed when it is planned. They are inlined: an index on the column
  -- is used as before. Inside a lateral subquery they would be given the whole row, payload included, at run time; "cross
  -- join lateral ... as o (event_id)" gives it the id alone.
  if not mapped then
    for item in
      select name, type, format('%1$I.%2$I(%1$I.event_outbox)', ledger, 'outbox_status_' || name) as signature from (values
        ('id', id_type), ('aggregate_type', 'text'), ('aggregate_id', 'text'), ('event_type', 'text'), ('tenant_id', 'text'), ('created_at', 'timestamptz')
      ) as columns (name, type)
    loop
      execute format('create or replace function %1$s returns %3$s language sql stable parallel safe as ''select $1.%2$I::pg_catalog.%3$s''',
        item.signature, item.name, item.type);
      execute format('grant execute on function %s to public', item.signature);
      functions := functions || to_regprocedure(item.signature)::oid;
    end loop;
    execute format(case when 'event_outbox_status' = any (have) then 'create or replace' else 'create' end || $$ view %1$I.event_outbox_status as
    select %1$I.outbox_status_id(e) as id, %1$I.outbox_status_aggregate_type(e) as aggregate_type, %1$I.outbox_status_aggregate_id(e) as aggregate_id,
           %1$I.outbox_status_event_type(e) as event_type, %1$I.outbox_status_tenant_id(e) as tenant_id, %1$I.outbox_status_created_at(e) as created_at,
           s.status,
           case when s.status in ('delivered', 'discarded') then l.settled_at end as processed_at,
           greatest(p.tries, l.tries, 1) - 1 as retry_count,
           p.next_retry_at,
           case when s.status not in ('delivered', 'discarded') then coalesce(p.error_message, l.error_message) end as error_message
    from %1$I.event_outbox e
    cross join lateral %1$I.outbox_status_id(e) as o (event_id)
    cross join lateral %1$I.outbox_status_created_at(e) as t (created_at)
    cross join lateral (
      select coalesce(bool_or(status = 'dead'), false) as dead, count(*) > 0 as owed, max(tries) as tries,
             min(next_attempt_at) filter (where status = 'parked') as next_retry_at,
             (array_agg(error_message order by status, parked_at desc) filter (where error_message is not null))[1] as error_message
      from %1$I.outbox_parked where event_id = o.event_id) p
    cross join lateral (
      select count(*) > 0 as known, count(distinct processor_id) filter (where status <> 'failed') as processors, max(attempt_number) as tries,
             coalesce(bool_or(status = 'delivered'), false) as delivered,
             coalesce(bool_or(status = 'discarded'
               and exists (select from %1$I.outbox_delivery_log d where d.event_id = r.event_id and d.processor_id = r.processor_id and d.status = 'dead')
               and not exists (select from %1$I.outbox_delivery_log n where n.event_id = r.event_id and n.processor_id = r.processor_id
                                 and n.status = 'delivered' and n.completed_at >= r.completed_at)), false) as given_up,
             max(completed_at) filter (where status <> 'failed') as settled_at,
             (array_agg(error_message order by completed_at desc) filter (where error_message is not null))[1] as error_message,
             bool_or(exists (select from %1$I.outbox_checkpoints c where r.tx_index >= 0 and r.epoch >= c.slot_epoch
                               and (r.commit_lsn, r.tx_index) > (c.prefix_lsn, c.prefix_index))) as beyond_prefix
      from %1$I.outbox_delivery_log r where event_id = o.event_id) l
    cross join lateral (
      select case when p.dead then 'dead'
                  when p.owed then 'parked'
                  when not l.known and t.created_at < (select log_dropped_until from %1$I.outbox_retention) then 'expired'
                  when l.processors = 0 then 'pending'
                  when l.beyond_prefix and l.processors < (select count(*) from %1$I.outbox_processors) then 'pending'
                  when l.delivered and not l.given_up then 'delivered'
                  else 'discarded' end as status) s$$, ledger);
  end if;

  -- "create or replace" leaves a function to the role that had made it, who could then change it again.
  select string_agg(format('function %s belongs to role %I', p.oid::regprocedure, r.rolname), '; ' order by p.oid) into strangers
    from pg_proc p join pg_roles r on r.oid = p.proowner where p.oid = any (functions) and p.proowner <> all (trusted);
  if strangers is not null then
    raise exception using errcode = 'duplicate_table', message = strangers || ', who could run code with your rights through it', hint =
      'drop it; or put the ledger into a schema where others cannot create anything, by source.ledger_schema';
  end if;
  execute format('select %I.outbox_make_partitions(now(), 7)', ledger);
  -- Tables that were made just now have what the next files add to older ones. The view is always that of this file.
  execute format('insert into %1$I.outbox_migrations (version_id, is_applied) select n, true from unnest($1) as n where not exists (select from %1$I.outbox_migrations where version_id = n)', ledger)
    using array[4] || case when 'outbox_delivery_log' = any (have) then '{}'::int[] else array[5] end || case when 'outbox_processors' = any (have) then '{}'::int[] else array[6] end
      || case when 'outbox_checkpoints' = any (have) or 'outbox_backlog' = any (have) then '{}'::int[] else array[10] end;
  perform set_config('search_path', path, true);
end
$migration$;
-- +goose StatementEnd
