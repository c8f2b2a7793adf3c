package connector

import (
	"context"
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// With millions of parked rows a session may need long before its first event. It sends status meanwhile, because the server ends a connection
// that is silent.
func TestStreamIsKeptAliveBeforeTheFirstEvent(t *testing.T) {
	t.Parallel()
	b := newParkingBench(t)
	b.exec("insert into outbox_processors (connector, processor_name, processor_type) values ('test', 's', 'test')")
	b.exec(`insert into outbox_parked (processor_id, commit_lsn, tx_index, agg_hash, status, tries, tried_at, next_attempt_at, event, payload)
		select id, '0/1', 0, 1, 'parked', 1, now(), now() + interval '1 hour', '{"event_type": "parked"}', '{}' from outbox_processors`)
	b.exec("create table gate ()")
	b.exec(`create function wait_at_gate() returns trigger language plpgsql as
		$$ begin while not exists (select from public.gate) loop perform pg_sleep(0.01); end loop; return new; end $$`)
	b.exec("create trigger slow before update on outbox_parked for each row execute function wait_at_gate()")
	r := b.run()
	b.eventually(`select count(reply_time) from pg_stat_replication where pid =
		(select active_pid from pg_replication_slots where slot_name = (select slot_name from outbox_checkpoints))`, "1")
	b.exec("insert into gate default values")
	b.eventually("select count(*) from outbox_delivery_log where status = 'delivered'", "1")
	if epoch := b.query("select epoch from outbox_checkpoints"); epoch != "1" {
		t.Errorf("epoch %s: the first session has ended", epoch)
	}
	r.stop()
}

// init may have registered the new name of a sink before renamed_from was written. The sink under the new name takes over the old one's events all
// the same, as long as it has none of its own. If it has, the old events stay for a sink of the old name.
func TestRenamedAfterInit(t *testing.T) {
	t.Parallel()
	b := newParkingBench(t)
	away := b.takeSinkAway()
	r := b.run()
	b.event("a", "one")
	b.eventually("select count(*) from outbox_parked", "1")
	r.stop()
	made := func(name, isActive string) {
		t.Helper()
		_, err := ledger.Schema("public").RegisterProcessors(t.Context(), b.conn, "test", []ledger.Processor{{Name: name, Type: "test", RenamedFrom: b.cfg.Sinks[0].RenamedFrom}})
		if err != nil {
			t.Fatal(err)
		}
		b.exec("update outbox_processors set is_active = "+isActive+" where processor_name = $1", name)
	}
	made("t", "false") // as init does; and a person pauses it
	b.cfg.Sinks[0].Name = "t"
	b.run().wantExit(exitcode.Config, "write renamed_from: s")
	b.cfg.Sinks[0].RenamedFrom = "s"
	made("t", "false") // nor does init itself, beside which another process may run
	if got := b.query("select string_agg(processor_name, ' ' order by id) from outbox_processors"); got != "s t" {
		t.Errorf("init made the sinks %s", got)
	}
	r = b.run()
	b.event("a", "two")
	b.eventually("select count(*) from outbox_parked", "2")
	if got := b.query("select string_agg(concat_ws(' ', id, processor_name, is_active), ', ') from outbox_processors"); got != "1 t f" {
		t.Errorf("sinks %s, want the old one under its new name, paused", got)
	}
	r.stop()

	made("u", "true")
	b.exec(`insert into outbox_delivery_log (processor_id, attempt_number, status, completed_at, commit_lsn, tx_index, epoch)
		select id, 1, 'delivered', now(), '0/1', 0, 1 from outbox_processors where processor_name = 'u'`)
	b.cfg.Sinks[0].Name, b.cfg.Sinks[0].RenamedFrom = "u", "t"
	b.run().wantExit(exitcode.Config, `sink "u" has deliveries of its own, so it cannot take over the 2 parked events of "t"`)
	b.exec("update outbox_processors set is_active = true")
	away.Store(false)
	own := b.cfg.Sinks[0]
	own.Name, own.RenamedFrom = "t", "" // as the refusal advises
	b.cfg.Sinks[0].RenamedFrom = ""
	b.cfg.Sinks = append(b.cfg.Sinks, own)
	r = b.run()
	b.eventually("select count(*) from outbox_parked", "0")
	r.stop()
	if got := b.received(); got != "one two" {
		t.Errorf("received %s", got)
	}
}

// SQL connections have keepalives and a time-out at both ends, so that neither we nor the server wait for a peer that has vanished.
func TestSQLConnectionsDetectDeadPeers(t *testing.T) {
	t.Parallel()
	b := newConnectorBench(t)
	db, err := openPostgres(b.cfg.Name, b.cfg.Source)
	if err != nil {
		t.Fatal(err)
	}
	defer db.close()
	conn, err := db.connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	for name, db := range map[string]ledger.Querier{"the pool": db.pool, "a connection of its own": conn} {
		var idle, patience string
		err := db.QueryRow(t.Context(), "select current_setting('tcp_keepalives_idle'), current_setting('tcp_user_timeout')").Scan(&idle, &patience)
		if err != nil {
			t.Fatal(err)
		}
		if idle != "5" || patience != "15000" {
			t.Errorf("%s: keepalives after %s s, patience of %s ms", name, idle, patience)
		}
	}
}
