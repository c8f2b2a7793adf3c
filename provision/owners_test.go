package provision

import (
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/decoder"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode/exitcodetest"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
)

// Tables of a role that may create things in the schema only because everybody may are not taken for the ledger.
func TestCheckOwners(t *testing.T) {
	t.Parallel()
	d := pgtest.Unmigrated(t)
	conn := d.Conn(t)
	stranger := d.Stranger(t, "public")
	exec := func(sql string) {
		t.Helper()
		if _, err := conn.Exec(pgtest.Context(t), sql); err != nil {
			t.Fatal(err)
		}
	}
	s := Source{Table: "public.event_outbox", LedgerSchema: "public", Columns: decoder.DefaultColumns()}
	fine := func(what string) {
		t.Helper()
		if err := CheckOwners(pgtest.Context(t), conn, s); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused := func(words ...string) {
		t.Helper()
		exitcodetest.Want(t, CheckOwners(pgtest.Context(t), conn, s), exitcode.Config, append(words, "source.ledger_schema", "owner to")...)
	}
	fine("nothing is there")
	stranger.Exec(t, "create view outbox_checkpoints as select trap.spring('view') as slot_name")
	refused("outbox_checkpoints of role", stranger.Role, "of another kind")
	stranger.Exec(t, "drop view outbox_checkpoints; create table outbox_checkpoints (slot_name text)")
	fine("the right to create was granted to its owner")
	exec("grant create on schema public to public")
	exec("revoke create on schema public from " + stranger.Role)
	refused("public.outbox_checkpoints belongs to role", stranger.Role)
	exec("set role " + stranger.Role)
	fine("one's own")
	exec("reset role")
	exec("create role " + stranger.Role + "_member in role " + stranger.Role)
	exec("set role " + stranger.Role + "_member")
	fine("the owner's member")
	exec("reset role")
	exec("drop role " + stranger.Role + "_member")
	exec("alter table outbox_checkpoints owner to current_user")
	fine("a superuser's")
	stranger.Exec(t, "create table event_outbox_status (id int)")
	refused("event_outbox_status of role", "of another kind")
	s.Table = "public.orders_outbox"
	fine("a view that nobody reads")
	stranger.CheckNothingCaught(t)
}
