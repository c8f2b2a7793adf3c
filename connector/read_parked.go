package connector

import (
	"context"
	"math/rand/v2"
	"slices"

	"github.com/jackc/pglogrepl"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/outbox"
	"github.com/pyairtable-compose/outbox-cdc/router"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

const (
	// maxReadBytes is how many bytes one read takes of untried rows, and again of due ones, at most; see largeTurn for larger rows.
	maxReadBytes = 4 << 20
	// maxHeld is how many aggregates a lane keeps in memory as held.
	maxHeld = 10_000
)

// parkedReader is where a lane reads its rows of outbox_parked: ledger.ParkedReader, or a test's memory. For one goroutine at a time.
type parkedReader interface {
	Read(ctx context.Context, q ledger.ParkedQuery) (ledger.ParkedRead, error)
}

// readResult is what a read of a lane's parked rows has found, with the rows as deliveries.
type readResult struct {
	found      ledger.ParkedRead // without its rows
	fresh, due []*delivery       // of these rows
	err        error
}

// readParked reads once, and makes deliveries of the rows.
func (l *lane) readParked(ctx context.Context, q ledger.ParkedQuery) readResult {
	rows, err := l.source.parked.Read(ctx, q)
	res := readResult{found: rows, err: err}
	for i := range rows.Fresh {
		res.fresh = append(res.fresh, l.deliveryOf(&rows.Fresh[i]))
	}
	for i := range rows.Due {
		d := l.deliveryOf(&rows.Due[i])
		d.due = true
		res.due = append(res.due, d)
	}
	res.found.Fresh, res.found.Due = nil, nil // the deliveries have their events now
	return res
}

// deliveryOf makes a delivery of a parked row. Topic and key are those of the present configuration.
func (l *lane) deliveryOf(row *ledger.ParkedDelivery) *delivery {
	event, committed := eventOf(row)
	d := &delivery{
		Message: sinks.Message{Event: event, LSN: row.Position.LSN, Index: row.Position.Index, CommitTime: committed},
		hash:    row.AggregateHash, attempts: row.Attempts, tries: row.Tries, triedAt: row.TriedAt, row: true,
		repeats: mayRepeat(row.Position, l.source.seenBefore),
	}
	d.Topic, d.Key = l.source.address(event)
	return d
}

// probe picks one row that asks whether the sink is back: the first fresh row of some aggregate, else a due row of some topic. Aggregate
// and topic are picked at random, because many rows that are never answered must not keep the others out. For the same reason it is not
// the one that has asked last, unless there is no other.
func (r *readResult) probe(last checkpoint.Position) []*delivery {
	if len(r.fresh) == 0 {
		if len(r.due) > 1 {
			r.due = slices.DeleteFunc(r.due, func(d *delivery) bool { return d.position() == last })
		}
		return r.probeOfDue()
	}
	hash := anyOf(r.fresh).hash
	first := slices.IndexFunc(r.fresh, func(d *delivery) bool { return d.hash == hash })
	return r.fresh[first : first+1 : first+1]
}

func (r *readResult) probeOfDue() []*delivery {
	byTopic := map[string][]*delivery{}
	var topics []string
	for _, d := range r.due {
		if byTopic[d.Topic] == nil {
			topics = append(topics, d.Topic)
		}
		byTopic[d.Topic] = append(byTopic[d.Topic], d)
	}
	if topics == nil {
		return nil
	}
	return []*delivery{anyOf(byTopic[anyOf(topics)])}
}

// anyOf returns any one of some things, of which there is at least one.
func anyOf[T any](all []T) T {
	return all[rand.IntN(len(all))] //nolint:gosec // nobody gains by guessing it
}

// rowSource is how a lane gets at its parked rows.
type rowSource struct {
	parked parkedReader
	// address gives an event's topic and key. The goroutine that reads calls it, one at a time.
	address func(*outbox.Event) (topic, key string)
	// What committed before seenBefore may have been sent by an earlier session; see unsent.go.
	seenBefore pglogrepl.LSN
}

// addressOf returns a function that gives an event's topic and key at a sink: those of the route that leads there, else the sink's
// own.
func addressOf(r *router.Router, own router.Sink) func(*outbox.Event) (string, string) {
	var targets []router.Target
	return func(e *outbox.Event) (string, string) {
		targets = r.Route(e, targets[:0])
		for _, t := range targets {
			if t.Processor == own.Processor {
				return t.Topic, t.Key
			}
		}
		return own.Topic.Expand(e), own.Key.Expand(e)
	}
}
