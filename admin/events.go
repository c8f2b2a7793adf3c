package admin

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// EventStatuses are the values of EventsQuery.Status, which may also be empty.
var EventStatuses = []string{"parked", "dead", "failed", "discarded", "delivered", "pending"}

// recentEvents is how far back Events reads the outbox by default. What became of each event is looked up one by one, so reading all
// of the outbox would take long.
const recentEvents = time.Hour

// mappedPatience bounds each read of a mapped table, which may be large and lack an index.
const mappedPatience = 30 * time.Second

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
	CreatedAt     time.Time  `json:"created_at,omitzero"` // zero if the outbox does not have it
	Status        string     `json:"status"`              // dead, parked, pending, delivered, discarded
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
//   - delivered, pending and "": events of the outbox, the newest first. Without Since and IDs, only those of the last hour. If the
//     outbox is a mapped table without created_at, and if IDs are named for a mapped table, they are in the order of their ids, the
//     highest first.
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

// eventReader is the view event_outbox_status or a mapped table.
type eventReader interface {
	ReadEvents(ctx context.Context, q ledger.EventQuery) ([]ledger.EventStatus, error)
	ReadEvent(ctx context.Context, id string) (*ledger.EventStatus, error)
}

// openMapped looks at the table that source.table names.
func (l *ledgerConn) openMapped(ctx context.Context) (*ledger.MappedOutbox, error) {
	table := l.cfg.Source.OutboxTable()
	table.Patience = mappedPatience
	return l.OpenOutbox(ctx, table)
}

// eventList is how the events of an outbox are listed.
type eventList struct {
	events eventReader
	byTime bool // else by id
	isID   func(string) bool
}

// openList decides how the events that f selects are listed.
func (l *ledgerConn) openList(ctx context.Context, f Filter) (eventList, error) {
	if !l.cfg.Source.Mapped() {
		return eventList{l, true, isUUID}, nil
	}
	mapped, err := l.openMapped(ctx)
	switch {
	case errors.Is(err, ledger.ErrOutboxTable):
		return eventList{}, exitcode.Errorf(exitcode.Config, "%w", err)
	case err != nil:
		return eventList{}, err
	case !mapped.Timed() && !(f.Since.IsZero() && f.Until.IsZero()):
		return eventList{}, fmt.Errorf("events of %s cannot be listed by time: source.columns names no created_at", l.cfg.Source.Table)
	}
	isID := mapped.TakesID
	if l.UUIDs {
		isID = isUUID
	}
	return eventList{mapped, mapped.Timed() && len(f.IDs) == 0, isID}, nil
}

// cursor is EventsPage.Next of a page that ends with e.
func (e eventList) cursor(last *Event) string {
	if e.byTime {
		return timeCursor(last.CreatedAt, last.ID)
	}
	return last.ID
}

// parse reads what cursor wrote.
func (e eventList) parse(after, example string) (at time.Time, id string, err error) {
	if e.byTime {
		return parseTimeCursor(after, example, e.isID)
	}
	if after != "" && !e.isID(after) {
		return at, "", badCursor(after, example)
	}
	return at, after, nil
}

// listEvents reads the outbox.
func (l *ledgerConn) listEvents(ctx context.Context, q EventsQuery, page *EventsPage) error {
	f := q.Filter
	if len(f.Sinks) > 0 || f.Error != "" {
		return errors.New("events of the outbox are listed over all sinks; sink and error are for the status parked, dead, failed and discarded")
	}
	list, err := l.openList(ctx, f)
	if err != nil {
		return err
	}
	example := exampleID
	if !list.isID(example) {
		example = "4711"
	}
	at, id, err := list.parse(q.After, example)
	if err != nil {
		return err
	}
	if list.byTime && f.Since.IsZero() && len(f.IDs) == 0 {
		if f.Since, err = l.timeBefore(ctx, recentEvents); err != nil {
			return fmt.Errorf("ask for the time: %w", err)
		}
	}
	page.Events = []Event{}
	// The statement cannot select by type, aggregate and tenant, so one page of the list may take several reads.
	for {
		rows, err := list.events.ReadEvents(ctx, ledger.EventQuery{
			Status: q.Status, Since: f.Since, Until: f.Until, IDs: f.IDs, Before: at, BeforeID: id, Limit: q.Limit + 1,
		})
		if err != nil {
			return err
		}
		for i := range rows {
			e := eventOf(&rows[i])
			if len(page.Events) == q.Limit {
				page.Next = list.cursor(&page.Events[q.Limit-1])
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
	// Event is the event's row of the outbox. It is nil if the row is gone, or could not be read.
	Event *Event `json:"event,omitempty"`
	// EventError says why the outbox could not be read: the login may lack the right to, or a mapped table may take too long.
	EventError string `json:"event_error,omitempty"`
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
		event, err := l.readOne(ctx, q.ID)
		switch {
		case event != nil:
			d.Event = new(eventOf(event))
		case err != nil && (l.conn.IsClosed() || len(d.Parked)+len(d.Log) == 0):
			return err
		case err != nil:
			d.EventError = ledgerError(err).Error()
		case len(d.Parked)+len(d.Log) == 0:
			return fmt.Errorf("nothing is known of event %s: neither the outbox nor the ledger has it", q.ID)
		}
		return nil
	})
	return d, err
}

// readOne returns the event's row of the outbox, or nil if there is none.
func (l *ledgerConn) readOne(ctx context.Context, id string) (*ledger.EventStatus, error) {
	list, err := l.openList(ctx, Filter{IDs: []string{id}})
	if err != nil {
		return nil, err
	}
	return list.events.ReadEvent(ctx, id)
}
