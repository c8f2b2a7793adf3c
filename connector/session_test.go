package connector

import "testing"

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
		$$ begin while not exists (select from gate) loop perform pg_sleep(0.01); end loop; return new; end $$`)
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
