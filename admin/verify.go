package admin

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/connector"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/router"
)

// VerifyOptions say what Verify compares.
type VerifyOptions struct {
	// Since leaves out events of earlier times; zero for all.
	Since time.Time
	// Limit is how many missing events of each sink VerifyResult names.
	Limit int
	// Wait bounds how long Verify waits until the stream is settled so far that it can decide about what is there now.
	Wait time.Duration
	// Tell is called with what Verify does now. It may be nil.
	Tell func(step string)
}

// VerifyResult says which events the sinks lack.
type VerifyResult struct {
	Slot string `json:"slot"`
	// Decided says that the stream is settled beyond all rows that were there when Verify began. If it is not, nothing counts as missing,
	// because it may still come. Streamed says that somebody streams from the slot.
	Decided  bool `json:"decided"`
	Streamed bool `json:"streamed"`
	// At is when Verify began, by this machine's clock, and Prefix how far the stream was settled when it compared.
	At      time.Time      `json:"at"`
	Prefix  string         `json:"prefix"`
	Missing int64          `json:"missing"` // in all sinks together
	Sinks   []VerifiedSink `json:"sinks"`
}

// VerifiedSink is what Verify has found for a sink.
type VerifiedSink struct {
	Sink string `json:"sink"`
	// Missing counts the events that are owed to the sink, and of which the ledger does not say what has become of them.
	Missing int64 `json:"missing"`
	// Pending counts those that may still come: on the stream, or by the sink's job, if it has one that is not finished.
	Pending int64 `json:"pending"`
	Job     bool  `json:"job_unfinished"`
	// Expired counts those from before the part of the log that was dropped: nobody can know any more.
	Expired int64          `json:"expired"`
	Events  []MissingEvent `json:"events"`
}

// MissingEvent is an event that a sink lacks.
type MissingEvent struct {
	ID            string     `json:"id"`
	AggregateType string     `json:"aggregate_type"`
	AggregateID   string     `json:"aggregate_id"`
	EventType     string     `json:"event_type"`
	CreatedAt     *time.Time `json:"created_at"`
	Why           string     `json:"why"`
}

// Verify compares the outbox with the ledger, and changes nothing. An event is missing for a sink if it is owed to the sink, the ledger does
// not say what has become of it there, and it cannot come any more: see package ledger.
//
// It first notes what is there (a Witness), and waits until the stream is settled beyond that. An idle connector, which would not write
// down how far its stream is settled, is asked to.
func Verify(ctx context.Context, c Config, r Routing, o VerifyOptions) (VerifyResult, error) {
	result := VerifyResult{Slot: c.Source.Slot, At: time.Now().UTC(), Sinks: []VerifiedSink{}}
	err := withLedger(ctx, c, func(l *ledgerConn) error {
		v := &verifier{ledgerConn: l, o: o, result: &result}
		return v.run(ctx, r)
	})
	return result, err
}

type verifier struct {
	*ledgerConn
	o       VerifyOptions
	result  *VerifyResult
	router  *router.Router
	sinks   map[int32]*comparedSink // by processor
	filters []string                // of all jobs
	targets []router.Target         // reused for each event
}

type comparedSink struct {
	VerifiedSink
	known ledger.VerifySink
}

func (v *verifier) run(ctx context.Context, r Routing) error {
	all, err := v.schema().VerifySinks(ctx, v.conn, v.cfg.Name)
	if err != nil {
		return err
	}
	v.prepare(all, r)
	table := v.cfg.Source.OutboxTable()
	outboxRows, err := v.schema().OpenVerify(ctx, v.conn, table)
	if err != nil {
		return err
	}
	if !v.o.Since.IsZero() && !outboxRows.Timed() {
		return fmt.Errorf("events of %s have no time, so they cannot be bounded by one; name its column as source.columns.created_at", v.cfg.Source.Table)
	}
	witness, err := v.await(ctx)
	if err != nil {
		return err
	}
	v.tell("comparing %s with the ledger", v.cfg.Source.Table)
	q := ledger.VerifyQuery{Slot: v.cfg.Source.Slot, Processors: v.processors(), Since: v.o.Since, Filters: v.filters, Witness: witness}
	point, err := outboxRows.Compare(ctx, v.conn, q, func(p *ledger.VerifyPoint, u *ledger.Unknown) error {
		v.take(p, u)
		return nil
	})
	if err != nil {
		return err
	}
	v.result.Decided, v.result.Prefix = point.Decides, point.Prefix.String()
	for _, id := range q.Processors {
		s := v.sinks[id]
		slices.SortFunc(s.Events, func(a, b MissingEvent) int { return strings.Compare(a.ID, b.ID) })
		v.result.Missing += s.Missing
		v.result.Sinks = append(v.result.Sinks, s.VerifiedSink)
	}
	return nil
}

func (v *verifier) tell(format string, args ...any) {
	if v.o.Tell != nil {
		v.o.Tell(fmt.Sprintf(format, args...))
	}
}

// prepare keeps the sinks that are configured, and makes the router.
func (v *verifier) prepare(all []ledger.VerifySink, r Routing) {
	ids := map[string]int32{}
	v.sinks = map[int32]*comparedSink{}
	for _, s := range all {
		ids[s.Name] = s.Processor
		if !v.isConfigured(s.Processor) {
			continue
		}
		v.sinks[s.Processor] = &comparedSink{VerifiedSink{Sink: s.Name, Job: s.Unfinished, Events: []MissingEvent{}}, s}
		for _, f := range s.Filters {
			if !slices.Contains(v.filters, f) {
				v.filters = append(v.filters, f)
			}
		}
	}
	c := connector.Config{Sinks: r.Sinks, Routes: r.Routes}
	v.router = router.New(c.RouterRoutes(ids))
}

func (v *verifier) processors() []int32 {
	ids := []int32{}
	for id := range v.sinks {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// await returns the witness of now, once the stream is settled beyond it, or if there is no sense in waiting longer.
func (v *verifier) await(ctx context.Context) (ledger.Witness, error) {
	witness, err := v.schema().ReadWitness(ctx, v.conn)
	if err != nil {
		return witness, err
	}
	for began := time.Now(); ; {
		settled, streamed, err := v.schema().Settled(ctx, v.conn, v.cfg.Source.Slot, witness)
		if err != nil {
			return witness, err
		}
		v.result.Streamed = streamed
		if settled || !streamed || time.Since(began) > v.o.Wait {
			return witness, nil
		}
		v.tell("waiting until the stream is settled up to now")
		if err := v.schema().AskSettled(ctx, v.conn, v.cfg.Source.Slot); err != nil {
			return witness, err
		}
		t := time.NewTimer(200 * time.Millisecond)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return witness, context.Cause(ctx)
		}
	}
}

// take counts an unknown event, if it is owed to the sink.
func (v *verifier) take(p *ledger.VerifyPoint, u *ledger.Unknown) {
	s := v.sinks[u.Processor]
	switch at := u.CreatedAt; {
	case at != nil && s.known.Since != nil && at.Before(*s.known.Since), s.leftOut(u, v.filters):
	case !v.isRouted(u):
	case at != nil && at.Before(p.LogDroppedUntil):
		s.Expired++
	case !u.Seen || !p.Decides || s.known.Unfinished:
		s.Pending++
	default:
		if s.Missing++; s.Missing <= int64(v.o.Limit) {
			s.Events = append(s.Events, MissingEvent{
				u.ID, u.AggregateType, u.AggregateID, u.EventType, u.CreatedAt, "the stream is past it, and the ledger has nothing of it for this sink",
			})
		}
	}
}

// leftOut reports whether a filter of a job has left the event out.
func (s *comparedSink) leftOut(u *ledger.Unknown, filters []string) bool {
	for i, f := range s.known.Filters {
		if !u.Matches[slices.Index(filters, f)] && (u.CreatedAt == nil || u.CreatedAt.Before(s.known.Filed[i])) {
			return true
		}
	}
	return false
}

// isRouted reports whether a route of today leads to the sink.
func (v *verifier) isRouted(u *ledger.Unknown) bool {
	e := outbox.Event{ID: u.ID, AggregateType: u.AggregateType, AggregateID: u.AggregateID, EventType: u.EventType, TenantID: u.TenantID}
	v.targets = v.router.Route(&e, v.targets[:0])
	return slices.ContainsFunc(v.targets, func(t router.Target) bool { return t.Processor == u.Processor })
}
