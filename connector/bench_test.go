package connector

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/replication"
	"github.com/pyairtable-compose/outbox-cdc/router"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// benchStream sends so many transactions of one event, as many at once as are in a chunk. Between two chunks it settles what the reader has
// handed over.
type benchStream struct {
	sessionStream
	s        *session
	chunk    [][]byte // reused for each chunk
	at, left int
	lsn      uint64
	handed   []uint64
}

func (b *benchStream) Buffered() bool        { return b.at > 0 && b.at < len(b.chunk) }
func (b *benchStream) Fast() bool            { return true }
func (b *benchStream) Waited() time.Duration { return 0 }

func (b *benchStream) Next(context.Context) (replication.Frame, error) {
	if b.at == len(b.chunk) {
		b.at = 0
		b.settle()
	}
	if b.left == 0 {
		return replication.Frame{}, context.Canceled
	}
	m := b.chunk[b.at]
	b.at++
	switch m[0] {
	case 'B':
		b.lsn += 100
		binary.BigEndian.PutUint64(m[1:], b.lsn)
	case 'C':
		binary.BigEndian.PutUint64(m[2:], b.lsn)
		binary.BigEndian.PutUint64(m[10:], b.lsn+30)
		b.left--
	}
	return replication.Frame{Data: m}, nil
}

// settle does what lanes and recorder would do.
func (b *benchStream) settle() {
	b.handed = b.handed[:0]
	for _, l := range b.s.lanes {
		for len(l.in) > 0 {
			for _, d := range (<-l.in).list {
				b.handed = append(b.handed, d.entry)
			}
		}
	}
	b.s.tracker.Settle(b.handed)
	b.s.tracker.Publish(b.s.tracker.Settled())
}

func benchConnector() *Connector {
	return New(Config{
		Sinks: []Sink{{Name: "s"}}, Source: Source{Columns: worldColumns}, Metrics: monitoring.NewMetrics("", nil), Health: &monitoring.Health{},
		Logger:   slog.New(slog.DiscardHandler),
		Delivery: DeliveryConfig{BatchSize: 1000, Lanes: 1, Timeout: time.Hour, MaxInFlight: 10_000, MaxInFlightBytes: 1 << 30, MaxEventBytes: 1 << 20},
	})
}

// BenchmarkReader reads transactions of one event, as they come from a slow stream (one in a chunk) and from a fast one.
func BenchmarkReader(b *testing.B) {
	for _, n := range []int{1, 10, 500} {
		b.Run(fmt.Sprint(n, " in a chunk"), func(b *testing.B) {
			c := benchConnector()
			s := &session{c: c, tracker: checkpoint.NewTracker(10_000, 1<<30, checkpoint.Position{}, 0)}
			shared := &sharedSink{name: "s", id: 1, delivery: c.cfg.Delivery, state: c.sinks["s"].state}
			s.lanes = []*lane{newLane(shared, 0, rowSource{}, nil)}
			s.bySink = map[int32][]*lane{1: s.lanes}
			stream := &benchStream{s: s, left: b.N}
			s.stream = stream
			own := router.Sink{Processor: 1, Topic: worldTemplate("{event_type}"), Key: worldTemplate("{aggregate_id}")}
			s.reader = s.newReader(ledger.Start{}, 0, worldOID, []router.Route{{Sinks: []router.Sink{own}}})
			if _, err := s.reader.decoder.Decode(worldRelation()); err != nil {
				b.Fatal(err)
			}
			for i := range n {
				stream.chunk = append(stream.chunk, make([]byte, 21), worldInsert(&worldEvent{id: fmt.Sprint(i), aggregate: fmt.Sprint(i), sinks: []int{0}}), make([]byte, 26))
				stream.chunk[3*i][0], stream.chunk[3*i+2][0] = 'B', 'C'
			}
			stream.at = len(stream.chunk)
			b.ReportAllocs()
			b.ResetTimer()
			if err := s.reader.read(b.Context()); err == nil || stream.left > 0 {
				b.Fatal(err, stream.left)
			}
		})
	}
}

// BenchmarkLane delivers batches of this many events, one batch after the other.
func BenchmarkLane(b *testing.B) {
	for _, n := range []int{1, 10, 500} {
		b.Run(fmt.Sprint(n, " in a batch"), func(b *testing.B) {
			c := benchConnector()
			lasting := c.sinks["s"]
			outcomes := make(chan checkpoint.Outcomes, 10)
			shared := &sharedSink{
				sink: fakeSink(func(context.Context, []sinks.Message) []error { return nil }), name: "s", id: 1, policy: retryInPlace, delivery: c.cfg.Delivery,
				breaker: lasting.breaker, budget: lasting.budget, lease: lastingLease(), paused: new(atomic.Bool), state: lasting.state, objective: lasting.objective,
				measures: newLaneMeasures(c.cfg.Metrics, "s"), fast: func() bool { return false }, logger: c.cfg.Logger,
			}
			table := &memLedger{}
			l := newLane(shared, 0, rowSource{parked: table.table(1, 0, 1), address: ofTestEvent}, outcomes)
			shared.breaker.attach([]*lane{l})
			done := make(chan error)
			go func() { done <- l.run(b.Context(), b.Context()) }()
			event := &outbox.Event{ID: "1", AggregateType: "t", AggregateID: "a", EventType: "e"}
			now := time.Now()
			all := make([]delivery, n)
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				list := make([]*delivery, n)
				for j := range list {
					all[j] = delivery{hash: int64(j), Message: sinks.Message{Event: event, LSN: pglogrepl.LSN(i + 1), Index: int64(j), CommitTime: now}}
					list[j] = &all[j]
				}
				l.in <- handed{list, now}
				for got := 0; got < n; {
					o := <-outcomes
					got += len(o.Rows)
					o.Recorded <- o.Seq
				}
			}
			b.StopTimer()
			close(l.in)
			if err := <-done; err != nil {
				b.Fatal(err)
			}
		})
	}
}
