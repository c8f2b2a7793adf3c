-- The index of outbox_metrics by which a start finds what the results of its sinks were in the last 28 days: one row an hour.
--
-- The files may be applied in any order, any number of times. If there is no ledger yet, this one does nothing. The settings, and the rules
-- against what other roles may have made in the schema, are those of the first file.
--
-- No version before this one has written rows into outbox_metrics, so the index is made at once. It needs the table for itself for a moment:
-- it waits for everybody who writes it, for ten seconds at most unless lock_timeout is set, and others wait behind it.
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
  metrics   pg_catalog.oid;
  strangers pg_catalog.text;
begin
  set local search_path = pg_catalog, pg_temp;
  ledger := coalesce(nullif(current_setting('outbox.schema', true), ''), ledger);
  namespace := (select oid from pg_namespace where nspname = ledger);
  metrics := (select oid from pg_class where relnamespace = namespace and relname = 'outbox_metrics');
  if metrics is not null then
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
    select string_agg(format('%I.%I belongs to role %I', ledger, relname, rolname), '; ' order by relname) into strangers
      from pg_class c join pg_roles r on r.oid = relowner
      where relnamespace = namespace and relname in ('outbox_metrics', 'outbox_migrations', 'idx_outbox_metrics_hours') and relowner <> all (trusted);
    if strangers is not null then
      raise exception using errcode = 'duplicate_table', message = strangers || ', who could run code with your rights through it', hint =
        'drop it, or make it yours (alter ... owner to ...) after looking at its triggers, rules and defaults; '
        'or put the ledger into a schema where others cannot create anything, by source.ledger_schema';
    end if;
    if not exists (select from pg_class c where c.oid = metrics and relkind = 'r')
       or not exists (select from pg_class where relnamespace = namespace and relname = 'outbox_migrations' and relkind = 'r') then
      raise exception using errcode = 'duplicate_table', message = format('schema %I has an outbox_metrics that is not ours', ledger), hint =
        'put the ledger beside other tables of this name by source.ledger_schema, and run "outbox-cdc init"';
    end if;
    if to_regclass(format('%I.idx_outbox_metrics_hours', ledger)) is null then
      if patience = '0' then
        set local lock_timeout = '10s';
      end if;
      execute format($$create unique index idx_outbox_metrics_hours on %I.outbox_metrics (processor_id, lower(time_window)) where metric_type = 'hour'$$, ledger);
      perform set_config('lock_timeout', patience, true);
    elsif not exists (select from pg_index where indexrelid = to_regclass(format('%I.idx_outbox_metrics_hours', ledger)) and indrelid = metrics) then
      raise exception using errcode = 'duplicate_table', message = 'relation idx_outbox_metrics_hours is not ours (it is no index of outbox_metrics)', hint =
        'rename it, or put the ledger into another schema by source.ledger_schema';
    end if;
    execute format('insert into %1$I.outbox_migrations (version_id, is_applied) select 9, true where not exists (select from %1$I.outbox_migrations where version_id = 9)', ledger);
  end if;
  perform set_config('search_path', path, true);
end
$migration$;
-- +goose StatementEnd
