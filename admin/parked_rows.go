package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// ParkedRow is a row of outbox_parked: an event that the connector owes to a sink, or that it has given up on. The latter is
// called a dead letter.
type ParkedRow struct {
	Sink string `json:"sink"`
	// Position is LSN:index. Rows of an aggregate are delivered in this order.
	Position string `json:"position"`
	Status   string `json:"status"` // parked or dead
	// Event is the event without its payload.
	Event    ledger.StoredEvent `json:"event"`
	Attempts int                `json:"attempts"` // tries that the sink has refused
	Tries    int                `json:"tries"`    // all tries, also those that found the sink away
	ParkedAt time.Time          `json:"parked_at"`
	FirstTry *time.Time         `json:"first_try_at,omitempty"`
	// NextAttempt is when the row is due. It is nil if the row is due already or was never tried, and for a dead letter.
	NextAttempt *time.Time `json:"next_attempt_at,omitempty"`
	// Blocks says that this dead letter holds its aggregate until a person acts.
	Blocks bool   `json:"blocks,omitempty"`
	Error  string `json:"error,omitempty"`
	Replay bool   `json:"replay,omitempty"`
	// WaitsFor says what the row waits for, and Waits says it in words. WaitsUntil is until when, if that is known; it is never in the
	// past. Behind is the event that the row waits behind, if any. Dead letters have these only if they hold their aggregate.
	WaitsFor   WaitsFor   `json:"waits_for,omitempty"`
	WaitsUntil *time.Time `json:"waits_until,omitempty"`
	Waits      string     `json:"waits,omitempty"`
	Behind     string     `json:"behind,omitempty"`
	// Payload is set if the payload was asked for and is JSON. A payload that is not JSON is in PayloadBase64.
	Payload       json.RawMessage `json:"payload,omitempty"`
	PayloadBase64 []byte          `json:"payload_base64,omitempty"`

	details *ledger.ParkedRow // without event and payload
}

// key names the row.
func (p *ParkedRow) key() checkpoint.Key { return p.details.Key }

// How many rows one statement reads. A single payload may have megabytes, so a page with payloads is small.
const (
	pageRows        = 500
	pagePayloadRows = 20
)

// parkedQuery selects rows of outbox_parked.
type parkedQuery struct {
	status     string // parked or dead
	filter     Filter
	processors []int32
	after      checkpoint.Key // only rows after this key; the zero key selects all
	payload    bool           // read the payloads as well
}

// eachParkedRow calls f with the rows that q selects, in the order of processor and position, until f returns false. It reads
// the rows in pages, and holds no transaction and no cursor open between two pages, so f may take its time.
func (l *ledgerConn) eachParkedRow(ctx context.Context, q parkedQuery, f func(*ParkedRow) (more bool, err error)) error {
	if err := l.checkIDs(q.filter.IDs); err != nil {
		return err
	}
	rows := pageRows
	if q.payload {
		rows = pagePayloadRows
	}
	for _, id := range q.processors {
		from := checkpoint.MinPosition
		switch {
		case id < q.after.Processor:
			continue
		case id == q.after.Processor && q.after != checkpoint.Key{}:
			from = q.after.Position
		}
		for {
			page, err := l.ReadParkedPage(ctx, ledger.ParkedPageQuery{
				Processor: id, After: from, Status: q.status, Since: q.filter.Since, Until: q.filter.Until, Error: q.filter.Error, IDs: q.filter.IDs,
				WithPayload: q.payload, Limit: rows,
			})
			if err != nil {
				return err
			}
			for _, d := range page {
				if !q.filter.matches(d.Event.EventType, d.Event.AggregateType, d.Event.AggregateID, d.Event.TenantID) {
					continue
				}
				if more, err := f(l.shown(d)); err != nil || !more {
					return err
				}
			}
			if len(page) < rows {
				break
			}
			from = page[len(page)-1].Key.Position
		}
	}
	return nil
}

// shown returns a row of the ledger as people see it.
func (l *ledgerConn) shown(d *ledger.ParkedRow) *ParkedRow {
	p := &ParkedRow{
		Sink: l.sinkName(d.Key.Processor), Position: fmt.Sprintf("%s:%d", d.Key.Position.LSN, d.Key.Position.Index), Status: d.Status,
		Event: d.Event, Attempts: d.Attempts, Tries: d.Tries, ParkedAt: d.ParkedAt, FirstTry: d.TriedAt, NextAttempt: d.NextAttempt,
		Blocks: d.Blocks, Error: d.Error, Replay: d.Replay, details: d,
	}
	switch {
	case json.Valid(d.Payload):
		p.Payload = d.Payload
	case d.Payload != nil:
		p.PayloadBase64 = d.Payload
	}
	d.Event, d.Payload = ledger.StoredEvent{}, nil // p has them; a list takes the metadata away, and must not keep it in memory
	if p.NextAttempt != nil && !p.NextAttempt.After(d.Now) {
		p.NextAttempt = nil
	}
	if p.Blocks {
		p.WaitsFor, p.Waits = WaitsForPerson, "dead; its aggregate waits for a person"
	}
	return p
}
