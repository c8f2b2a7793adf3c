-- What somebody who may create things in a schema can put there, so that statements of others execute it. It runs as that
-- role. Settings: plant.schema is where, plant.functions the names of functions that our SQL could mean, with commas.

-- The types that an argument of a type can be taken for.
create function trap.near(t oid) returns oid[] language sql immutable as $$
  select (case
    when t in ('text'::regtype, 'varchar'::regtype, 'name'::regtype, 'bpchar'::regtype, '"char"'::regtype)
      then '{text,varchar,name,"\"char\"",regclass}'
    when t in ('int2'::regtype, 'int4'::regtype, 'int8'::regtype, 'numeric'::regtype, 'float8'::regtype, 'float4'::regtype, 'oid'::regtype)
      then '{int2,int4,int8,numeric,float8,oid}'
    when t in ('timestamptz'::regtype, 'timestamp'::regtype, 'date'::regtype) then '{timestamptz,timestamp,date,text}'
    when t = 'interval'::regtype then '{interval,int4,text}'
    when t in ('json'::regtype, 'jsonb'::regtype) then '{json,jsonb,text}'
    when t in ('"any"'::regtype, 'anyelement'::regtype, 'anynonarray'::regtype, 'anycompatible'::regtype, 'record'::regtype)
      then '{text,varchar,name,int4,int8,timestamptz,pg_lsn,uuid,json,jsonb,bool,bytea,regclass}'
    when t in ('anyarray'::regtype, 'anycompatiblearray'::regtype)
      then '{text[],name[],int4[],int8[],uuid[],timestamptz[],pg_lsn[],oid[],json[],jsonb[]}'
    else array[format_type(t, null), 'text']::text
  end)::regtype[]::oid[]
$$;

-- Functions and aggregates: of each name, what fits as well as pg_catalog's own or better.
do $$
declare
  target text := current_setting('plant.schema');
  f record;
begin
  for f in
    with named as (
      select proname, prokind, provariadic <> 0 as repeats, pronargs, proargtypes::oid[] as args,
        (select case when typtype = 'p' then 'text'::regtype else oid::regtype end from pg_type where oid = prorettype) as result
      from pg_proc where pronamespace = 'pg_catalog'::regnamespace and prokind in ('f', 'a')
        and proname = any (string_to_array(current_setting('plant.functions'), ','))
        and not exists (select from pg_aggregate a where a.aggfnoid = pg_proc.oid and a.aggkind <> 'n')
    ), planted as (
      select proname, prokind, '{}'::oid[] as args, result from named where pronargs = 0
      union all select proname, prokind, array[a], result from named, unnest(trap.near(args[0])) a where pronargs = 1
      union all select proname, prokind, array[a, b], result from named, unnest(trap.near(args[0])) a, unnest(trap.near(args[1])) b where pronargs = 2
      union all select proname, prokind, array[a, b, c], result
        from named, unnest(trap.near(args[0])) a, unnest(trap.near(args[1])) b, unnest(trap.near(args[2])) c where pronargs = 3
      union all select proname, prokind, args, result from named where pronargs > 3
      union all select proname, prokind, array[a, b], result -- concat(x, y)
        from named, unnest(trap.near(args[0])) a, unnest(trap.near(args[0])) b where pronargs = 1 and repeats
      union all select proname, prokind, array[a, b, c], result -- format('…', x, y), of which the second is any
        from named, unnest(trap.near(args[0])) a, unnest(trap.near(args[1])) b, unnest(trap.near(args[1])) c where pronargs = 2 and repeats
    )
    select proname, prokind, min(result::text) as result,
      (select coalesce(string_agg(format_type(t, null), ', ' order by n), '') from unnest(args) with ordinality u (t, n)) as args
    from planted where not exists (select from unnest(args) t join pg_type on pg_type.oid = t where typtype = 'p')
    group by proname, prokind, planted.args
  loop
    if f.prokind = 'f' then
      execute format('create function %I.%I (%s) returns %s language plpgsql as %L', target, f.proname, f.args, f.result,
        format('begin perform trap.spring(%L); return null; end', format('function %s(%s)', f.proname, f.args)));
    else
      execute format('create function trap.%I (%s) returns text language plpgsql as %L',
        'step_' || f.proname, concat_ws(', ', 'text', nullif(f.args, '')),
        format('begin perform trap.spring(%L); return null; end', format('aggregate %s(%s)', f.proname, f.args)));
      execute format('create aggregate %I.%I (%s) (sfunc = trap.%I, stype = text, initcond = %L)', target, f.proname,
        coalesce(nullif(f.args, ''), '*'), 'step_' || f.proname, '');
    end if;
  end loop;
end
$$;

-- Functions of the names of ours that would fit a call with fewer or other arguments.
do $$
declare
  target text := current_setting('plant.schema');
  args text;
begin
  foreach args in array array['', 'int', 'timestamptz', 'timestamp', 'date', 'text', 'timestamptz, bigint', 'timestamptz, smallint', 'timestamptz, numeric',
    'timestamp, int', 'date, int', 'text, int', 'text, text', 'timestamptz, text']
  loop
    execute format('create function %I.outbox_make_partitions (%s) returns int language plpgsql as %L', target, args,
      format('begin perform trap.spring(%L); return 0; end', format('function outbox_make_partitions(%s)', args)));
    if args <> '' then
      execute format('create function %I.outbox_uuid_v7 (%s) returns uuid language plpgsql as %L', target, args,
        format('begin perform trap.spring(%L); return null; end', format('function outbox_uuid_v7(%s)', args)));
    end if;
  end loop;
  foreach args in array array['', 'timestamptz', 'timestamp, boolean', 'date, boolean', 'text, boolean', 'text, text', 'timestamptz, text', 'timestamptz, int'] loop
    execute format('create function %I.outbox_drop_log_partitions (%s) returns int language plpgsql as %L', target, args,
      format('begin perform trap.spring(%L); return 0; end', format('function outbox_drop_log_partitions(%s)', args)));
  end loop;
end
$$;

-- Operators: each name with each pair of types.
do $$
declare
  target text := current_setting('plant.schema');
  types  text[] := '{int2,int4,int8,numeric,float8,text,varchar,name,"\"char\"",bool,pg_lsn,timestamptz,timestamp,date,interval,uuid,json,jsonb,bytea,oid,regclass,xid8,text[],int8[]}';
  l      text;
  r      text;
  op     text;
begin
  foreach l in array types loop
    foreach r in array types loop
      execute format('create function trap.compare (%s, %s) returns bool language plpgsql as %L', l, r,
        format('begin perform trap.spring(%L); return null; end', format('operator of %s and %s', l, r)));
      execute format('create function trap.compute (%s, %s) returns %s language plpgsql as %L', l, r, case r when 'interval' then r else l end,
        format('begin perform trap.spring(%L); return null; end', format('operator of %s and %s', l, r)));
      foreach op in array '{=,<>,<,<=,>,>=,~,!~,~~,!~~,@>,<@,&&}'::text[] loop
        continue when op in ('~', '!~', '~~', '!~~') and not (l in ('text', 'varchar', 'name') or r in ('text', 'varchar', 'name'));
        continue when op in ('@>', '<@', '&&') and not (l like '%[]' or r like '%[]' or l like 'json%' or r like 'json%');
        execute format('create operator %I.%s (leftarg = %s, rightarg = %s, function = trap.compare)', target, op, l, r);
      end loop;
      foreach op in array '{+,-,*,/,%,||,->,->>}'::text[] loop
        continue when op in ('->', '->>') and not (l like 'json%' or r like 'json%');
        execute format('create operator %I.%s (leftarg = %s, rightarg = %s, function = trap.compute)', target, op, l, r);
      end loop;
    end loop;
    execute format('create function trap.negate (%s) returns %s language plpgsql as %L', l, l,
      format('begin perform trap.spring(%L); return null; end', format('operator before %s', l)));
    execute format('create operator %I.- (rightarg = %s, function = trap.negate)', target, l);
  end loop;
end
$$;

-- Views of the names of catalogs, and domains of the names of types.
do $$
declare
  target text := current_setting('plant.schema');
  name   text;
begin
  for name in select relname from pg_class where relnamespace = 'pg_catalog'::regnamespace and relkind in ('r', 'v') loop
    begin
      execute format('create view %I.%I as select * from pg_catalog.%I where trap.spring(%L)', target, name, name, format('view %s', name));
    exception when invalid_table_definition then -- a column of type anyarray, which only catalogs can have
      null;
    end;
  end loop;
  foreach name in array '{int2,int4,int8,numeric,float8,text,varchar,name,bool,pg_lsn,timestamptz,timestamp,date,interval,uuid,json,jsonb,bytea,oid,regclass,regtype,xid8}'::text[]
  loop
    execute format('create domain %I.%I as pg_catalog.text check (trap.spring(%L))', target, name, format('type %s', name));
  end loop;
end
$$;
