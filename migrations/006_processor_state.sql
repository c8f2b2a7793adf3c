-- The column "state" of outbox_processors: how the sink does, as the connector that streams has last seen it. And the view
-- event_outbox_status shows an event as discarded if a person has discarded a dead letter of it, even if other sinks have accepted it.
--
-- The first file makes both in a new ledger; this one brings a ledger up to date that an older version has made. The files may be
-- applied in any order, any number of times. If there is no ledger yet, this one does nothing. The settings, and the rules against what
-- other roles may have made in the schema, are those of the first file.
--
-- The column is null in all rows that are there, so adding it changes no row. But it needs the table for itself for a moment: it waits
-- for everybody who reads or writes it, for ten seconds at most unless lock_timeout is set, and others wait behind it.
--
-- +goose Up
-- +goose StatementBegin
do $migration$
declare
  -- These lines are evaluated before the search_path is changed, so they name pg_catalog.
  path      pg_catalog.text := pg_catalog.current_setting('search_path');
  patience  pg_catalog.text := pg_catalog.current_setting('lock_timeout');
  ledger    pg_catalog.text := pg_catalog.current_schema();
  namespace pg_catalog.oid;
  trusted   pg_catalog.oid[];    -- the roles whose tables are used
  sinks     pg_catalog.oid;
  has_view  boolean;             -- a view of ours
  strangers pg_catalog.text;
  has       pg_catalog.text;
begin
  set local search_path = pg_catalog, pg_temp;
  ledger := coalesce(nullif(current_setting('outbox.schema', true), ''), ledger);
  namespace := (select oid from pg_namespace where nspname = ledger);
  sinks := (select oid from pg_class where relnamespace = namespace and relname = 'outbox_processors');
  if sinks is not null then
    -- As in the first file.
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
    -- A mapped outbox has no view of ours. Nor has one whose table was replaced: the first file makes the view anew.
    has_view := coalesce(current_setting('outbox.mapped', true), '') <> 'on'
      and exists (select from pg_class where relnamespace = namespace and relname = 'event_outbox_status' and relkind = 'v')
      and exists (select from pg_proc p join pg_class c on c.reltype = proargtypes[0]
                  where pronamespace = namespace and proname = 'outbox_status_id' and pronargs = 1 and relnamespace = namespace and relname = 'event_outbox');
    select string_agg(format('%s belongs to role %I', thing, rolname), '; ' order by thing) into strangers from (
        select format('%I.%I', ledger, relname) as thing, relowner as owner from pg_class
          where relnamespace = namespace and (relname in ('outbox_processors', 'outbox_migrations') or has_view and relname in ('event_outbox_status', 'event_outbox'))
        union all
        select format('function %s', p.oid::regprocedure), proowner from pg_proc p
          where has_view and pronamespace = namespace and starts_with(proname, 'outbox_status_')) used
      join pg_roles r on r.oid = owner
      where owner <> all (trusted);
    if strangers is not null then
      raise exception using errcode = 'duplicate_table', message = strangers || ', who could run code with your rights through it', hint =
        'drop it, or make it yours (alter ... owner to ...) after looking at its triggers, rules and defaults; '
        'or put the ledger into a schema where others cannot create anything, by source.ledger_schema';
    end if;
    if not exists (select from pg_class c where c.oid = sinks and relkind = 'r')
       or not exists (select from pg_class where relnamespace = namespace and relname = 'outbox_migrations' and relkind = 'r') then
      raise exception using errcode = 'duplicate_table', message = format('schema %I has an outbox_processors that is not ours', ledger), hint =
        'put the ledger beside other tables of this name by source.ledger_schema, and run "outbox-cdc init"';
    end if;
    has := (select format_type(atttypid, null) from pg_attribute where attrelid = sinks and attname = 'state' and not attisdropped);
    if has is null then
      if patience = '0' then
        set local lock_timeout = '10s';
      end if;
      execute format('alter table %I.outbox_processors add column state jsonb', ledger);
      perform set_config('lock_timeout', patience, true);
    elsif has <> 'jsonb' then
      raise exception using errcode = 'duplicate_column', message = format('outbox_processors.state is of type %s, and ours is jsonb', has), hint =
        'rename that column, or put the ledger into another schema by source.ledger_schema';
    end if;
    if has_view then -- its functions are those of the first file, which have not changed
      execute format($$ create or replace view %1$I.event_outbox_status as
      select %1$I.outbox_status_id(e) as id, %1$I.outbox_status_aggregate_type(e) as aggregate_type, %1$I.outbox_status_aggregate_id(e) as aggregate_id,
             %1$I.outbox_status_event_type(e) as event_type, %1$I.outbox_status_tenant_id(e) as tenant_id, %1$I.outbox_status_created_at(e) as created_at,
             s.status,
             case when s.status in ('delivered', 'discarded') then l.settled_at end as processed_at,
             greatest(p.tries, l.tries, 1) - 1 as retry_count,
             p.next_retry_at,
             case when s.status not in ('delivered', 'discarded') then coalesce(p.error_message, l.error_message) end as error_message
      from %1$I.event_outbox e
      cross join lateral %1$I.outbox_status_id(e) as o (event_id)
      cross join lateral (
        select coalesce(bool_or(status = 'dead'), false) as dead, count(*) > 0 as owed, max(tries) as tries,
               min(next_attempt_at) filter (where status = 'parked') as next_retry_at,
               (array_agg(error_message order by status, parked_at desc) filter (where error_message is not null))[1] as error_message
        from %1$I.outbox_parked where event_id = o.event_id) p
      cross join lateral (
        select count(distinct processor_id) filter (where status <> 'failed') as processors, max(attempt_number) as tries,
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
                    when l.processors = 0 then 'pending'
                    when l.beyond_prefix and l.processors < (select count(*) from %1$I.outbox_processors) then 'pending'
                    when l.delivered and not l.given_up then 'delivered'
                    else 'discarded' end as status) s$$, ledger);
    end if;
    execute format('insert into %1$I.outbox_migrations (version_id, is_applied) select 6, true where not exists (select from %1$I.outbox_migrations where version_id = 6)', ledger);
  end if;
  perform set_config('search_path', path, true);
end
$migration$;
-- +goose StatementEnd
