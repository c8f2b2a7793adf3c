-- Columns of outbox_checkpoints that say which database a slot is of, and columns of outbox_backlog that say how far a job has come.
--
-- The first file makes them in a new ledger; this one brings a ledger up to date that an older version has made. The files may be
-- applied in any order, any number of times. If there is no ledger yet, this one does nothing. The settings, and the rules against what
-- other roles may have made in the schema, are those of the first file.
--
-- All columns but one are null in the rows that are there, and that one has a constant default, so adding them changes no row. But it needs
-- each table for itself for a moment: it waits for everybody who reads or writes it, for ten seconds at most unless lock_timeout is set, and
-- others wait behind it.
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
  slots     pg_catalog.oid;
  jobs      pg_catalog.oid;
  strangers pg_catalog.text;
  has       pg_catalog.text;
  item      record;
begin
  set local search_path = pg_catalog, pg_temp;
  ledger := coalesce(nullif(current_setting('outbox.schema', true), ''), ledger);
  namespace := (select oid from pg_namespace where nspname = ledger);
  slots := (select oid from pg_class where relnamespace = namespace and relname = 'outbox_checkpoints');
  jobs := (select oid from pg_class where relnamespace = namespace and relname = 'outbox_backlog');
  if slots is not null and jobs is not null then
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
      where relnamespace = namespace and relname in ('outbox_checkpoints', 'outbox_backlog', 'outbox_migrations') and relowner <> all (trusted);
    if strangers is not null then
      raise exception using errcode = 'duplicate_table', message = strangers || ', who could run code with your rights through it', hint =
        'drop it, or make it yours (alter ... owner to ...) after looking at its triggers, rules and defaults; '
        'or put the ledger into a schema where others cannot create anything, by source.ledger_schema';
    end if;
    if (select count(*) from pg_class c where c.oid in (slots, jobs) and relkind = 'r') < 2
       or not exists (select from pg_class where relnamespace = namespace and relname = 'outbox_migrations' and relkind = 'r') then
      raise exception using errcode = 'duplicate_table', message = format('schema %I has an outbox_checkpoints or outbox_backlog that is not ours', ledger), hint =
        'put the ledger beside other tables of these names by source.ledger_schema, and run "outbox-cdc init"';
    end if;
    for item in
      select tab, col, type, more from (values
        ('outbox_checkpoints', 'database_oid', 'oid', ''), ('outbox_checkpoints', 'database_name', 'text', ''), ('outbox_checkpoints', 'source_hosts', 'text', ''),
        ('outbox_backlog', 'reason', 'text', ''), ('outbox_backlog', 'walked', 'bigint', ' not null default 0'),
        ('outbox_backlog', 'finished_at', 'timestamp with time zone', '')) as columns (tab, col, type, more)
    loop
      has := (select format_type(atttypid, null) from pg_attribute where attrelid = case item.tab when 'outbox_backlog' then jobs else slots end
        and attname = item.col and not attisdropped);
      if has is null then
        if patience = '0' then
          set local lock_timeout = '10s';
        end if;
        execute format('alter table %I.%I add column %I %s%s', ledger, item.tab, item.col, item.type, item.more);
        perform set_config('lock_timeout', patience, true);
      elsif has <> item.type then
        raise exception using errcode = 'duplicate_column', message = format('%s.%s is of type %s, and ours is %s', item.tab, item.col, has, item.type), hint =
          'rename that column, or put the ledger into another schema by source.ledger_schema';
      end if;
    end loop;
    execute format('insert into %1$I.outbox_migrations (version_id, is_applied) select 10, true where not exists (select from %1$I.outbox_migrations where version_id = 10)', ledger);
  end if;
  perform set_config('search_path', path, true);
end
$migration$;
-- +goose StatementEnd
