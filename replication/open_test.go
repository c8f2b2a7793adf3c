package replication

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
)

// source is a database with a table t, published, and a slot.
type source struct {
	t    *testing.T
	db   *pgtest.Database
	conn *pgx.Conn
	slot string
}

func newSource(t *testing.T) *source {
	db := pgtest.Unmigrated(t)
	s := &source{t, db, db.Conn(t), db.Slot(t)}
	s.exec("create table t (n int, at timestamptz, b bytea)")
	s.exec(`create publication "the ""p""" for table t with (publish = 'insert')`)
	s.exec("select pg_create_logical_replication_slot($1, 'pgoutput')", s.slot)
	return s
}

func (s *source) exec(sql string, args ...any) {
	s.t.Helper()
	if _, err := s.conn.Exec(context.Background(), sql, args...); err != nil {
		s.t.Fatal(err)
	}
}

func (s *source) open() (*Stream, error) {
	stream, _, err := Open(context.Background(), StreamConfig{DSN: s.db.DSN, Slot: s.slot, Publication: `the "p"`})
	return stream, err
}

func (s *source) mustOpen() *Stream {
	s.t.Helper()
	stream, err := s.open()
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(stream.Close)
	return stream
}

// next returns the next pgoutput message of one of these kinds.
func next(t *testing.T, s *Stream, kinds string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for {
		f, err := s.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if !f.Keepalive && strings.ContainsRune(kinds, rune(f.Data[0])) {
			return string(f.Data)
		}
	}
}

// The stream starts where the slot stands: what was committed before we connect is sent, however long ago that was.
func TestOpenStartsWhereTheSlotStands(t *testing.T) {
	t.Parallel()
	src := newSource(t)
	src.exec("insert into t values (1), (2)")
	s := src.mustOpen()
	src.exec("insert into t values (3)")
	for _, want := range []string{"1", "2", "3"} {
		if got := next(t, s, "I"); !strings.Contains(got, want) {
			t.Fatalf("insert %q, want row %s", got, want)
		}
	}
}

// While nothing was confirmed, everything comes again with each connection. Once it was confirmed, nothing does.
func TestConfirmedIsWhatTheSlotKeeps(t *testing.T) {
	t.Parallel()
	src := newSource(t)
	src.exec("insert into t values (1)")
	var end pglogrepl.LSN
	for range 2 {
		s := src.mustOpen()
		c := next(t, s, "C")
		end = pglogrepl.LSN(be64(c[10:]))
		s.Close()
	}
	s := src.mustOpen()
	s.Track(&fakeProgress{confirmed: end})
	next(t, s, "C")
	s.Close()
	var got pglogrepl.LSN
	if err := src.conn.QueryRow(context.Background(), "select confirmed_flush_lsn from pg_replication_slots where slot_name = $1", src.slot).Scan(&got); err != nil {
		t.Fatal(err)
	}
	if got != end {
		t.Errorf("the slot stands at %s, want %s: the last status of Close was lost", got, end)
	}
	src.exec("insert into t values (2)")
	s = src.mustOpen()
	if got := next(t, s, "I"); !strings.Contains(got, "2") {
		t.Errorf("insert %q comes again, want row 2", got)
	}
}

func be64(s string) (v uint64) {
	for _, c := range []byte(s[:8]) {
		v = v<<8 | uint64(c)
	}
	return v
}

// A role's own settings do not change the text form of rows.
func TestSessionSettingsArePinned(t *testing.T) {
	t.Parallel()
	src := newSource(t)
	role := src.slot
	src.exec(fmt.Sprintf("create role %s login replication superuser password 'secret'", role))
	t.Cleanup(func() { src.exec(fmt.Sprintf("drop role %s", role)) })
	for _, set := range []string{
		"DateStyle = 'SQL, DMY'", "TimeZone = 'Asia/Kathmandu'", "bytea_output = 'escape'", "IntervalStyle = 'sql_standard'", "extra_float_digits = -10", "client_encoding = 'LATIN1'", "client_min_messages = error",
		"quote_all_identifiers = on", "wal_sender_timeout = 0",
	} {
		src.exec(fmt.Sprintf("alter role %s set %s", role, set))
	}
	src.exec(`insert into t values (1, '2025-02-03 04:05:06.789+00', '\x00ff')`)
	u, err := url.Parse(src.db.DSN)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(role, "secret")
	src.db.DSN = u.String()
	s := src.mustOpen()
	got := next(t, s, "I")
	for _, want := range []string{"2025-02-03 04:05:06.789+00", `\x00ff`} {
		if !strings.Contains(got, want) {
			t.Errorf("row %q does not hold %q", got, want)
		}
	}
	if s.every != 5*time.Second {
		t.Errorf("a status message every %s, want 5s: three within wal_sender_timeout", s.every)
	}
	s.Close()
	// The test asks the server for the settings that have no influence on these rows.
	pc, err := connConfig(StreamConfig{DSN: src.db.DSN})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pgconn.ConnectConfig(t.Context(), pc)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	for name, want := range map[string]string{
		"DateStyle": "ISO", "TimeZone": "UTC", "bytea_output": "hex", "IntervalStyle": "postgres", "extra_float_digits": "1",
		"client_encoding": "UTF8", "client_min_messages": "notice", "quote_all_identifiers": "off", "wal_sender_timeout": "15s",
	} {
		results, err := conn.Exec(t.Context(), "show "+name).ReadAll()
		if err != nil {
			t.Fatal(err)
		}
		if got := string(results[0].Rows[0][0]); !strings.HasPrefix(got, want) {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
}

// With protocol version 1, a transaction is sent only after its commit, however large it is.
func TestOpenTransactionsAreNotSent(t *testing.T) {
	t.Parallel()
	src := newSource(t)
	src.exec("alter database " + src.db.Name + " set logical_decoding_work_mem = '64kB'")
	large := src.db.Conn(t)
	for _, sql := range []string{"begin", "insert into t select i from generate_series(1, 10000) i"} {
		if _, err := large.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	src.exec("insert into t values (77)") // it commits after the large transaction has begun
	if got := next(t, src.mustOpen(), "BSI"); got[0] != 'B' {
		t.Errorf("the first message is %q, want a Begin", got[:1])
	}
	if _, err := large.Exec(t.Context(), "rollback"); err != nil {
		t.Fatal(err)
	}
}

func TestOpenErrors(t *testing.T) {
	t.Parallel()
	src := newSource(t)
	s := src.mustOpen()
	if _, err := src.open(); !errors.Is(err, ErrSlotInUse) || !strings.Contains(err.Error(), "PID") {
		t.Errorf("a slot in use: %v, want ErrSlotInUse and the pid", err)
	}
	s.Close()
	src.slot += "_missing"
	if _, err := src.open(); err == nil || !strings.Contains(err.Error(), "does not exist") {
		t.Errorf("a missing slot: %v", err)
	}
	src.db.DSN = "postgres://nobody:secretpassword@127.0.0.1:1/x?sslmode=disable"
	if _, err := src.open(); err == nil || strings.Contains(err.Error(), "secretpassword") {
		t.Errorf("a wrong address: %v", err)
	}
}

// If a person ends the walsender, the stream ends with an error.
func TestTerminatedWalsenderEndsTheStream(t *testing.T) {
	t.Parallel()
	src := newSource(t)
	src.exec("insert into t values (1)")
	s := src.mustOpen()
	next(t, s, "C")
	src.exec("select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = $1", src.slot)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for {
		if _, err := s.Next(ctx); err != nil {
			if ctx.Err() != nil || !s.Broken() {
				t.Errorf("ended with %v, broken %v", err, s.Broken())
			}
			return
		}
	}
}
