-- Retention: what is needed to delete old partitions of the delivery log, and old rows of the outbox.
--
--   outbox_retention            how far the log was dropped, and what the last pass of the cleanup has done
--   outbox_drop_log_partitions  a function by which a login that owns nothing drops old partitions of the log
--   event_outbox                is vacuumed more often, so that the space of deleted rows is used again
--   event_outbox_status         shows an event as expired if its part of the log was dropped; and as discarded if a person has
--                               discarded a dead letter of it, even if other sinks have accepted it
--
-- The first file makes the table and the view in a new ledger, and this one in a ledger that an older version has made. The function
-- is in this file alone. The files may be applied in any order, any number of times. If there is no ledger yet, this one does nothing.
-- The settings, and the rules against what other roles may have made in the schema, are those of the first file.
--
-- Nobody waits for this file but a VACUUM or ANALYZE of event_outbox, and it waits for these: for ten seconds at most, unless
-- lock_timeout is set. No setting of a table of your own (a mapped outbox) is changed.
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
  log       pg_catalog.oid;
  retention pg_catalog.oid;
  outbox    pg_catalog.oid;      -- event_outbox, if it is ours
  has_view  boolean;             -- a view of ours
  strangers pg_catalog.text;
  has       pg_catalog.text;
  item      record;
begin
  set local search_path = pg_catalog, pg_temp;
  ledger := coalesce(nullif(current_setting('outbox.schema', true), ''), ledger);
  namespace := (select oid from pg_namespace where nspname = ledger);
  log := (select oid from pg_class where relnamespace = namespace and relname = 'outbox_delivery_log');
  if log is not null then
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
    if coalesce(current_setting('outbox.mapped', true), '') <> 'on' then
      outbox := (select oid from pg_class where relnamespace = namespace and relname = 'event_outbox' and relkind in ('r', 'p'));
    end if;
    has_view := outbox is not null
      and exists (select from pg_class where relnamespace = namespace and relname = 'event_outbox_status' and relkind = 'v')
      and exists (select from pg_proc p join pg_class c on c.reltype = proargtypes[0]
                  where pronamespace = namespace and proname = 'outbox_status_id' and pronargs = 1 and c.oid = outbox);
    select string_agg(format('%s belongs to role %I', thing, rolname), '; ' order by thing) into strangers from (
        select format('%I.%I', ledger, relname) as thing, relowner as owner from pg_class
          where relnamespace = namespace and (relname in ('outbox_delivery_log', 'outbox_migrations', 'outbox_retention')
            or outbox is not null and relname = 'event_outbox' or has_view and relname = 'event_outbox_status')
        union all
        select format('%I.%I', ledger, typname), typowner from pg_type where typnamespace = namespace and typname = 'outbox_retention' and typrelid = 0
        union all
        select format('function %s', p.oid::regprocedure), proowner from pg_proc p
          where pronamespace = namespace and (has_view and starts_with(proname, 'outbox_status_')
            or p.oid = to_regprocedure(format('%I.outbox_drop_log_partitions(timestamptz, boolean)', ledger)))) used
      join pg_roles r on r.oid = owner
      where owner <> all (trusted);
    if strangers is not null then
      raise exception using errcode = 'duplicate_table', message = strangers || ', who could run code with your rights through it', hint =
        'drop it, or make it yours (alter ... owner to ...) after looking at its triggers, rules and defaults; '
        'or put the ledger into a schema where others cannot create anything, by source.ledger_schema';
    end if;
    if not exists (select from pg_class c where c.oid = log and relkind = 'p')
       or not exists (select from pg_class where relnamespace = namespace and relname = 'outbox_migrations' and relkind = 'r') then
      raise exception using errcode = 'duplicate_table', message = format('schema %I has an outbox_delivery_log that is not ours', ledger), hint =
        'put the ledger beside other tables of this name by source.ledger_schema, and run "outbox-cdc init"';
    end if;

    -- One row.
    retention := (select oid from pg_class where relnamespace = namespace and relname = 'outbox_retention');
    if retention is null then
      execute format($$
      create table %1$I.outbox_retention (
        id                int         primary key default 1 check (id = 1),
        log_dropped_until timestamptz,                       -- the end of the newest partition of the log that was dropped with rows in it
        last_pass_at      timestamptz,
        report            jsonb       not null default '{}' -- what the last pass has deleted, and what stays for which reason
      )$$, ledger);
    else
      has := (select string_agg(attname || ' ' || format_type(atttypid, null), ', ' order by attnum) from pg_attribute
              where attrelid = retention and attnum > 0 and not attisdropped);
      if has <> 'id integer, log_dropped_until timestamp with time zone, last_pass_at timestamp with time zone, report jsonb'
         or not exists (select from pg_class where oid = retention and relkind = 'r') then
        raise exception using errcode = 'duplicate_table', message = format('schema %I has an outbox_retention that is not ours', ledger), hint =
          'rename that table, or put the ledger beside it by source.ledger_schema, and run "outbox-cdc init"';
      end if;
    end if;
    execute format('insert into %I.outbox_retention (id) values (1) on conflict do nothing', ledger);
    -- Whoever may read the log may read how far it was dropped.
    for item in
      select case grantee when 0 then 'public' else quote_ident(rolname) end as role
      from pg_class c cross join aclexplode(relacl) left join pg_roles r on r.oid = grantee
      where c.oid = log and privilege_type = 'SELECT' and grantee <> relowner and (grantee = 0 or rolname is not null)
    loop
      execute format('grant select on table %I.outbox_retention to %s', ledger, item.role);
    end loop;

    -- Drops old partitions of the log: those that end at or before "before" and before now, which our partitions of a day do when the
    -- day is over. The oldest comes first, and the first one that has to stay ends it, so that what is left has no hole. A call drops
    -- one partition at most; call again, in another transaction, for the next one. With dry_run it drops nothing and takes no lock,
    -- and it says of every partition what would become of it.
    --
    -- Each row that it returns is a partition that it has looked at, with an outcome:
    --
    --   dropped     it is gone (dry_run: it would go)
    --   young       it ends after "before", or after now
    --   unsettled   it has rows beyond the prefix of a slot, which a session of this slot reads when it starts
    --   held        none may go: a slot is being made, or a job of outbox_backlog is unfinished
    --   busy        somebody reads it or the log, or writes it; call again later
    --   refused     PostgreSQL has refused to drop it
    --   foreign     it is not ours: another role owns it, or it is no plain table, or it has no bounds (default); it is passed over
    --   behind      (only dry_run) an older one has to stay
    --
    -- The rule is checked under locks that nobody can write that partition beside, nor begin a job. DROP needs ACCESS EXCLUSIVE on the
    -- whole log, and whoever waits for that lets everybody else queue behind. So it looks first whether anybody holds the log for
    -- longer than a moment, and waits for a tenth of a second at most for a lock.
    --
    -- It runs as its owner, so the connector needs no right to drop tables. What it calls is PostgreSQL's own, by its search_path.
    -- Event triggers run as usual: superusers make them.
    execute format($$
      create or replace function %1$I.outbox_drop_log_partitions(before timestamptz, dry_run boolean)
        returns table (partition text, lower_bound timestamptz, upper_bound timestamptz, bytes bigint, outcome text, reason text)
        language plpgsql security definer
        set search_path = pg_catalog, pg_temp set timezone = 'UTC' set datestyle = 'ISO' set row_security = off
        set lock_timeout = '100ms' set enable_seqscan = off set jit = off
        as %2$L
    $$, ledger, format($$
declare
  ledger   constant text := %L;$$, ledger) || $body$
  log      oid := format('%I.outbox_delivery_log', ledger)::regclass;
  item     record;
  slot     record;
  beyond   boolean;          -- the partition has rows beyond the slot's prefix
  used     boolean;          -- it has rows
  stays    boolean := false; -- an older partition has to stay
  seen     text[];           -- the transactions that hold the log or the partition
  relation text;
  detail   text;
begin
  -- The rule is checked by what is committed now, not by what was committed when an older snapshot was taken.
  if before is null or dry_run is null then
    raise exception using errcode = 'null_value_not_allowed', message = 'before and dry_run must not be null';
  end if;
  if not dry_run and current_setting('transaction_isolation') <> 'read committed' then
    raise exception using errcode = 'invalid_transaction_state', message = 'outbox_drop_log_partitions needs a transaction that is read committed';
  end if;
  for item in
    with child as (
      select c.oid, relname::text as name, relkind, pg_get_userbyid(relowner)::text as owner, relowner = (select relowner from pg_class where oid = log) as ours,
             pg_get_expr(relpartbound, c.oid) as bound
      from pg_inherits join pg_class c on c.oid = inhrelid where inhparent = log and not inhdetachpending),
    bounds as (
      select oid, name, relkind, owner, ours, bound,
             case when bound like 'FOR VALUES FROM (MINVALUE)%' then '-infinity' else substring(bound from $re$FROM \('([^']+)'\)$re$)::timestamptz end as low,
             case when bound like '%TO (MAXVALUE)' then 'infinity' else substring(bound from $re$TO \('([^']+)'\)$re$)::timestamptz end as high
      from child)
    select * from bounds order by high, name -- a default partition comes last, with null
  loop
    partition := item.name;
    lower_bound := item.low;
    upper_bound := item.high;
    bytes := null;
    outcome := null;
    reason := null;
    begin
      bytes := pg_total_relation_size(item.oid);
      continue when bytes is null; -- somebody has dropped it meanwhile
      if not item.ours or item.relkind <> 'r' or item.high is null then
        outcome := 'foreign';
        reason := case when item.high is null then 'it is the default partition'
                       when item.relkind <> 'r' then 'it is no plain table'
                       else format('it belongs to role %I', item.owner) end || '; detach it or drop it yourself';
      elsif item.high > before or item.high > now() then
        outcome := 'young';
      elsif stays then
        outcome := 'behind';
        reason := 'an older partition has to stay';
      end if;
      -- The rule, twice: the first time without a lock, because reading may take long.
      for round in 1 .. case when outcome is null and dry_run then 1 when outcome is null then 2 else 0 end loop
        if round = 2 then
          -- Nobody else drops, nobody writes this partition, and no job begins, until this ends. Reading goes on.
          if not pg_try_advisory_xact_lock('pg_inherits'::regclass::oid::int, log::int) then
            raise lock_not_available;
          end if;
          relation := item.oid::regclass::text;
          execute format('lock table only %s in share mode', relation);
          -- Somebody may have detached or renamed it before we had the lock.
          if to_regclass(relation) is distinct from item.oid::regclass or not exists (select from pg_inherits where inhrelid = item.oid and inhparent = log) then
            raise lock_not_available;
          end if;
          execute format('lock table %I.outbox_backlog in share mode', ledger);
        end if;
        execute format($$select string_agg(case when state <> 'ready' then format('slot %%I is being made; run "outbox-cdc init" if no init is running', slot_name)
            else format('the checkpoint of slot %%I has no position', slot_name) end, '; ' order by slot_name)
          from %1$I.outbox_checkpoints where state <> 'ready' or num_nulls(prefix_lsn, prefix_index) > 0$$, ledger) into detail;
        if detail is null then
          execute format($$select 'job ' || min(id) || ' of outbox_backlog is unfinished' from %I.outbox_backlog where status <> 'done'$$, ledger) into detail;
        end if;
        if detail is not null then
          outcome := 'held';
          reason := detail;
          exit;
        end if;
        for slot in execute format('select slot_name, prefix_lsn, prefix_index, slot_epoch, updated_at from %I.outbox_checkpoints order by slot_name', ledger) loop
          execute format('select exists (select from only %s where commit_lsn >= $1 and tx_index >= 0 and epoch >= $3 and (commit_lsn, tx_index) > ($1, $2))', item.oid::regclass)
            into beyond using slot.prefix_lsn, slot.prefix_index, slot.slot_epoch;
          if beyond then
            outcome := 'unsettled';
            reason := format('slot %I has not settled all of it', slot.slot_name) || coalesce(
              (select case when not active then ', and nobody streams from it since ' || to_char(slot.updated_at, 'YYYY-MM-DD HH24:MI TZ') ||
                        format(': start its connector, or remove it: select pg_drop_replication_slot(%1$L); delete from %2$I.outbox_checkpoints where slot_name = %1$L',
                          slot.slot_name, ledger) end
                 from (select active from pg_replication_slots s where s.slot_name = slot.slot_name) as existing),
              case when not exists (select from pg_replication_slots s where s.slot_name = slot.slot_name)
                then format(', and it does not exist any more: delete from %I.outbox_checkpoints where slot_name = %L', ledger, slot.slot_name) else '' end);
            exit;
          end if;
        end loop;
        exit when outcome is not null;
      end loop;
      if outcome is null and dry_run then
        outcome := 'dropped';
      elsif outcome is null then
        seen := array(select virtualtransaction from pg_locks l where locktype = 'relation' and granted and l.relation in (log, item.oid)
          and database = (select oid from pg_database where datname = current_database()) and pid is distinct from pg_backend_pid());
        if seen <> '{}' then
          perform pg_sleep(0.05);
          if exists (select from pg_locks l where locktype = 'relation' and granted and l.relation in (log, item.oid) and virtualtransaction = any (seen)
              and database = (select oid from pg_database where datname = current_database())) then
            raise lock_not_available;
          end if;
        end if;
        execute format('select exists (select from only %s)', item.oid::regclass) into used;
        if used then
          execute format('insert into %I.outbox_retention as r (id, log_dropped_until) values (1, $1)
            on conflict (id) do update set log_dropped_until = greatest(r.log_dropped_until, excluded.log_dropped_until)', ledger) using item.high;
        end if;
        execute format('lock table only %I.outbox_delivery_log in access exclusive mode', ledger);
        execute format('drop table %s', relation);
        -- The COMMIT does not wait for a synchronous standby while it holds the log. If a failover loses it, the partition is back.
        perform set_config('synchronous_commit', 'local', true);
        outcome := 'dropped';
      end if;
    exception
      when lock_not_available or deadlock_detected then
        outcome := 'busy';
        reason := coalesce((select 'somebody uses it: ' || string_agg(distinct coalesce('pid ' || pid, 'a prepared transaction'), ', ') from pg_locks l
          where locktype = 'relation' and granted and l.relation in (log, item.oid, format('%I.outbox_backlog', ledger)::regclass)
            and database = (select oid from pg_database where datname = current_database()) and pid is distinct from pg_backend_pid()),
          'somebody used it a moment ago');
      when others then
        get stacked diagnostics detail = pg_exception_detail;
        outcome := 'refused';
        reason := concat_ws('; ', sqlerrm, nullif(detail, ''));
    end;
    return next;
    continue when outcome = 'foreign';
    stays := stays or outcome <> 'dropped';
    exit when not dry_run;
  end loop;
end
$body$);
    execute format('revoke execute on function %I.outbox_drop_log_partitions(timestamptz, boolean) from public', ledger);
    -- "create or replace" leaves a function to the role that had made it, who could then change it again.
    select string_agg(format('function %s belongs to role %I', p.oid::regprocedure, rolname), '; ') into strangers
      from pg_proc p join pg_roles r on r.oid = proowner
      where p.oid = to_regprocedure(format('%I.outbox_drop_log_partitions(timestamptz, boolean)', ledger)) and proowner <> all (trusted);
    if strangers is not null then
      raise exception using errcode = 'duplicate_table', message = strangers || ', who could run code with your rights through it', hint =
        'drop it; or put the ledger into a schema where others cannot create anything, by source.ledger_schema';
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
    -- Deleted rows of a large table would else wait for vacuum until a fifth of it is dead. What somebody has set himself stays. A
    -- partitioned outbox has no settings of its own: whoever makes its partitions sets theirs.
    has := (select string_agg(format('%s = %s', option, value), ', ')
      from (values ('autovacuum_vacuum_scale_factor', '0.05'), ('toast.autovacuum_vacuum_scale_factor', '0.05')) as ours (option, value)
      join pg_class c on c.oid = outbox and relkind = 'r'
      where not exists (select from pg_class o cross join unnest(o.reloptions) as theirs
        where o.oid = case when starts_with(option, 'toast.') then c.reltoastrelid else c.oid end
          and split_part(theirs, '=', 1) = replace(option, 'toast.', '')));
    if has is not null then
      if patience = '0' then
        set local lock_timeout = '10s';
      end if;
      execute format('alter table %I.event_outbox set (%s)', ledger, has);
      perform set_config('lock_timeout', patience, true);
    end if;
    execute format('insert into %1$I.outbox_migrations (version_id, is_applied) select 7, true where not exists (select from %1$I.outbox_migrations where version_id = 7)', ledger);
  end if;
  perform set_config('search_path', path, true);
end
$migration$;
-- +goose StatementEnd
