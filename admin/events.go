package admin

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
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
	Position    string    `json:"position"`

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
			page.Next = keyCursor(page.Parked[q.Limit-1].key)
			return false, nil
		}
		p.Event.Metadata, p.Event.MetadataText = nil, nil
		page.Parked = append(page.Parked, p)
		return true, nil
	})
	if err != nil {
		return err
	}
	return l.findHolders(ctx, page.Parked)
}

const tryColumns = `coalesce(event_id::text, ''), processor_id, status, attempt_number, completed_at, duration_ms::float8, coalesce(error_message, ''),
	concat(commit_lsn, ':', tx_index), id`

func (l *ledgerConn) scanTry(row pgx.CollectableRow) (t Try, err error) {
	var processor int32
	err = row.Scan(&t.EventID, &processor, &t.Status, &t.Attempt, &t.CompletedAt, &t.DurationMS, &t.Error, &t.Position, &t.id)
	t.Sink = l.sinkName(processor)
	return t, err
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
	args := []any{processors, q.Status, timeOrNull(f.Since), timeOrNull(f.Until), f.Error, timeOrNull(at), id, q.Limit + 1}
	byID := ""
	if len(f.IDs) > 0 {
		byID = "and event_id = any ($9::" + l.idType() + "[])"
		args = append(args, f.IDs)
	}
	rows, err := l.conn.Query(ctx, l.sql(`select `+tryColumns+` from ledger.outbox_delivery_log
		where processor_id = any ($1) and status = $2 and status <> 'delivered'
			and completed_at >= coalesce($3::timestamptz, '-infinity') and completed_at < coalesce($4::timestamptz, 'infinity')
			and ($5 = '' or position(lower($5) in lower(error_message)) > 0)
			and ($6::timestamptz is null or (completed_at, id) < ($6, $7::text::bigint)) `+byID+`
		order by completed_at desc, id desc limit $8`), args...)
	if err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	if page.Tries, err = pgx.CollectRows(rows, l.scanTry); err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	if len(page.Tries) > q.Limit {
		page.Tries = page.Tries[:q.Limit]
		last := page.Tries[q.Limit-1]
		page.Next = timeCursor(last.CompletedAt, fmt.Sprint(last.id))
	}
	return nil
}

// triesOf returns the newest tries of an event, the newest first.
func (l *ledgerConn) triesOf(ctx context.Context, id string, processors []int32, limit int) ([]Try, error) {
	rows, err := l.conn.Query(ctx, l.sql(`select `+tryColumns+` from ledger.outbox_delivery_log where event_id = $1::text::`+l.idType()+` and processor_id = any ($2)
		order by completed_at desc, id desc limit $3`), id, processors, limit)
	if err != nil {
		return nil, fmt.Errorf("read the log: %w", err)
	}
	all, err := pgx.CollectRows(rows, l.scanTry)
	if err != nil {
		return nil, fmt.Errorf("read the log: %w", err)
	}
	return all, nil
}

const eventColumns = `id::text, aggregate_type, aggregate_id, event_type, coalesce(tenant_id, ''), created_at, status, processed_at,
	coalesce(retry_count, 0), case when isfinite(next_retry_at) then next_retry_at end, coalesce(error_message, '')`

func scanEvent(row pgx.CollectableRow) (e Event, err error) {
	err = row.Scan(&e.ID, &e.AggregateType, &e.AggregateID, &e.EventType, &e.TenantID, &e.CreatedAt, &e.Status, &e.ProcessedAt, &e.Retries, &e.NextRetryAt, &e.Error)
	return e, err
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
		rows, err := l.eventRows(ctx, q, f, at, id)
		if err != nil {
			return fmt.Errorf("read event_outbox_status: %w", err)
		}
		for _, e := range rows {
			if len(page.Events) == q.Limit {
				last := page.Events[q.Limit-1]
				page.Next = timeCursor(last.CreatedAt, last.ID)
				return nil
			}
			if f.matches(e.EventType, e.AggregateType, e.AggregateID, e.TenantID) {
				page.Events = append(page.Events, e)
			}
			at, id = e.CreatedAt, e.ID
		}
		if len(rows) <= q.Limit {
			return nil
		}
	}
}

// eventRows reads rows of the view that come after the time at and the id, one more than a page has.
func (l *ledgerConn) eventRows(ctx context.Context, q EventsQuery, f Filter, at time.Time, id string) ([]Event, error) {
	args := []any{q.Status, timeOrNull(f.Since), timeOrNull(f.Until), q.Limit + 1}
	more := ""
	if !at.IsZero() {
		args = append(args, at, id)
		more += " and (created_at, id) < ($5, $6::text::uuid)"
	}
	if len(f.IDs) > 0 {
		args = append(args, f.IDs)
		more += fmt.Sprintf(" and id = any ($%d::uuid[])", len(args))
	}
	rows, err := l.conn.Query(ctx, l.sql(`select `+eventColumns+` from ledger.event_outbox_status
		where ($1 = '' or status = $1) and created_at >= coalesce($2::timestamptz, '-infinity') and created_at < coalesce($3::timestamptz, 'infinity')`+more+`
		order by created_at desc, id desc limit $4`), args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, scanEvent)
}

// EventDetails is all that outbox and ledger know of one event.
type EventDetails struct {
	// Event is the event's row of the outbox. It is nil if the row is gone, if the outbox is a table of the user's own, or if the
	// login may not read the view event_outbox_status.
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
		if err := l.findHolders(ctx, d.Parked); err != nil {
			return err
		}
		if d.Log, err = l.triesOf(ctx, q.ID, processors, 100); err != nil {
			return err
		}
		if !c.Source.Mapped() {
			if d.Event, err = l.outboxEvent(ctx, q.ID); err != nil && sqlState(err) != "42501" {
				return err
			}
		}
		if d.Event == nil && len(d.Parked)+len(d.Log) == 0 {
			return fmt.Errorf("nothing is known of event %s: neither the outbox nor the ledger has it", q.ID)
		}
		return nil
	})
	return d, err
}

// outboxEvent returns nil if the outbox has no row with this id.
func (l *ledgerConn) outboxEvent(ctx context.Context, id string) (*Event, error) {
	rows, err := l.conn.Query(ctx, l.sql("select "+eventColumns+" from ledger.event_outbox_status where id = $1::text::uuid"), id)
	if err != nil {
		return nil, fmt.Errorf("read event_outbox_status: %w", err)
	}
	found, err := pgx.CollectRows(rows, scanEvent)
	if err != nil {
		return nil, fmt.Errorf("read event_outbox_status: %w", err)
	}
	if len(found) == 0 {
		return nil, nil
	}
	return &found[0], nil
}

// sqlState returns the SQLSTATE of an error of the server, or "".
func sqlState(err error) string {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pg.Code
	}
	return ""
}
