-- What all that is planted calls, in a schema of the role's own.
-- trap.spring is what all of it calls. A call of trap.touched is counted (track_functions) also where the transaction fails.
create function trap.touched() returns void language plpgsql as 'begin end';
create function trap.probe() returns void language plpgsql as 'begin end';
create table trap.caught (what text);
grant usage on schema trap to public;
grant insert on trap.caught to public;
create function trap.spring(what text) returns boolean language plpgsql as $$
begin
  perform trap.touched();
  begin
    insert into trap.caught values (what);
  exception when others then -- in a transaction that only reads, the count has to do
    null;
  end;
  raise exception 'CAUGHT: somebody else''s % was executed by %', what, current_user;
end
$$;
