-- An event_outbox that is partitioned by UTC day: the functions that make its days ahead of time, and drop old ones. Whether it is partitioned decides the
-- setting outbox.partitioned of the first file, which makes the table. Beside a plain event_outbox the functions do nothing.
--
-- The files may be applied in any order, any number of times. If there is no ledger yet, this one does nothing: apply it once more after
-- the first file, or run "outbox-cdc init". The settings, and the rules against what other roles may have made in the schema, are
-- those of the first file.
--
-- +goose Up
-- +goose StatementBegin
do $migration$
declare
  -- These lines are evaluated before the search_path is changed, so they name pg_catalog.
  path      pg_catalog.text := pg_catalog.current_setting('search_path');
  ledger    pg_catalog.text := pg_catalog.current_schema();
  namespace pg_catalog.oid;
  trusted   pg_catalog.oid[];    -- the roles whose tables are used
  versions  pg_catalog.char;
  mapped    boolean;
  strangers pg_catalog.text;
  functions pg_catalog.oid[] := '{}';
begin
  set local search_path = pg_catalog, pg_temp;
  ledger := coalesce(nullif(current_setting('outbox.schema', true), ''), ledger);
  mapped := coalesce(current_setting('outbox.mapped', true), '') = 'on';
  namespace := (select oid from pg_namespace where nspname = ledger);
  versions := (select relkind from pg_class where relnamespace = namespace and relname = 'outbox_migrations');
  if versions is not null then
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
      from pg_class join pg_roles r on r.oid = relowner
      where relnamespace = namespace and (relname = 'outbox_migrations' or not mapped and relname = 'event_outbox') and relowner <> all (trusted);
    if strangers is not null then
      raise exception using errcode = 'duplicate_table', message = strangers || ', who could run code with your rights through it', hint =
        'drop it, or make it yours (alter ... owner to ...) after looking at its triggers, rules and defaults; '
        'or put the ledger into a schema where others cannot create anything, by source.ledger_schema';
    end if;
    if versions <> 'r' then
      raise exception using errcode = 'duplicate_table', message = format('schema %I has an outbox_migrations that is not ours', ledger), hint =
        'put the ledger beside other tables of this name by source.ledger_schema, and run "outbox-cdc init"';
    end if;
    if not mapped then
      -- Makes the partitions of the UTC day of first and of the days after it, and returns of each day what has become of it:
      --
      --   made     it was made just now
      --   there    a partition has it
      --   rows     not made, because the default partition has rows of it. They stay there, and those to come go there as well.
      --   large    not made, because the default partition is larger than 32 MB: PostgreSQL reads all of it when a partition is
      --            attached, and those who insert into it would wait. "set outbox.scan_default = on" makes the day all the same.
      --   locked   not made, because somebody has held a lock on event_outbox or its default partition for 200 ms. Come again later.
      --
      -- A partition is made on its own and then attached, which lets those go on who read and write other partitions. The default
      -- partition is locked for that moment, for everybody.
      --
      -- It runs as its owner, so the connector needs no right to create tables. What it calls is PostgreSQL's own, by its search_path.
      execute format($$
        create or replace function %1$I.outbox_make_event_partitions(first timestamptz default now(), days_ahead int default 14)
          returns table (day date, state text)
          language plpgsql security definer
          set search_path = pg_catalog, pg_temp set timezone = 'UTC' set datestyle = 'ISO' set lock_timeout = '200ms'
          as %2$L
      $$, ledger, format($$
declare
  ledger    constant text := %L;$$, ledger) || $body$
  outbox    oid;
  rest      oid; -- the default partition
  filled    boolean;
  lower     timestamptz;
  upper     timestamptz;
  partition text;
begin
  if days_ahead < 0 or days_ahead > 62 then
    raise exception using errcode = 'invalid_parameter_value', message = 'days_ahead is not within 0 and 62';
  end if;
  select c.oid, partdefid into outbox, rest from pg_class c join pg_namespace n on n.oid = relnamespace join pg_partitioned_table p on partrelid = c.oid
    where nspname = ledger and relname = 'event_outbox' and partstrat = 'r' and partnatts = 1
      and partattrs[0] = (select attnum from pg_attribute where attrelid = c.oid and attname = 'created_at');
  if outbox is null then
    return;
  end if;
  for i in 0 .. days_ahead loop
    day := (first at time zone 'UTC')::date + i;
    lower := day::timestamptz;
    upper := (day + 1)::timestamptz;
    begin
      -- Two callers at once: the second waits, and then finds it made.
      perform pg_advisory_xact_lock('pg_class'::regclass::oid::int, outbox::int);
      if exists (
        select from pg_inherits join pg_class c on c.oid = inhrelid
          cross join lateral regexp_match(pg_get_expr(c.relpartbound, c.oid), '^FOR VALUES FROM \(''?(.*?)''?\) TO \(''?(.*?)''?\)$') as bound
        where inhparent = outbox and replace(bound[1], 'MINVALUE', '-infinity')::timestamptz < upper
          and replace(bound[2], 'MAXVALUE', 'infinity')::timestamptz > lower)
      then
        state := 'there';
        return next;
        continue;
      end if;
      if rest <> 0 then
        execute format('select exists (select from only %s where created_at >= $1 and created_at < $2)', rest::regclass) into filled using lower, upper;
        if filled then
          raise check_violation;
        end if;
        if pg_relation_size(rest) > 32 * 1024 * 1024 and coalesce(current_setting('outbox.scan_default', true), '') <> 'on' then
          state := 'large';
          return next;
          continue;
        end if;
      end if;
      partition := 'event_outbox_' || to_char(day, 'YYYYMMDD');
      if exists (select from pg_class c join pg_class o on o.oid = outbox and o.relnamespace = c.relnamespace where c.relname = partition)
         or exists (select from pg_type t join pg_class o on o.oid = outbox and o.relnamespace = t.typnamespace where t.typname = partition) then
        partition := partition || '_' || left(gen_random_uuid()::text, 8); -- which nobody can have taken on purpose
      end if;
      execute format('create table %1$I.%2$I (like %1$I.event_outbox including constraints including defaults including generated '
        'including storage including compression, primary key (id))', ledger, partition);
      execute format('alter table %1$I.event_outbox attach partition %1$I.%2$I for values from (%3$L) to (%4$L)', ledger, partition, lower, upper);
      state := 'made';
    exception
      when lock_not_available then
        state := 'locked';
      when check_violation then
        state := 'rows';
    end;
    return next;
  end loop;
end
$body$);
      execute format('revoke execute on function %I.outbox_make_event_partitions(timestamptz, int) from public', ledger);
      functions := functions || to_regprocedure(format('%I.outbox_make_event_partitions(timestamptz, int)', ledger))::oid;

      -- Drops the oldest partition of a day that ended a day ago or longer and has no row any more. It returns the partition's name, and
      -- null if there is none that can be dropped now: call it until then. Rows are never lost by it: the cleanup deletes them before,
      -- one by one, by its rule. A transaction that has inserted a row and is still open holds a lock, and so keeps its partition.
      --
      -- Rows are looked for under a lock that keeps nobody out but those who write into this old day. All others wait only while the
      -- partition is dropped, and for 200 ms at most while a lock on event_outbox is waited for.
      execute format($$
        create or replace function %1$I.outbox_drop_event_partition() returns text
          language plpgsql security definer
          set search_path = pg_catalog, pg_temp set timezone = 'UTC' set datestyle = 'ISO' set lock_timeout = '200ms'
          as %2$L
      $$, ledger, format($$
declare
  ledger    constant text := %L;$$, ledger) || $body$
  partition regclass;
  name      text;
  filled    boolean;
begin
  for partition in
    select p.oid::regclass from pg_class o join pg_namespace n on n.oid = o.relnamespace join pg_inherits on inhparent = o.oid join pg_class p on p.oid = inhrelid
      cross join lateral substring(pg_get_expr(p.relpartbound, p.oid), '^FOR VALUES FROM \(.*\) TO \(''([^'']*)''\)$') as upper
    where nspname = ledger and o.relname = 'event_outbox' and o.relkind = 'p' and p.relkind = 'r' and upper is not null
      and exists (select from pg_partitioned_table join pg_attribute on attrelid = partrelid and attnum = partattrs[0]
                  where partrelid = o.oid and partstrat = 'r' and partnatts = 1 and attname = 'created_at')
      and upper::timestamptz <= now() - interval '1 day'
    order by upper::timestamptz
  loop
    -- The newest row first: it is the last one that is deleted.
    execute format('select exists (select from only %s order by created_at desc, id desc limit 1)', partition) into filled;
    continue when filled;
    begin
      execute format('lock table only %s in share mode', partition);
      execute format('select exists (select from only %s order by created_at desc, id desc limit 1)', partition) into filled;
      if not filled then
        execute format('lock table only %I.event_outbox in access exclusive mode', ledger);
        name := partition::text; -- while it has one
        execute format('drop table %s', partition);
        return name;
      end if;
    exception
      when lock_not_available or dependent_objects_still_exist then
        null; -- come again
    end;
  end loop;
  return null;
end
$body$);
      execute format('revoke execute on function %I.outbox_drop_event_partition() from public', ledger);
      functions := functions || to_regprocedure(format('%I.outbox_drop_event_partition()', ledger))::oid;

      -- Drops the partition of a day with all of its rows. Whoever calls it has looked at each row of it before, and found that it may be
      -- deleted by the rule of the cleanup: so it gives how many they were, and bit_xor of hashtextextended(id::text, 0). What stands at
      -- or before the prefix of all slots stays so, and a row that came later changes the count. The function believes the caller: who may
      -- call it has the right to delete rows of event_outbox anyway. It returns an outcome, and a reason for people:
      --
      --   dropped   it is gone
      --   changed   it has other rows than the expected ones
      --   held      none may go: a slot is being made, or a job of outbox_backlog is unfinished
      --   busy      somebody uses it or event_outbox, or vacuums it; call again later
      --   refused   it is not to be dropped: the day ended less than a day ago, it is no partition of event_outbox or no plain table,
      --             another role owns it, a trigger, rule or policy has a say in a deletion, or PostgreSQL has refused it
      --
      -- It counts under a lock that keeps nobody out but those who write into this old day, and VACUUM of it. The drop needs ACCESS
      -- EXCLUSIVE on event_outbox, and whoever waits for that lets everybody else queue behind. So it looks first whether somebody holds
      -- event_outbox for longer than a moment, and waits for a tenth of a second at most for a lock.
      execute format($$
        create or replace function %1$I.outbox_drop_event_day(partition oid, expected_rows bigint, expected_hash bigint)
          returns table (outcome text, reason text)
          language plpgsql security definer
          set search_path = pg_catalog, pg_temp set timezone = 'UTC' set datestyle = 'ISO' set lock_timeout = '100ms' set row_security = off set jit = off
          as %2$L
      $$, ledger, format($$
declare
  ledger    constant text := %L;$$, ledger) || $body$
  outbox    oid;
  rest      oid; -- the default partition
  relation  text;
  seen      text[]; -- the transactions that hold event_outbox or the partition
  has_rows  bigint;
  has_hash  bigint;
  detail    text;
begin
  -- Rows are counted by what is committed now, not by what was committed when an older snapshot was taken.
  if current_setting('transaction_isolation') <> 'read committed' then
    raise exception using errcode = 'invalid_transaction_state', message = 'outbox_drop_event_day needs a transaction that is read committed';
  end if;
  outcome := 'refused';
  select o.oid, partdefid, p.oid::regclass::text into outbox, rest, relation
    from pg_class o join pg_namespace n on n.oid = o.relnamespace join pg_partitioned_table on partrelid = o.oid
      join pg_attribute on attrelid = o.oid and attnum = partattrs[0]
      join pg_inherits on inhparent = o.oid and not inhdetachpending join pg_class p on p.oid = inhrelid
      cross join lateral substring(pg_get_expr(p.relpartbound, p.oid), '^FOR VALUES FROM \(.*\) TO \(''([^'']*)''\)$') as upper
    where nspname = ledger and o.relname = 'event_outbox' and partstrat = 'r' and partnatts = 1 and attname = 'created_at'
      and p.oid = partition and p.relkind = 'r' and p.relowner = o.relowner and upper::timestamptz <= now() - interval '1 day';
  if relation is null then
    reason := 'it is no partition of event_outbox that ended a day ago or longer, or another role owns it';
    return next;
    return;
  end if;
  -- What would see a deletion, or keep rows from it, does not see that a table is dropped.
  select string_agg(what, ', ' order by what) into detail from (
    select distinct format('trigger %I', tgname) as what from pg_trigger
      where tgrelid in (outbox, partition) and tgparentid = 0 and tgtype & 8 <> 0 and not tgisinternal and tgenabled <> 'D'
    union all
    select format('rule %I', rulename) from pg_rewrite where ev_class in (outbox, partition) and ev_type = '4' and ev_enabled <> 'D'
    union all
    select format('row security of %s', oid::regclass) from pg_class where oid in (outbox, partition) and relrowsecurity) has_a_say;
  if detail is not null then
    reason := 'its rows have to be deleted one by one, because of ' || detail;
    return next;
    return;
  end if;
  begin
    -- Nobody else drops, and nobody writes this partition, until this ends. Reading goes on.
    if not pg_try_advisory_xact_lock('pg_inherits'::regclass::oid::int, outbox::int) then
      raise lock_not_available;
    end if;
    execute format('lock table only %s in share mode', relation);
    -- Somebody may have detached or renamed it before we had the lock.
    if to_regclass(relation) is distinct from partition::regclass or not exists (select from pg_inherits where inhrelid = partition and inhparent = outbox) then
      raise lock_not_available;
    end if;
    execute format('select count(*), coalesce(bit_xor(hashtextextended(id::text, 0)), 0) from only %s', relation) into has_rows, has_hash;
    if has_rows is distinct from expected_rows or has_hash is distinct from expected_hash then
      outcome := 'changed';
      reason := format('%s rows were found, %s were looked at before', has_rows, expected_rows);
      return next;
      return;
    end if;
    execute format('lock table %I.outbox_backlog in share mode', ledger); -- no job begins
    execute format($$select string_agg(format('slot %%I is being made; run "outbox-cdc init" if no init is running', slot_name), '; ' order by slot_name)
      from %I.outbox_checkpoints where state <> 'ready' or num_nulls(prefix_lsn, prefix_index) > 0$$, ledger) into detail;
    if detail is null then
      execute format($$select 'job ' || min(id) || ' of outbox_backlog is unfinished' from %I.outbox_backlog where status <> 'done'$$, ledger) into detail;
    end if;
    if detail is not null then
      outcome := 'held';
      reason := detail;
      return next;
      return;
    end if;
    seen := array(select virtualtransaction from pg_locks l where locktype = 'relation' and granted and l.relation in (outbox, partition, rest)
      and database = (select oid from pg_database where datname = current_database()) and pid is distinct from pg_backend_pid());
    if seen <> '{}' then
      perform pg_sleep(0.05);
      if exists (select from pg_locks l where locktype = 'relation' and granted and l.relation in (outbox, partition, rest) and virtualtransaction = any (seen)
          and database = (select oid from pg_database where datname = current_database())) then
        raise lock_not_available;
      end if;
    end if;
    execute format('lock table only %I.event_outbox in access exclusive mode', ledger);
    execute format('drop table %s', relation);
    -- The COMMIT does not wait for a synchronous standby while it holds event_outbox. If a failover loses it, the partition is back.
    perform set_config('synchronous_commit', 'local', true);
    outcome := 'dropped';
  exception
    when lock_not_available or deadlock_detected then
      outcome := 'busy';
      reason := coalesce((select 'somebody uses it: ' || string_agg(distinct coalesce('pid ' || pid, 'a prepared transaction'), ', ') from pg_locks l
        where locktype = 'relation' and granted and l.relation in (outbox, partition, rest, format('%I.outbox_backlog', ledger)::regclass)
          and database = (select oid from pg_database where datname = current_database()) and pid is distinct from pg_backend_pid()),
        'somebody used it a moment ago');
    when others then
      get stacked diagnostics detail = pg_exception_detail;
      outcome := 'refused';
      reason := concat_ws('; ', sqlerrm, nullif(detail, ''));
  end;
  return next;
end
$body$);
      execute format('revoke execute on function %I.outbox_drop_event_day(oid, bigint, bigint) from public', ledger);
      functions := functions || to_regprocedure(format('%I.outbox_drop_event_day(oid, bigint, bigint)', ledger))::oid;

      -- "create or replace" leaves a function to the role that had made it, who could then change it again.
      select string_agg(format('function %s belongs to role %I', p.oid::regprocedure, r.rolname), '; ' order by p.oid) into strangers
        from pg_proc p join pg_roles r on r.oid = p.proowner where p.oid = any (functions) and p.proowner <> all (trusted);
      if strangers is not null then
        raise exception using errcode = 'duplicate_table', message = strangers || ', who could run code with your rights through it', hint =
          'drop it; or put the ledger into a schema where others cannot create anything, by source.ledger_schema';
      end if;
      execute format('select from %I.outbox_make_event_partitions(now(), 14)', ledger);
    end if;
    execute format('insert into %1$I.outbox_migrations (version_id, is_applied) select 8, true where not exists (select from %1$I.outbox_migrations where version_id = 8)', ledger);
  end if;
  perform set_config('search_path', path, true);
end
$migration$;
-- +goose StatementEnd
