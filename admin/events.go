package admin

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// EventStatuses are the values of EventsQuery.Status, which may also be empty.
var EventStatuses = []string{"parked", "dead", "failed", "discarded", "delivered", "pending"}

// recentEvents is how far back Events reads the outbox by default. The view event_outbox_status looks up one by one what
// became of each event, so reading all of the outbox would take long.
const recentEvents = time.Hour

// Try is a row of outbox_delivery_log.
type Try struct {
	EventID     string    `json:"event_id,omitempty"`
	Sink        string    `json:"sink"`
	Status      string    `json:"status"` // delivered, failed, dead, discarded
	Attempt     int       `json:"attempt"`
	CompletedAt time.Time `json:"completed_at"`
	DurationMS  *float64  `json:"duration_ms,omitempty"`
	Error       string    `json:"error,omitempty"`
	// Member is the member of a composite sink that accepted the event.
	Member   string `json:"member,omitempty"`
	Position string `json:"position"`

	id int64
}

// Event is a row of the outbox with what became of it. Status is the worst that it has at any sink.
type Event struct {
	ID            string     `json:"id"`
	AggregateType string     `json:"aggregate_type"`
	AggregateID   string     `json:"aggregate_id"`
	EventType     string     `json:"event_type"`
	TenantID      string     `json:"tenant_id,omitempty"`
	CreatedAt     time.Time  `json:"created_at"`
	Status        string     `json:"status"` // dead, parked, pending, delivered, discarded
	ProcessedAt   *time.Time `json:"processed_at,omitempty"`
	Retries       int        `json:"retries"`
	NextRetryAt   *time.Time `json:"next_retry_at,omitempty"`
	Error         string     `json:"error,omitempty"`
	// Members names, by composite sink, the member that accepted the event. Only Events sets it.
	Members map[string]string `json:"members,omitempty"`
}

// EventsQuery says which events to list.
type EventsQuery struct {
	Status string // one of EventStatuses; "" lists all events of the outbox
	Filter Filter
	Limit  int    // of a page, at least 1
	After  string // Next of the page before; "" for the first page
}

// EventsPage is one page of a list. One of Parked, Tries and Events is set, depending on the status that was asked for.
type EventsPage struct {
	Parked []*ParkedRow `json:"parked,omitzero"`
	Tries  []Try        `json:"tries,omitzero"`
	Events []Event      `json:"events,omitzero"`
	// Next is the query's After for the next page. It is empty on the last page.
	Next string `json:"next,omitempty"`
}

// Events lists events by what became of them. The status decides what is listed:
//   - parked and dead: rows of outbox_parked, in the order of sink and position;
//   - failed and discarded: tries of the delivery log, the newest first;
//   - delivered, pending and "": events of the outbox, the newest first. Without Since and IDs, only those of the last hour.
func Events(ctx context.Context, c Config, q EventsQuery) (page EventsPage, err error) {
	err = withLedger(ctx, c, func(l *ledgerConn) error {
		if err := l.checkIDs(q.Filter.IDs); err != nil {
			return err
		}
		switch q.Status {
		case "parked", "dead":
			return l.listParked(ctx, q, &page)
		case "failed", "discarded":
			return l.listTries(ctx, q, &page)
		}
		return l.listEvents(ctx, q, &page)
	})
	return page, err
}

// listParked reads outbox_parked. The list shows no metadata, which may be long.
func (l *ledgerConn) listParked(ctx context.Context, q EventsQuery, page *EventsPage) error {
	after, err := parseKeyCursor(q.After)
	if err != nil {
		return err
	}
	processors, err := l.processorIDs(q.Filter.Sinks)
	if err != nil {
		return err
	}
	page.Parked = []*ParkedRow{}
	err = l.eachParkedRow(ctx, parkedQuery{status: q.Status, filter: q.Filter, processors: processors, after: after}, func(p *ParkedRow) (bool, error) {
		if len(page.Parked) == q.Limit {
			page.Next = keyCursor(page.Parked[q.Limit-1].key())
			return false, nil
		}
		p.Event.Metadata, p.Event.MetadataText = nil, nil
		page.Parked = append(page.Parked, p)
		return true, nil
	})
	if err != nil {
		return err
	}
	return l.explain(ctx, page.Parked)
}

// tries returns rows of the log as people see them.
func (l *ledgerConn) tries(all []ledger.LoggedTry) []Try {
	tries := []Try{}
	for _, t := range all {
		tries = append(tries, Try{
			EventID: t.EventID, Sink: l.sinkName(t.Processor), Status: t.Status, Attempt: t.Attempt, CompletedAt: t.CompletedAt,
			DurationMS: t.DurationMS, Error: t.Error, Member: t.Member, Position: t.Position, id: t.ID,
		})
	}
	return tries
}

// listTries reads the delivery log. Its filter is without type, aggregate and tenant, which the log does not have.
func (l *ledgerConn) listTries(ctx context.Context, q EventsQuery, page *EventsPage) error {
	f := q.Filter
	if f.Type != "" || f.Aggregate != "" || f.Tenant != "" {
		return fmt.Errorf("the log has no type, aggregate or tenant to look for %s events by; name their ids", q.Status)
	}
	processors, err := l.processorIDs(f.Sinks)
	if err != nil {
		return err
	}
	at, id, err := parseTimeCursor(q.After, "4711", func(id string) bool { _, err := strconv.ParseInt(id, 10, 64); return err == nil })
	if err != nil {
		return err
	}
	all, err := l.ReadTries(ctx, ledger.TryQuery{
		Processors: processors, Status: q.Status, Since: f.Since, Until: f.Until, Error: f.Error, IDs: f.IDs, Before: at, BeforeID: id, Limit: q.Limit + 1,
	})
	if err != nil {
		return err
	}
	page.Tries = l.tries(all)
	if len(page.Tries) > q.Limit {
		page.Tries = page.Tries[:q.Limit]
		last := page.Tries[q.Limit-1]
		page.Next = timeCursor(last.CompletedAt, fmt.Sprint(last.id))
	}
	return nil
}

// triesOf returns the newest tries of an event, the newest first.
func (l *ledgerConn) triesOf(ctx context.Context, id string, processors []int32, limit int) ([]Try, error) {
	all, err := l.ReadTriesOf(ctx, id, processors, limit)
	if err != nil {
		return nil, err
	}
	return l.tries(all), nil
}

func eventOf(e *ledger.EventStatus) Event {
	return Event{
		ID: e.ID, AggregateType: e.AggregateType, AggregateID: e.AggregateID, EventType: e.EventType, TenantID: e.TenantID, CreatedAt: e.CreatedAt,
		Status: e.Status, ProcessedAt: e.ProcessedAt, Retries: e.Retries, NextRetryAt: e.NextRetryAt, Error: e.Error,
	}
}

// listEvents reads the view event_outbox_status.
func (l *ledgerConn) listEvents(ctx context.Context, q EventsQuery, page *EventsPage) error {
	f := q.Filter
	switch {
	case l.cfg.Source.Mapped():
		return fmt.Errorf("%s is a table of your own, so there is no view that says what became of its events; list parked, dead, failed or discarded ones, "+
			"or show one by its id", l.cfg.Source.Table)
	case len(f.Sinks) > 0 || f.Error != "":
		return errors.New("events of the outbox are listed over all sinks; sink and error are for the status parked, dead, failed and discarded")
	}
	at, id, err := parseTimeCursor(q.After, exampleID, isUUID)
	if err != nil {
		return err
	}
	if f.Since.IsZero() && len(f.IDs) == 0 {
		if f.Since, err = l.timeBefore(ctx, recentEvents); err != nil {
			return fmt.Errorf("ask for the time: %w", err)
		}
	}
	page.Events = []Event{}
	// The statement cannot select by type, aggregate and tenant, so one page of the list may take several reads.
	for {
		rows, err := l.ReadEvents(ctx, ledger.EventQuery{
			Status: q.Status, Since: f.Since, Until: f.Until, IDs: f.IDs, Before: at, BeforeID: id, Limit: q.Limit + 1,
		})
		if err != nil {
			return err
		}
		for i := range rows {
			e := eventOf(&rows[i])
			if len(page.Events) == q.Limit {
				last := page.Events[q.Limit-1]
				page.Next = timeCursor(last.CreatedAt, last.ID)
				return l.findMembers(ctx, page.Events)
			}
			if f.matches(e.EventType, e.AggregateType, e.AggregateID, e.TenantID) {
				page.Events = append(page.Events, e)
			}
			at, id = e.CreatedAt, e.ID
		}
		if len(rows) <= q.Limit {
			return l.findMembers(ctx, page.Events)
		}
	}
}

// findMembers sets the Members of events.
func (l *ledgerConn) findMembers(ctx context.Context, events []Event) error {
	if len(events) == 0 {
		return nil
	}
	at := make(map[string]*Event, len(events))
	ids := make([]string, 0, len(events))
	for i := range events {
		at[events[i].ID] = &events[i]
		ids = append(ids, events[i].ID)
	}
	all, err := l.ReadTakers(ctx, ids)
	if err != nil {
		return err
	}
	for _, t := range all {
		e := at[t.EventID]
		if e.Members == nil {
			e.Members = map[string]string{}
		}
		e.Members[l.sinkName(t.Processor)] = t.Member
	}
	return nil
}

// EventDetails is all that outbox and ledger know of one event.
type EventDetails struct {
	// Event is the event's row of the outbox. It is nil if the row is gone, if the outbox is a table of the user's own,
	// or if the login may not read the view event_outbox_status.
	Event *Event `json:"event,omitempty"`
	// Parked lists the sinks that are still owed the event, and those that it is a dead letter of.
	Parked []*ParkedRow `json:"parked"`
	// Log holds the newest tries, the newest first.
	Log []Try `json:"log"`
}

// EventDetailsQuery says which event to show.
type EventDetailsQuery struct {
	ID string
	// Payload asks for the payloads of parked rows and dead letters.
	Payload bool
}

// ShowEvent returns all that is known of one event. If nothing is known of it, that is an error.
func ShowEvent(ctx context.Context, c Config, q EventDetailsQuery) (d EventDetails, err error) {
	d.Parked, d.Log = []*ParkedRow{}, []Try{}
	err = withLedger(ctx, c, func(l *ledgerConn) error {
		if err := l.checkIDs([]string{q.ID}); err != nil {
			return err
		}
		processors, err := l.processorIDs(nil)
		if err != nil {
			return err
		}
		for _, status := range []string{"parked", "dead"} {
			rows := parkedQuery{status: status, filter: Filter{IDs: []string{q.ID}}, processors: processors, payload: q.Payload}
			err := l.eachParkedRow(ctx, rows, func(p *ParkedRow) (bool, error) {
				d.Parked = append(d.Parked, p)
				return true, nil
			})
			if err != nil {
				return err
			}
		}
		if err := l.explain(ctx, d.Parked); err != nil {
			return err
		}
		if d.Log, err = l.triesOf(ctx, q.ID, processors, 100); err != nil {
			return err
		}
		if !c.Source.Mapped() {
			event, err := l.ReadEvent(ctx, q.ID)
			if err != nil && sqlState(err) != "42501" {
				return err
			}
			if event != nil {
				d.Event = new(eventOf(event))
			}
		}
		if d.Event == nil && len(d.Parked)+len(d.Log) == 0 {
			return fmt.Errorf("nothing is known of event %s: neither the outbox nor the ledger has it", q.ID)
		}
		return nil
	})
	return d, err
}

// sqlState returns the SQLSTATE of an error of the server, or "".
func sqlState(err error) string {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pg.Code
	}
	return ""
}
