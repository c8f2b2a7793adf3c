package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

const testSlot = "s"

func pos(lsn pglogrepl.LSN, index int64) checkpoint.Position {
	return checkpoint.Position{LSN: lsn, Index: index}
}

// testLedger is a migrated database with a checkpoint at 0/64.
type testLedger struct {
	t    *testing.T
	db   *pgtest.Database
	conn *pgx.Conn
}

func newLedger(t *testing.T) *testLedger {
	db := pgtest.New(t)
	l := &testLedger{t, db, db.Conn(t)}
	l.exec(`insert into outbox_checkpoints (slot_name, state, system_identifier, timeline, prefix_lsn, prefix_index, confirmed_lsn, epoch, slot_epoch)
		values ($1, 'ready', '42', 1, '0/64', -1, '0/64', 3, 3)`, testSlot)
	return l
}

func (l *testLedger) exec(sql string, args ...any) {
	l.t.Helper()
	if _, err := l.conn.Exec(context.Background(), sql, args...); err != nil {
		l.t.Fatal(err)
	}
}

func (l *testLedger) query(sql string) string {
	l.t.Helper()
	var s *string
	if err := l.conn.QueryRow(context.Background(), sql).Scan(&s); err != nil {
		l.t.Fatal(err)
	}
	if s == nil {
		return ""
	}
	return *s
}

// config is what a recorder over a ledger needs.
type config struct {
	ledger.Config
	checkpoint.RecorderConfig
}

func (l *testLedger) config() config {
	return config{
		ledger.Config{
			Schema: "public", Slot: testSlot, Owner: "test",
			Connect: func(ctx context.Context) (*pgx.Conn, error) {
				return l.connect(ctx, nil)
			},
		},
		checkpoint.RecorderConfig{Fast: func() bool { return false }, State: func(error) {}, Logger: slog.New(slog.DiscardHandler)},
	}
}

func (l *testLedger) connect(ctx context.Context, wrap func(net.Conn) net.Conn) (*pgx.Conn, error) {
	c, err := pgx.ParseConfig(l.db.DSN)
	if err != nil {
		return nil, err
	}
	ledger.Pin(&c.Config)
	c.RuntimeParams["lock_timeout"] = "200ms"
	if wrap != nil {
		dial := c.DialFunc
		c.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dial(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return wrap(conn), nil
		}
	}
	return pgx.ConnectConfig(ctx, c)
}

// recorderBench is a recorder at work.
type recorderBench struct {
	*checkpoint.Tracker
	t       *testing.T
	start   ledger.Start
	in      chan checkpoint.Outcomes
	ended   chan error
	notices chan uint64
	seq     uint64
}

func (l *testLedger) record(cfg config) *recorderBench {
	l.t.Helper()
	opened, start, err := ledger.Open(context.Background(), cfg.Config)
	if err != nil {
		l.t.Fatal(err)
	}
	rec := &recorderBench{
		Tracker: checkpoint.NewTracker(100, 1<<20, start.Prefix, start.Confirmed), t: l.t, start: start,
		in: make(chan checkpoint.Outcomes, 10), ended: make(chan error, 1), notices: make(chan uint64, 1),
	}
	ctx, cancel := context.WithCancel(context.Background())
	l.t.Cleanup(cancel)
	r := checkpoint.NewRecorder(opened, cfg.RecorderConfig)
	go func() { rec.ended <- r.Run(ctx, rec.Tracker, rec.in) }()
	return rec
}

func eventID(n int) string { return fmt.Sprintf("0190a5d0-0000-7000-8000-%012x", n) }

// give adds a transaction of one event with these statuses as its outcomes, and gives them to the recorder.
func (r *recorderBench) give(lsn pglogrepl.LSN, statuses ...checkpoint.Status) {
	r.Begin()
	n := 0
	for _, s := range statuses {
		if s != checkpoint.Failed {
			n++
		}
	}
	e := r.Add(pos(lsn, 0), max(1, n), 10, time.Now())
	r.Tracker.Commit(checkpoint.Transaction{LSN: lsn, EndLSN: lsn + 8, Last: 0, Ours: true})
	var rows []checkpoint.Outcome
	for i, s := range statuses {
		o := checkpoint.Outcome{
			Entry: e, Processor: int32(i + 1), Position: pos(lsn, 0), EventID: eventID(int(lsn)), Attempt: 1, Status: s, Settles: s != checkpoint.Failed,
			StartedAt: time.Now().Add(-time.Second), CompletedAt: time.Now(),
		}
		switch s {
		case checkpoint.Delivered:
			o.Member = "kafka"
		case checkpoint.Failed:
			o.Error = "bad\x00 \xff text"
		case checkpoint.Dead:
			o.Error = "dead"
			o.Row = checkpoint.RowInsert
			o.Parked = &checkpoint.ParkedState{AggregateHash: -5, Attempts: 1, Tries: 2, TriedAt: time.Now(), Event: []byte(`{"id": "x"}`), Payload: []byte("\x00payload")}
		}
		rows = append(rows, o)
	}
	r.seq++
	r.in <- checkpoint.Outcomes{Rows: rows, Seq: r.seq, Recorded: r.notices}
}

// recorded waits until everything given is committed.
func (r *recorderBench) recorded() {
	r.t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		select {
		case seq := <-r.notices:
			if seq == r.seq {
				return
			}
		case err := <-r.ended:
			r.t.Fatalf("recorder ended: %v", err)
		case <-deadline:
			r.t.Fatal("not recorded in 20 s")
		}
	}
}

func (r *recorderBench) end() error {
	close(r.in)
	return <-r.ended
}

func TestRecord(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	r := l.record(l.config())
	r.give(100, checkpoint.Delivered, checkpoint.Failed)
	r.give(120, checkpoint.Dead)
	r.give(140, checkpoint.Discarded)
	r.recorded()
	if got := r.Confirmed(); got != 148 {
		t.Errorf("confirmed %d, want 148", got)
	}
	if err := r.end(); err != nil {
		t.Fatal(err)
	}
	for sql, want := range map[string]string{
		`select string_agg(concat_ws(' ', event_id, processor_id, attempt_number, status, commit_lsn, tx_index, epoch, error_message), E'\n' order by commit_lsn, processor_id) from outbox_delivery_log`: eventID(100) + " 1 1 delivered 0/64 0 4\n" + eventID(100) + " 2 1 failed 0/64 0 4 bad\ufffd \ufffd text\n" +
			eventID(120) + " 1 1 dead 0/78 0 4 dead\n" + eventID(140) + " 1 1 discarded 0/8C 0 4",
		`select string_agg(concat(status, '=', member), ' ' order by commit_lsn, processor_id) from outbox_delivery_log`:                                                        "delivered=kafka failed= dead= discarded=",
		`select bool_and(duration_ms between 999 and 1100 and completed_at between now() - interval '1 minute' and now() + interval '1 minute')::text from outbox_delivery_log`: "true",
		`select concat_ws(' ', event_id, agg_hash, status, attempts, tries, next_attempt_at, event, encode(payload, 'hex')) from outbox_parked`:                                 eventID(120) + ` -5 dead 1 2 {"id": "x"} 007061796c6f6164`,
		`select concat_ws(' ', prefix_lsn, prefix_index, confirmed_lsn, epoch, owner) from outbox_checkpoints`:                                                                  "0/8C 0 0/94 4 test",
	} {
		if got := l.query(sql); got != want {
			t.Errorf("%s\n got %s\nwant %s", sql, got, want)
		}
	}
}

// A start reads the deliveries beyond the prefix that are settled, and no others: what a session after a crash must not deliver again.
func TestStartReadsWhatIsSettled(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	logRow := `insert into outbox_delivery_log (event_id, processor_id, attempt_number, status, completed_at, commit_lsn, tx_index, epoch)
		values (gen_random_uuid(), $1, 1, $2, now(), $3::pg_lsn, $4, $5)`
	parkedRow := `insert into outbox_parked (processor_id, commit_lsn, tx_index, event_id, agg_hash, status, event)
		values ($1, $2::pg_lsn, $3, gen_random_uuid(), 0, $4, '{}')`
	l.exec("update outbox_checkpoints set prefix_lsn = '0/70', prefix_index = 2")
	l.exec("insert into outbox_processors (id, connector, processor_name, processor_type) values (3, 'c', 'three', 'stdout')")
	l.exec(logRow, 1, "delivered", "0/70", 2, 3) // the prefix itself
	l.exec(logRow, 1, "delivered", "0/70", 3, 3)
	l.exec(logRow, 2, "failed", "0/70", 3, 3)
	l.exec(logRow, 1, "dead", "0/80", 0, 3)
	l.exec(logRow, 0, "discarded", "0/80", 1, 3)
	l.exec(logRow, 1, "delivered", "0/90", 0, 2)          // of a slot before this one
	l.exec(logRow, 1, "delivered", "0/90", -1<<60, 3)     // never streamed
	l.exec(parkedRow, 3, "0/80", 5, "parked")             //
	l.exec(parkedRow, 3, "0/60", 5, "parked")             // before the prefix
	l.exec(parkedRow, 3, "0/80", int64(-1<<60), "parked") // never streamed
	r := l.record(l.config())
	want := map[checkpoint.Key]struct{}{
		{Processor: 1, Position: pos(0x70, 3)}: {}, {Processor: 1, Position: pos(0x80, 0)}: {},
		{Processor: 0, Position: pos(0x80, 1)}: {}, {Processor: 3, Position: pos(0x80, 5)}: {},
	}
	if fmt.Sprint(r.start.Settled) != fmt.Sprint(want) {
		t.Errorf("settled %v, want %v", r.start.Settled, want)
	}
	if r.start.Epoch != 4 || r.start.Prefix != pos(0x70, 2) || r.start.Confirmed != 0x64 || r.start.SystemIdentifier != "42" {
		t.Errorf("start %+v", r.start)
	}
	if err := r.end(); err != nil {
		t.Error(err)
	}
}

// After another session has taken the ledger over, a recorder records nothing more.
func TestFenced(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	old := l.record(l.config())
	old.give(100, checkpoint.Delivered)
	old.recorded()
	if _, _, err := ledger.Open(context.Background(), l.config().Config); err != nil {
		t.Fatal(err)
	}
	old.give(120, checkpoint.Delivered)
	if err := <-old.ended; !errors.Is(err, checkpoint.ErrFenced) {
		t.Errorf("ended with %v, want ErrFenced", err)
	}
	if got := l.query("select count(*)::text from outbox_delivery_log"); got != "1" {
		t.Errorf("%s rows in the log, want 1", got)
	}
	if got := old.Confirmed(); got != 108 {
		t.Errorf("confirmed %d, want 108", got)
	}
}

// A recorder that lost its connection and was taken over meanwhile learns of it when it reconnects, and does not end its successor's backend.
func TestFencedWhileAway(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	old := l.record(l.config())
	old.give(100, checkpoint.Delivered)
	old.recorded()
	next := l.record(l.config()) // ends the backend of old
	successor := l.query("select recorder_pid::text from outbox_checkpoints")
	r := ledger.OfEpoch(l.config().Config, next.start.Epoch-1)
	defer r.Close()
	if _, err := r.Reconnect(context.Background()); !errors.Is(err, checkpoint.ErrFenced) {
		t.Errorf("got %v, want ErrFenced", err)
	}
	if got := l.query("select recorder_pid::text from outbox_checkpoints"); got != successor {
		t.Errorf("the recorder is %s, want %s", got, successor)
	}
	next.give(120, checkpoint.Delivered)
	next.recorded()
	if err := next.end(); err != nil {
		t.Error(err)
	}
}

// After a recorder has reconnected, its successor finds and ends its new backend.
func TestReconnectedIsEnded(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	old := l.record(l.config())
	l.exec("select pg_terminate_backend(recorder_pid, 5000) from outbox_checkpoints")
	first := l.query("select recorder_pid::text from outbox_checkpoints")
	r := ledger.OfEpoch(l.config().Config, old.start.Epoch)
	defer r.Close()
	if done, err := r.Reconnect(context.Background()); done || err != nil {
		t.Fatalf("committed: %t, %v", done, err)
	}
	second := l.query("select recorder_pid::text from outbox_checkpoints")
	if second == first {
		t.Fatal("the checkpoint names the old backend")
	}
	next := l.record(l.config())
	var ended *pgconn.PgError
	if err := r.Ping(context.Background()); !errors.As(err, &ended) || ended.Code != "57P01" {
		t.Errorf("the old recorder's backend is still running: %v", err)
	}
	if err := next.end(); err != nil {
		t.Error(err)
	}
}

func TestNotReady(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.exec("update outbox_checkpoints set state = 'building'")
	if _, _, err := ledger.Open(context.Background(), l.config().Config); !errors.Is(err, ledger.NotReady) {
		t.Errorf("got %v, want ledger.NotReady", err)
	}
}

// A session does not start from a checkpoint that has lost a part of its position: nobody knows what is settled.
func TestIncompleteCheckpoint(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	for _, column := range []string{"system_identifier", "timeline", "prefix_lsn", "prefix_index", "confirmed_lsn"} {
		old := l.query("select " + column + "::text from outbox_checkpoints")
		l.exec("update outbox_checkpoints set " + column + " = null")
		if _, _, err := ledger.Open(context.Background(), l.config().Config); err == nil || !strings.HasPrefix(err.Error(), "read checkpoint: ") {
			t.Errorf("%s is null: %v", column, err)
		}
		l.exec("update outbox_checkpoints set " + column + " = '" + old + "'")
	}
}

// cutAtCommit loses the connection when the COMMIT is sent: before it reaches the server, or before its answer arrives.
type cutAtCommit struct {
	net.Conn
	arrives bool
	cut     *atomic.Bool
	lost    bool
}

func (c *cutAtCommit) Write(p []byte) (int, error) {
	if strings.Contains(string(p), "commit\x00") && c.cut.CompareAndSwap(false, true) {
		c.lost = true
		if c.arrives {
			if _, err := c.Conn.Write(p); err != nil {
				return 0, err
			}
			time.Sleep(300 * time.Millisecond) // a real server commits meanwhile
		}
		_ = c.Conn.Close()
		return 0, net.ErrClosed
	}
	return c.Conn.Write(p)
}

// A COMMIT whose answer is lost is neither repeated nor forgotten.
func TestLostCommit(t *testing.T) {
	t.Parallel()
	for _, arrives := range []bool{true, false} {
		t.Run(fmt.Sprintf("arrives=%v", arrives), func(t *testing.T) {
			t.Parallel()
			l := newLedger(t)
			cfg := l.config()
			var cut atomic.Bool
			cut.Store(true) // not the COMMIT of opening
			cfg.Connect = func(ctx context.Context) (*pgx.Conn, error) {
				return l.connect(ctx, func(c net.Conn) net.Conn { return &cutAtCommit{Conn: c, arrives: arrives, cut: &cut} })
			}
			var told []ledger.RowChange
			cfg.Changed = func(changes []ledger.RowChange) { told = append(told, changes...) }
			r := l.record(cfg)
			cut.Store(false)
			r.give(100, checkpoint.Dead)
			r.recorded()
			r.give(120, checkpoint.Delivered)
			r.recorded()
			if !cut.Load() {
				t.Fatal("no COMMIT was cut")
			}
			if err := r.end(); err != nil {
				t.Fatal(err)
			}
			if got := l.query("select count(*) || ' ' || count(distinct event_id) from outbox_delivery_log"); got != "2 2" {
				t.Errorf("rows and events in the log: %s, want 2 2", got)
			}
			if got := r.Confirmed(); got != 128 {
				t.Errorf("confirmed %d, want 128", got)
			}
			want := []ledger.RowChange{{Processor: 1, Rows: ledger.RowCounts{Dead: 1}, Batch: 1}}
			if diff := cmp.Diff(want, told); diff != "" {
				t.Errorf("what the batch has changed is told once: %s", diff)
			}
		})
	}
}

// A person's open transaction on the ledger delays the recorder, and nothing is lost.
func TestLockedLedger(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	cfg := l.config()
	states := make(chan error, 100)
	cfg.State = func(err error) { states <- err }
	r := l.record(cfg)
	l.exec("begin")
	l.exec("lock table outbox_delivery_log in access exclusive mode")
	r.give(100, checkpoint.Delivered)
	for range 2 {
		if err := <-states; err == nil {
			t.Error("recorder says it works while the ledger is locked")
		}
	}
	if got := r.Confirmed(); got != 0x64 {
		t.Errorf("confirmed %d while nothing could be recorded", got)
	}
	l.exec("commit")
	r.recorded()
	if err := r.end(); err != nil {
		t.Fatal(err)
	}
	if got := l.query("select count(*)::text from outbox_delivery_log"); got != "1" {
		t.Errorf("%s rows in the log, want 1", got)
	}
}

// The recorder makes the log's partition of the day if it is missing.
func TestMissingPartition(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.exec(`do $$ declare p regclass; begin
		for p in select inhrelid::regclass from pg_inherits where inhparent = 'outbox_delivery_log'::regclass loop
			execute format('drop table %s', p);
		end loop; end $$`)
	r := l.record(l.config())
	r.give(100, checkpoint.Delivered)
	r.recorded()
	if err := r.end(); err != nil {
		t.Fatal(err)
	}
}

// Before a recorder ends, it commits a checkpoint that covers the last keepalive.
func TestCleanEndCoversTheKeepalive(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	r := l.record(l.config())
	r.Idle(0x500)
	if err := r.end(); err != nil {
		t.Fatal(err)
	}
	if got := l.query("select concat_ws(' ', prefix_lsn, prefix_index, confirmed_lsn) from outbox_checkpoints"); got != "0/500 -1 0/500" {
		t.Errorf("checkpoint %s", got)
	}
}
