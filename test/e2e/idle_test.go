package e2e

import (
	"fmt"
	"testing"
	"time"
)

// An outbox without events, in a database that writes a lot: the slot follows, so that no WAL piles up, and the
// checkpoint is written now and then, not all the time.
func TestIdleOutboxInABusyDatabase(t *testing.T) {
	t.Parallel()
	pg := ownPostgres(t, map[string]string{"autovacuum": "off"}) // the WAL of others would count, and so would that of its workers
	w := newWorld(t, worldOptions{pg: pg})
	c := w.connector()
	c.start()
	c.ready("leader")
	w.insert(10)
	w.deliveredAtLeast(10*time.Second, 10)
	w.exec("create table busy (filler text)")
	w.exec("alter table busy alter filler set storage external")

	writes := func() int {
		return ask[int](w, "select batch_seq from outbox_checkpoints where slot_name = $1", w.slot)
	}
	before := writes()
	const megabytes = 200
	for range megabytes {
		w.exec("insert into busy select string_agg(md5(i::text), '') from generate_series(1, 32768) i")
	}
	eventually(t, time.Minute, "slot within 32 MB", func() error {
		confirmed := ask[int](w, "select (pg_current_wal_lsn() - confirmed_flush_lsn)::bigint from pg_replication_slots where slot_name = $1", w.slot)
		restart := ask[int](w, "select (pg_current_wal_lsn() - restart_lsn)::bigint from pg_replication_slots where slot_name = $1", w.slot)
		if max(confirmed, restart) > 32<<20 {
			return fmt.Errorf("confirmed_flush_lsn is %d kB behind, restart_lsn %d kB", confirmed>>10, restart>>10)
		}
		return nil
	})
	if n := writes() - before; n > 2*megabytes {
		t.Errorf("the checkpoint was written %d times for %d MB of others", n, megabytes)
	}

	// Nobody writes: an idle server stays idle.
	passes(t, 2*time.Second)
	before, at := writes(), ask[string](w, "select pg_current_wal_insert_lsn()::text")
	passes(t, 8*time.Second)
	if n := writes() - before; n > 1 {
		t.Errorf("the checkpoint was written %d times while nothing happened", n)
	}
	if n := ask[int](w, "select (pg_current_wal_insert_lsn() - $1::pg_lsn)::bigint", at); n > 64<<10 {
		t.Errorf("%d bytes of WAL were written while nothing happened", n)
	}

	w.insert(10)
	w.verify(expectation{})
	c.term()
}
