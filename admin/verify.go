package admin

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/connector"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/wait"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
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
	o      VerifyOptions
	result *VerifyResult
}

func (v *verifier) run(ctx context.Context, r Routing) error {
	if err := v.checkPrimary(ctx); err != nil {
		return err
	}
	all, err := v.schema().VerifySinks(ctx, v.conn, v.cfg.Name)
	if err != nil {
		return err
	}
	owing := connector.NewOwing(&connector.Config{Sinks: r.Sinks, Routes: r.Routes}, all)
	rows, err := v.schema().OpenVerify(ctx, v.conn, v.cfg.Source.OutboxTable())
	if err != nil {
		return err
	}
	if !v.o.Since.IsZero() && !rows.Timed() {
		return fmt.Errorf("events of %s have no time, so they cannot be bounded by one; name its column as source.columns.created_at", v.cfg.Source.Table)
	}
	q := owing.Query(v.cfg.Source.Slot)
	q.Since = v.o.Since
	if q.Witness, err = v.await(ctx); err != nil {
		return err
	}
	v.tell("comparing %s with the ledger", v.cfg.Source.Table)
	found := map[int32]*VerifiedSink{}
	for _, s := range owing.Sinks() {
		found[s.Processor] = &VerifiedSink{Sink: s.Name, Job: s.Unfinished, Events: []MissingEvent{}}
	}
	point, err := rows.CompareAll(ctx, v.conn, q, func(p *ledger.VerifyPoint, u *ledger.Unknown) error {
		found[u.Processor].add(owing.Judge(p, u), u, v.o.Limit)
		return nil
	})
	if err != nil {
		return err
	}
	v.result.Decided, v.result.Prefix = point.Decides, point.Prefix.String()
	for _, id := range q.Processors {
		s := found[id]
		slices.SortFunc(s.Events, func(a, b MissingEvent) int { return strings.Compare(a.ID, b.ID) })
		v.result.Missing += s.Missing
		v.result.Sinks = append(v.result.Sinks, *s)
	}
	return nil
}

// checkPrimary refuses a standby, from which slot and stream cannot be seen.
func (v *verifier) checkPrimary(ctx context.Context) error {
	var standby bool
	if err := v.conn.QueryRow(ctx, "select pg_is_in_recovery()").Scan(&standby); err != nil {
		return err
	}
	if standby {
		return exitcode.Errorf(exitcode.Config, "the server is a standby, from which nobody can see how far the stream is; let source.dsn lead to the primary")
	}
	return nil
}

// add counts an event. It names the first ones that are missing.
func (s *VerifiedSink) add(standing connector.Standing, u *ledger.Unknown, limit int) {
	switch standing {
	case connector.NotOwed:
	case connector.Expired:
		s.Expired++
	case connector.Pending:
		s.Pending++
	case connector.Missing:
		if s.Missing++; s.Missing <= int64(limit) {
			s.Events = append(s.Events, MissingEvent{
				u.ID, u.AggregateType, u.AggregateID, u.EventType, u.CreatedAt, "the stream is past it, and the ledger has nothing of it for this sink",
			})
		}
	}
}

func (v *verifier) tell(format string, args ...any) {
	if v.o.Tell != nil {
		v.o.Tell(fmt.Sprintf(format, args...))
	}
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
		if err := wait.For(ctx, 200*time.Millisecond); err != nil {
			return witness, err
		}
	}
}
