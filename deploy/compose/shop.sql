-- A shop: psql places an order every 0.2 s. Order and event are one statement, and so one transaction.
create table if not exists orders (
  id bigint generated always as identity primary key,
  customer text not null,
  amount numeric not null,
  placed_at timestamptz not null default now()
);

with placed as (
  insert into orders (customer, amount)
  values ((array['ada', 'bob', 'eve', 'joe'])[1 + floor(random() * 4)::int], round((5 + random() * 95)::numeric, 2))
  returning *
)
insert into event_outbox (aggregate_type, aggregate_id, event_type, payload)
select 'order', id::text, 'order.placed', json_build_object('id', id, 'customer', customer, 'amount', amount, 'placed_at', placed_at)
from placed \watch 0.2
