package connector

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/decoder"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/wait"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// The error that the reader makes of a server's error names the transaction, from the messages before it and from the LSN in its context, in
// whatever language that is.
func TestPlaceOfAnError(t *testing.T) {
	t.Parallel()
	where := `Slot »s«, Ausgabe-Plugin »pgoutput«, im Callback change, zugehörige LSN 0/2BA56B8`
	begin := decoder.Message{Kind: decoder.KindBegin, LSN: 0x2000, Xid: 737, CommitTime: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	commit := decoder.Message{Kind: decoder.KindCommit, LSN: 0x2000, EndLSN: 0x2030}
	for name, c := range map[string]struct {
		sent  []decoder.Message
		where string
		want  string
		at    pglogrepl.LSN
	}{
		"in a transaction": {[]decoder.Message{begin}, where, "in transaction 737 (commit LSN 0/2000, committed 2026-01-02T03:04:05Z), " +
			"while the server read the record at LSN 0/2BA56B8: ", 0x2000},
		"behind one":       {[]decoder.Message{begin, commit}, where, "behind transaction 737 (commit LSN 0/2000", 0x2BA56B8},
		"before the first": {nil, "", "before the first transaction behind LSN 0/1000, where the slot stands: ", 0x1000},
	} {
		r := &reader{tracker: checkpoint.NewTracker(10, 1<<20, checkpoint.Position{}, 0)}
		r.start.Confirmed = 0x1000
		for _, m := range c.sent {
			if err := r.handleMessage(t.Context(), m); err != nil {
				t.Fatal(err)
			}
		}
		e, ok := errors.AsType[*streamError](r.locate(fmt.Errorf("x: %w", &pgconn.PgError{Code: "22021", Message: "no", Where: c.where})))
		if !ok || !strings.Contains(e.Error(), c.want) || e.placeLSN() != c.at {
			t.Errorf("%s: %v at %s, want %q at %s", name, e, e.placeLSN(), c.want, c.at)
		}
	}
	if other := errors.New("no error of the server"); !errors.Is((&reader{}).locate(other), other) {
		t.Error("another error was changed")
	}
}

// What the server can never send ends the process, and anything else says after the third time that it comes for ever. XX000 is what PostgreSQL
// 14 and 18 say of a bytea of 600 MiB, for which a walsender took 1.2 GB of memory; 54000 was read in their source, not seen.
func TestErrorThatComesForEver(t *testing.T) {
	t.Parallel()
	c, _ := newWatchedConnector()
	c.cfg.Source.Table = "public.event_outbox"
	in := func(pg *pgconn.PgError, lsn pglogrepl.LSN) error {
		return c.explainStreamError(context.Background(), &streamError{err: pg, cause: pg, inside: true, xid: 7, lsn: lsn})
	}
	for _, pg := range []*pgconn.PgError{
		{Code: "22021", Message: `invalid byte sequence for encoding "UTF8": 0xff`},
		{Code: "22P05", Message: `character with byte sequence 0x81 in encoding "WIN1252" has no equivalent in encoding "UTF8"`},
		{Code: "XX000", Message: "invalid memory alloc request size 1258291203"},
		{Code: "54000", Message: "out of memory"},
	} {
		if err := in(pg, 1); exitcode.Of(err) != exitcode.SlotLost || !strings.Contains(err.Error(), "where xmin = '7'") ||
			!strings.Contains(err.Error(), `run "outbox-cdc skip --lsn 0/1"`) {
			t.Errorf("%s: %v", pg.Code, err)
		}
	}
	again := &pgconn.PgError{Code: "XX000", Message: "could not open relation"}
	ended := &pgconn.PgError{Code: "57P01", Message: "terminating connection"}
	for i, step := range []struct {
		pg      *pgconn.PgError
		at      pglogrepl.LSN
		forever bool
	}{
		{again, 1, false},
		{again, 1, false},
		{again, 1, true},
		{again, 1, true},
		{again, 2, false},
		{again, 2, false},
		{ended, 2, false},
		{again, 2, true},
		{ended, 3, false},
		{ended, 3, false},
		{ended, 3, false},
		{ended, 3, false},
	} {
		err := in(step.pg, step.at)
		if got := strings.Contains(err.Error(), "comes for ever"); got != step.forever {
			t.Errorf("step %d: %v", i, err)
		}
	}
}

// A row that was written without a needed column will never be decodable: after the third time the error says so.
func TestDriftThatComesForEver(t *testing.T) {
	t.Parallel()
	c, _ := newWatchedConnector()
	for i, step := range []struct {
		lsn     pglogrepl.LSN
		forever bool
	}{{1, false}, {1, false}, {1, true}, {2, false}, {2, false}, {2, true}} {
		err := c.explainStreamError(t.Context(), (&reader{}).wrapDecodeError(&decoder.Error{LSN: step.lsn, Kind: 'R', Err: errors.New("the schema drifted")}))
		if got := strings.Contains(err.Error(), "comes for ever") && strings.Contains(err.Error(), `run "outbox-cdc skip --lsn `+step.lsn.String()+`"`); got != step.forever {
			t.Errorf("step %d: %v", i, err)
		}
	}
}

// What stands before a place that the stream cannot pass is delivered, although every session reads all of it at once, and then the error. So the
// checkpoint comes as far as outbox-cdc skip needs it.
func TestEventsBeforeAPlaceThatCannotBePassed(t *testing.T) {
	t.Parallel()
	b := newConnectorBench(t)
	b.setSink(func(ctx context.Context, batch []sinks.Message) []error {
		_ = wait.For(ctx, 300*time.Millisecond) // a sink that takes longer than the reader needs for all of it
		return nil
	})
	b.event("a", "before")
	b.exec("begin")
	b.event("a", "first")
	b.exec("alter table event_outbox rename payload to body")
	b.exec("insert into event_outbox (aggregate_type, aggregate_id, event_type, body) values ('t', 'a', 'second', '{}')")
	b.exec("alter table event_outbox rename body to payload")
	b.exec("commit")
	b.event("a", "behind")
	r := b.run()
	b.eventually(logQuery, "before:delivered first:delivered")
	b.eventually("select prefix_index from outbox_checkpoints", "0")
	r.stop()
	if got := b.received(); got != "before first" {
		t.Errorf("received %s", got)
	}
}

// quietStream has nothing to send and takes every status message.
type quietStream struct{ unwaitedStream }

func (quietStream) Wait() time.Duration { return time.Second }
func (quietStream) Report() error       { return nil }

// While what stands before the place cannot be settled, the session ends all the same, after the time that a drain may take, or when it is asked to.
func TestNothingToWaitForBeforeAPlace(t *testing.T) {
	t.Parallel()
	place := fmt.Errorf("decode: %w", &decoder.Error{LSN: 1, Kind: 'R', Err: errors.New("no")})
	server := &pgconn.PgError{Code: "XX000"}
	ended := &pgconn.PgError{Code: "57P01"}
	for name, test := range map[string]struct {
		err      error
		inFlight int
		want     time.Duration
	}{
		"settled":              {place, 0, 0},
		"never settled":        {place, 1, 7 * time.Second},
		"the server's error":   {&streamError{err: server, cause: server}, 1, 7 * time.Second},
		"the server has ended": {&streamError{err: ended, cause: ended}, 1, 0},
		"no place":             {errors.New("no"), 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newReaderBench(t, ledger.Start{})
				b.reader.stream = quietStream{}
				for i := range test.inFlight {
					b.tracker.Add(checkpoint.Position{LSN: 1, Index: int64(i)}, 1, 1, time.Now())
				}
				began := time.Now()
				b.settleBefore(t.Context(), test.err, 7*time.Second)
				if took := time.Since(began); took != test.want {
					t.Errorf("it took %s, want %s", took, test.want)
				}
			})
		})
	}
}
