package connector

import (
	"context"
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// What a session does before its first event may take long, with millions of parked rows: the server, which ends a connection that
// it hears nothing of, hears of us meanwhile.
func TestStreamIsKeptAliveBeforeTheFirstEvent(t *testing.T) {
	t.Parallel()
	w := parking(t)
	w.exec("insert into outbox_processors (connector, processor_name, processor_type) values ('test', 's', 'test')")
	w.exec(`insert into outbox_parked (processor_id, commit_lsn, tx_index, agg_hash, status, tries, tried_at, next_attempt_at, event, payload)
		select id, '0/1', 0, 1, 'parked', 1, now(), now() + interval '1 hour', '{"event_type": "parked"}', '{}' from outbox_processors`)
	w.exec("create table gate ()")
	w.exec(`create function wait_at_gate() returns trigger language plpgsql as
		$$ begin while not exists (select from public.gate) loop perform pg_sleep(0.01); end loop; return new; end $$`)
	w.exec("create trigger slow before update on outbox_parked for each row execute function wait_at_gate()")
	r := w.run()
	w.eventually(`select count(reply_time) from pg_stat_replication where pid =
		(select active_pid from pg_replication_slots where slot_name = (select slot_name from outbox_checkpoints))`, "1")
	w.exec("insert into gate default values")
	w.eventually("select count(*) from outbox_delivery_log where status = 'delivered'", "1")
	if epoch := w.query("select epoch from outbox_checkpoints"); epoch != "1" {
		t.Errorf("epoch %s: the first session has ended", epoch)
	}
	r.stop()
}

// A sink whose new name init has made known before the file said what its old one was takes over all the same, as long as
// it has nothing of its own. Afterwards the old one's events are for whoever configures that again.
func TestRenamedAfterInit(t *testing.T) {
	t.Parallel()
	w := parking(t)
	away := w.away()
	r := w.run()
	w.event("a", "one")
	w.eventually("select count(*) from outbox_parked", "1")
	r.stop()
	made := func(name, isActive string) {
		t.Helper()
		_, err := ledger.Schema("public").RegisterProcessors(t.Context(), w.conn, "test", []ledger.Processor{{Name: name, Type: "test", RenamedFrom: w.cfg.Sinks[0].RenamedFrom}})
		if err != nil {
			t.Fatal(err)
		}
		w.exec("update outbox_processors set is_active = "+isActive+" where processor_name = $1", name)
	}
	made("t", "false") // as init does; and a person pauses it
	w.cfg.Sinks[0].Name = "t"
	w.run().wantExit(exitcode.Config, "write renamed_from: s")
	w.cfg.Sinks[0].RenamedFrom = "s"
	made("t", "false") // nor does init itself, beside which another process may run
	if got := w.query("select string_agg(processor_name, ' ' order by id) from outbox_processors"); got != "s t" {
		t.Errorf("init made the sinks %s", got)
	}
	r = w.run()
	w.event("a", "two")
	w.eventually("select count(*) from outbox_parked", "2")
	if got := w.query("select string_agg(concat_ws(' ', id, processor_name, is_active), ', ') from outbox_processors"); got != "1 t f" {
		t.Errorf("sinks %s, want the old one under its new name, paused", got)
	}
	r.stop()

	made("u", "true")
	w.exec(`insert into outbox_delivery_log (processor_id, attempt_number, status, completed_at, commit_lsn, tx_index, epoch)
		select id, 1, 'delivered', now(), '0/1', 0, 1 from outbox_processors where processor_name = 'u'`)
	w.cfg.Sinks[0].Name, w.cfg.Sinks[0].RenamedFrom = "u", "t"
	w.run().wantExit(exitcode.Config, `sink "u" has deliveries of its own, so it cannot take over the 2 parked events of "t"`)
	w.exec("update outbox_processors set is_active = true")
	away.Store(false)
	own := w.cfg.Sinks[0]
	own.Name, own.RenamedFrom = "t", "" // as it was told
	w.cfg.Sinks[0].RenamedFrom = ""
	w.cfg.Sinks = append(w.cfg.Sinks, own)
	r = w.run()
	w.eventually("select count(*) from outbox_parked", "0")
	r.stop()
	if got := w.received(); got != "one two" {
		t.Errorf("received %s", got)
	}
}

// No SQL connection waits for a server, nor a server's session for us, that has vanished.
func TestSQLConnectionsDetectDeadPeers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := New(w.cfg)
	pool, err := c.openPool()
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	conn, err := c.connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	for name, db := range map[string]ledger.Querier{"the pool": pool, "a connection of its own": conn} {
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
