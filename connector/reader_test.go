package connector

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/decoder"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/router"
)

// unwaitedStream is a stream that has not waited. The reader needs the rest of it only when it waits.
type unwaitedStream struct{ stream }

func (unwaitedStream) Waited() time.Duration { return 0 }

// readerBench is a reader with one lane, of processor 1.
type readerBench struct {
	*reader
	t        *testing.T
	inlet    *laneInput
	outcomes chan checkpoint.Outcomes
	log      *bytes.Buffer
}

func newReaderBench(t *testing.T, start ledger.Start) *readerBench {
	tpl, err := router.ParseTemplate("{aggregate_type}")
	if err != nil {
		t.Fatal(err)
	}
	c, _ := newWatchedConnector()
	b := &readerBench{t: t, inlet: &laneInput{lane: make(chan handed, 1), inFlight: &atomic.Int64{}}, outcomes: make(chan checkpoint.Outcomes, 10), log: &bytes.Buffer{}}
	b.reader = &reader{
		stream: unwaitedStream{}, clock: c.newReaderClock(),
		tracker: checkpoint.NewTracker(16, 1<<20, start.Prefix, start.Confirmed), start: start, outcomes: b.outcomes,
		lanes: map[int32][]*laneInput{1: {b.inlet}}, router: router.New([]router.Route{{Match: router.Match{TenantID: []string{""}}, Sinks: []router.Sink{{Processor: 1, Topic: tpl, Key: tpl}}}}),
		logger: slog.New(slog.NewTextHandler(b.log, nil)), foreignTables: map[uint32]struct{}{}, unroutedLog: &unroutedLog{}, oddMetadata: &oddMetadata{}, deaths: &deathLog{},
		checkDrift: func(context.Context) error { return nil },
		decoder:    decoder.New(decoder.Table{OID: 1, Columns: decoder.DefaultColumns()}, 1<<20), noSink: &noSinkCounts{},
	}
	return b
}

// transaction gives the reader a transaction with these inserts: an event with this id, "" for a row of another table, "!" for a row that is no
// valid event, "?…" for an event that no route matches.
func (b *readerBench) transaction(commit, end pglogrepl.LSN, inserts ...string) {
	b.t.Helper()
	messages := []decoder.Message{{Kind: decoder.KindBegin, LSN: commit}}
	for _, id := range inserts {
		m := decoder.Message{Kind: decoder.KindInsert, Size: 10}
		if id != "" {
			m.Event = &outbox.Event{ID: id, AggregateType: "t", AggregateID: "a"}
		}
		if strings.HasPrefix(id, "?") {
			m.Event.TenantID = "nobody's"
		}
		if id == "!" {
			m.Invalid = errors.New("it is no event")
		}
		messages = append(messages, m)
	}
	for _, m := range append(messages, decoder.Message{Kind: decoder.KindCommit, LSN: commit, EndLSN: end}) {
		if err := b.handleMessage(b.t.Context(), m); err != nil {
			b.t.Fatal(err)
		}
	}
}

// collected returns the deliveries that the reader has collected for the lane.
func (b *readerBench) collected() string {
	var s []string
	for _, d := range b.inlet.collected {
		s = append(s, fmt.Sprintf("%s@%d/%d", d.Event.ID, d.LSN, d.Index))
	}
	return strings.Join(s, " ")
}

// An event's position is the commit record's LSN and its index among all inserts of the transaction, from 0.
func TestReaderPositions(t *testing.T) {
	t.Parallel()
	b := newReaderBench(t, ledger.Start{})
	b.transaction(100, 130, "", "a", "", "b")
	b.transaction(200, 230, "c")
	check(t, "collected", b.collected(), "a@100/1 b@100/3 c@200/0")
}

// The reader confirms the end of the commit record. If it confirmed the start, PostgreSQL would send the transaction again. One byte more than the
// end would lose a transaction whose commit record begins there.
func TestReaderConfirmsTheEndOfTheCommitRecord(t *testing.T) {
	t.Parallel()
	b := newReaderBench(t, ledger.Start{})
	b.transaction(100, 130, "a")
	if got := b.tracker.Settled().LSN; got != 0 {
		t.Errorf("%d may be confirmed before the event is settled", got)
	}
	b.tracker.Settle([]uint64{b.inlet.collected[0].entry})
	if got := b.tracker.Settled().LSN; got != 130 {
		t.Errorf("%d may be confirmed, want 130", got)
	}
	b.transaction(200, 230, "")
	if got := b.tracker.Settled().LSN; got != 230 {
		t.Errorf("%d may be confirmed after a transaction without events, want 230", got)
	}
}

// After a crash PostgreSQL sends settled events again. The reader leaves out those, by their positions, and no others.
func TestReaderLeavesOutWhatIsSettled(t *testing.T) {
	t.Parallel()
	at := func(lsn pglogrepl.LSN, index int64) checkpoint.Position {
		return checkpoint.Position{LSN: lsn, Index: index}
	}
	b := newReaderBench(t, ledger.Start{
		Checkpoint: ledger.Checkpoint{Prefix: at(100, 1), Confirmed: 95},
		Settled:    map[checkpoint.Key]struct{}{{Processor: 1, Position: at(100, 3)}: {}, {Processor: 0, Position: at(200, 1)}: {}},
	})
	b.transaction(90, 95, "v")
	b.transaction(100, 130, "a", "b", "c", "d", "e")
	b.transaction(200, 230, "c", "!", "!") // the same id is another event
	check(t, "collected", b.collected(), "c@100/2 e@100/4 c@200/0")
	if n := len(b.outcomes); n != 1 {
		t.Errorf("%d dead letters, want the one that is not settled", n)
	}
}

// A row that is no valid event becomes a dead letter of processor 0. It is owed until that is recorded, and stops nothing.
func TestReaderInvalidRow(t *testing.T) {
	t.Parallel()
	b := newReaderBench(t, ledger.Start{})
	b.transaction(100, 130, "a", "!", "b")
	check(t, "collected", b.collected(), "a@100/0 b@100/2")
	if len(b.outcomes) != 1 {
		t.Fatalf("%d outcomes, want one", len(b.outcomes))
	}
	if got := b.reader.noSink.invalid.Load(); got != 1 {
		t.Errorf("%v invalid rows are counted, want 1", got)
	}
	rows := (<-b.outcomes).Rows
	if len(rows) != 1 || rows[0].Status != checkpoint.Dead || rows[0].Processor != 0 || rows[0].Parked == nil || rows[0].Error != "it is no event" {
		t.Errorf("outcome %+v, want a dead letter of processor 0", rows)
	}
	b.tracker.Settle([]uint64{b.inlet.collected[0].entry, b.inlet.collected[1].entry})
	if m := b.tracker.Settled(); m.LSN != 0 || m.Prefix != (checkpoint.Position{LSN: 100}) {
		t.Errorf("%s is settled and %s may be confirmed before the dead letter is recorded", m.Prefix, m.LSN)
	}
	b.tracker.Settle([]uint64{rows[0].Entry})
	if got := b.tracker.Settled().LSN; got != 130 {
		t.Errorf("%d may be confirmed, want 130", got)
	}
}

// An event that no route matches is owed until its row in the log, discarded, is written. The row is written once.
func TestReaderDiscards(t *testing.T) {
	t.Parallel()
	b := newReaderBench(t, ledger.Start{Settled: map[checkpoint.Key]struct{}{
		{Processor: 0, Position: checkpoint.Position{LSN: 100, Index: 1}}: {},
	}})
	b.transaction(100, 130, "?one", "?two", "a")
	check(t, "collected", b.collected(), "a@100/2")
	if len(b.outcomes) != 1 || b.reader.noSink.unrouted.Load() != 1 {
		t.Fatalf("%d outcomes, %v counted, want the one that is not settled", len(b.outcomes), b.reader.noSink.unrouted.Load())
	}
	rows := (<-b.outcomes).Rows
	if len(rows) != 1 || rows[0].Status != checkpoint.Discarded || rows[0].Processor != 0 || rows[0].EventID != "?one" || rows[0].Parked != nil {
		t.Errorf("outcome %+v, want processor 0, discarded", rows)
	}
	b.tracker.Settle([]uint64{b.inlet.collected[0].entry})
	if m := b.tracker.Settled(); m.LSN != 0 {
		t.Errorf("%s may be confirmed before the row is written", m.LSN)
	}
	b.tracker.Settle([]uint64{rows[0].Entry})
	if got := b.tracker.Settled().LSN; got != 130 {
		t.Errorf("%d may be confirmed, want 130", got)
	}
}

// Rows of another table are not delivered, and each such table is named once.
func TestReaderNamesForeignTables(t *testing.T) {
	t.Parallel()
	b := newReaderBench(t, ledger.Start{})
	decode := func(message []byte) {
		m, err := b.decoder.Decode(message)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.handleMessage(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	b.transaction(100, 130, "a")
	if got := b.log.String(); got != "" {
		t.Fatalf("the log says %s", got)
	}
	if err := b.handleMessage(t.Context(), decoder.Message{Kind: decoder.KindBegin, LSN: 200}); err != nil {
		t.Fatal(err)
	}
	for oid, name := range map[uint32]string{ // the last has no rows
		7: "orders", 8: "event_outbox_old", 9: "event_outbox_p1",
	} {
		r := binary.BigEndian.AppendUint32([]byte{'R'}, oid)
		decode(append(append(r, "shop\x00"+name...), 0, 'd', 0, 0))
	}
	for range 3 {
		decode(append(binary.BigEndian.AppendUint32([]byte{'I'}, 7), 'N', 0, 0))
		decode(append(binary.BigEndian.AppendUint32([]byte{'I'}, 8), 'N', 0, 0))
	}
	log := b.log.String()
	for _, want := range []string{"table=shop.orders", "table=shop.event_outbox_old", "level=WARN", "docs/table.md#foreign"} {
		if !strings.Contains(log, want) {
			t.Errorf("the log does not say %q: %s", want, log)
		}
	}
	if n := strings.Count(log, "\n"); n != 2 {
		t.Errorf("%d lines, want one a table with rows: %s", n, log)
	}
	check(t, "collected", b.collected(), "a@100/0")
}

// The first row of another table ends the session if the outbox has drifted, before the slot may pass it.
func TestReaderAsksForDrift(t *testing.T) {
	t.Parallel()
	b := newReaderBench(t, ledger.Start{})
	b.transaction(100, 130, "a")
	drifted := errors.New("it is another relation now")
	b.checkDrift = func(context.Context) error { return drifted }
	if err := b.handleMessage(t.Context(), decoder.Message{Kind: decoder.KindBegin, LSN: 200}); err != nil {
		t.Fatal(err)
	}
	if err := b.handleMessage(t.Context(), decoder.Message{Kind: decoder.KindInsert, Relation: 7}); !errors.Is(err, drifted) {
		t.Fatalf("error %v, want %v", err, drifted)
	}
	b.tracker.Settle([]uint64{b.inlet.collected[0].entry})
	if got := b.tracker.Settled().LSN; got != 130 {
		t.Errorf("%d may be confirmed, want 130, which is before the row", got)
	}
	b.checkDrift = func(context.Context) error { return nil }
	for range 2 {
		if err := b.handleMessage(t.Context(), decoder.Message{Kind: decoder.KindInsert, Relation: 7}); err != nil {
			t.Fatal(err)
		}
		b.checkDrift = func(context.Context) error { return drifted } // not asked again
	}
	if n := strings.Count(b.log.String(), "\n"); n != 1 {
		t.Errorf("%d lines: %s", n, b.log)
	}
}

// TestIdleCheckpoints: which keepalives of an idle stream make the recorder write a checkpoint.
func TestIdleCheckpoints(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start := pglogrepl.LSN(1 << 30)
		tracker := checkpoint.NewTracker(16, 1<<20, checkpoint.Position{LSN: start, Index: -1}, start)
		r := &reader{tracker: tracker}
		lsn := start
		for i, step := range []struct {
			after   time.Duration
			bytes   pglogrepl.LSN
			written bool
		}{
			{0, 100, false},                   // too little
			{29 * time.Second, 0, false},      // not yet
			{time.Second, 0, true},            // once, for restart_lsn, of which nobody knows where it stands
			{0, 1 << 20, true},                // much
			{0, 128 << 10, false},             // less, and too soon
			{10 * time.Second, 0, true},       // later the same
			{0, 100, false},                   // behind it, next to nothing
			{30 * time.Second, 0, true},       // once, for restart_lsn
			{0, 100, false},                   // behind that is what our own commit made the server write:
			{time.Hour, 0, false},             // it stays
			{0, idleSmallStep, true},          // until there is more
			{0, 0, false},                     // seen that it was written
			{time.Hour, 0, false},             // nothing is behind it
			{time.Hour, idleSmallStep, false}, // too little since
			{0, 1, true},                      // enough
		} {
			time.Sleep(step.after)
			lsn += step.bytes
			r.onKeepalive(lsn)
			written := false
			select {
			case <-tracker.Progress():
				written = true
				tracker.Publish(tracker.Settled())
			default:
			}
			if written != step.written {
				t.Errorf("step %d: written %t, want %t", i, written, step.written)
			}
		}
	})
}

// In the middle of a transaction a keepalive says nothing, whether or not it has brought an event yet.
func TestReaderNotesOpenTransactions(t *testing.T) {
	t.Parallel()
	b := newReaderBench(t, ledger.Start{})
	if err := b.handleMessage(t.Context(), decoder.Message{Kind: decoder.KindBegin, LSN: 100}); err != nil {
		t.Fatal(err)
	}
	b.onKeepalive(100 + 2*idleStep)
	if got := b.tracker.Settled().LSN; got != 0 {
		t.Errorf("%d may be confirmed in the middle of a transaction", got)
	}
}
