package ledger_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// A start waits for the transaction that the session before is still committing, and reads its result.
func TestStartWaitsForThePredecessor(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.exec("begin")
	l.exec("update outbox_checkpoints set batch_seq = batch_seq + 1, prefix_lsn = '0/70', prefix_index = 2, confirmed_lsn = '0/68'")
	l.exec(`insert into outbox_delivery_log (event_id, processor_id, attempt_number, status, completed_at, commit_lsn, tx_index, epoch)
		values (gen_random_uuid(), 1, 1, 'delivered', now(), '0/80', 0, 3)`)
	cfg := l.config()
	cfg.Connect = func(ctx context.Context) (*pgx.Conn, error) {
		conn, err := l.connect(ctx, nil)
		if err == nil {
			_, err = conn.Exec(ctx, "set lock_timeout = 0")
		}
		return conn, err
	}
	type opened struct {
		start ledger.Start
		err   error
	}
	done := make(chan opened, 1)
	go func() {
		r, start, err := ledger.Open(context.Background(), cfg.Config)
		if err == nil {
			r.Close()
		}
		done <- opened{start, err}
	}()
	l.waitsFor("select exists (select from pg_locks where not granted and pg_backend_pid() = any (pg_blocking_pids(pid)))")
	l.exec("commit")
	o := <-done
	if o.err != nil {
		t.Fatal(o.err)
	}
	if _, settled := o.start.Settled[checkpoint.Key{Processor: 1, Position: pos(0x80, 0)}]; !settled || o.start.Prefix != pos(0x70, 2) || o.start.Confirmed != 0x68 {
		t.Errorf("start %+v, want what was recorded last", o.start)
	}
}

// waitsFor waits until the query gives true.
func (l *testLedger) waitsFor(sql string) {
	l.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); l.query("select ("+sql+")::text") != "true"; {
		if time.Now().After(deadline) {
			l.t.Fatalf("not true for 20 s: %s", sql)
		}
		time.Sleep(10 * time.Millisecond) // between two checks
	}
}

// A try that failed settles nothing.
func TestFailedSettlesNothing(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	r := l.record(l.config())
	r.give(100, checkpoint.Failed)
	r.recorded()
	if got := r.Confirmed(); got != 0x64 || r.InFlight() != 1 {
		t.Errorf("confirmed %d, %d in flight, want 100, 1", got, r.InFlight())
	}
	if err := r.end(); err != nil {
		t.Error(err)
	}
	if got := l.query("select concat_ws(' ', prefix_lsn, prefix_index, confirmed_lsn) from outbox_checkpoints"); got != "0/64 -1 0/64" {
		t.Errorf("checkpoint %s", got)
	}
}

// A recorder whose backend was ended reconnects and records what it holds, which must not be delivered again.
func TestRecorderComesBack(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	r := l.record(l.config())
	l.exec("select pg_terminate_backend(recorder_pid, 5000) from outbox_checkpoints")
	r.give(100, checkpoint.Delivered)
	r.recorded()
	if err := r.end(); err != nil {
		t.Error(err)
	}
	if got := l.query("select count(*)::text from outbox_delivery_log"); got != "1" {
		t.Errorf("%s log rows, want 1", got)
	}
}

// A server that shuts down ends the recorder's backend and refuses new connections. The recorder ends then, because the server waits for our stream to close.
func TestRecorderLetsGo(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	cfg := l.config()
	connect, stopping := cfg.Connect, false
	cfg.Connect = func(ctx context.Context) (*pgx.Conn, error) {
		if stopping {
			return nil, &pgconn.PgError{Code: "57P03", Message: "the database system is shutting down"}
		}
		stopping = true
		return connect(ctx)
	}
	r := l.record(cfg)
	l.exec("select pg_terminate_backend(recorder_pid, 5000) from outbox_checkpoints")
	r.give(100, checkpoint.Delivered)
	select {
	case err := <-r.ended:
		if !checkpoint.ServerStopping(err) {
			t.Errorf("ended with %v, want 57P03", err)
		}
	case <-r.notices:
		t.Error("the recorder reconnected and went on")
	case <-time.After(20 * time.Second):
		t.Error("the recorder goes on trying")
	}
}
