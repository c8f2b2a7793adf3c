package admin

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// EventStatuses are what Events can be asked for. "" is all of the outbox.
var EventStatuses = []string{"parked", "dead", "failed", "discarded", "delivered", "pending"}

// recent is how far back the outbox is looked at by default: what became of an event is looked up one by one.
const recent = time.Hour

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

// Event is a row of the outbox with what became of it, over all sinks: the worst one wins.
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
	Status string
	Filter Filter
	Limit  int    // at least 1
	After  string // Next of the page before
}

// EventsPage is a part of a list. One of the three is set: rows that wait or are dead, tries, or events of the outbox.
type EventsPage struct {
	Parked []*Parked `json:"parked,omitzero"`
	Tries  []Try     `json:"tries,omitzero"`
	Events []Event   `json:"events,omitzero"`
	// Next goes into After; "" at the end.
	Next string `json:"next,omitempty"`
}

// Events lists events by what became of them: parked and dead from outbox_parked in order of sink and position, failed and discarded
// from the log and the others from the outbox, both the newest first. Of the outbox it is those of the last hour unless Since
// or ids say otherwise.
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

func (l *ledgerConn) listParked(ctx context.Context, q EventsQuery, page *EventsPage) error {
	after, err := parseCursor(q.After)
	if err != nil {
		return err
	}
	processors, err := l.named(q.Filter.Sinks)
	if err != nil {
		return err
	}
	page.Parked = []*Parked{}
	err = l.each(ctx, parkedQuery{status: q.Status, filter: q.Filter, processors: processors, after: after}, func(p *Parked) (bool, error) {
		if len(page.Parked) == q.Limit {
			page.Next = cursor(page.Parked[q.Limit-1].key)
			return false, nil
		}
		p.Event.Metadata, p.Event.MetadataText = nil, nil
		page.Parked = append(page.Parked, p)
		return true, nil
	})
	if err != nil {
		return err
	}
	return l.behind(ctx, page.Parked)
}

const tryColumns = `coalesce(event_id::text, ''), processor_id, status, attempt_number, completed_at, duration_ms::float8, coalesce(error_message, ''),
	concat(commit_lsn, ':', tx_index), id`

func (l *ledgerConn) scanTry(row pgx.CollectableRow) (t Try, err error) {
	var processor int32
	err = row.Scan(&t.EventID, &processor, &t.Status, &t.Attempt, &t.CompletedAt, &t.DurationMS, &t.Error, &t.Position, &t.id)
	t.Sink = l.name(processor)
	return t, err
}

func (l *ledgerConn) listTries(ctx context.Context, q EventsQuery, page *EventsPage) error {
	f := q.Filter
	if f.Type != "" || f.Aggregate != "" || f.Tenant != "" {
		return fmt.Errorf("the log has no type, aggregate or tenant to look for %s events by; name their ids", q.Status)
	}
	processors, err := l.named(f.Sinks)
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

// tries are the log's rows of an event, the last one first.
func (l *ledgerConn) tries(ctx context.Context, id string, processors []int32, limit int) ([]Try, error) {
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
		if f.Since, err = l.since(ctx, recent); err != nil {
			return fmt.Errorf("ask for the time: %w", err)
		}
	}
	page.Events = []Event{}
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

// EventDetails are all that is known of one event.
type EventDetails struct {
	// Event is its row of the outbox; nil where that is gone, or in a table of the user's own, or the login may not read the view.
	Event *Event `json:"event,omitempty"`
	// Parked are what sinks are owed of it, or have given up on.
	Parked []*Parked `json:"parked"`
	// Log are the newest tries, the last one first.
	Log []Try `json:"log"`
}

// ShowEvent gives all that is known of one event. One of which nothing is known is an error.
func ShowEvent(ctx context.Context, c Config, id string, payload bool) (d EventDetails, err error) {
	d.Parked, d.Log = []*Parked{}, []Try{}
	err = withLedger(ctx, c, func(l *ledgerConn) error {
		if err := l.checkIDs([]string{id}); err != nil {
			return err
		}
		processors, err := l.named(nil)
		if err != nil {
			return err
		}
		for _, status := range []string{"parked", "dead"} {
			err := l.each(ctx, parkedQuery{status: status, filter: Filter{IDs: []string{id}}, processors: processors, payload: payload}, func(p *Parked) (bool, error) {
				d.Parked = append(d.Parked, p)
				return true, nil
			})
			if err != nil {
				return err
			}
		}
		if err := l.behind(ctx, d.Parked); err != nil {
			return err
		}
		if d.Log, err = l.tries(ctx, id, processors, 100); err != nil {
			return err
		}
		if !c.Source.Mapped() {
			if d.Event, err = l.event(ctx, id); err != nil && sqlState(err) != "42501" {
				return err
			}
		}
		if d.Event == nil && len(d.Parked)+len(d.Log) == 0 {
			return fmt.Errorf("nothing is known of event %s: neither the outbox nor the ledger has it", id)
		}
		return nil
	})
	return d, err
}

func (l *ledgerConn) event(ctx context.Context, id string) (*Event, error) {
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

func timeCursor(t time.Time, id string) string { return t.UTC().Format(time.RFC3339Nano) + "," + id }

func parseTimeCursor(s, example string, isID func(string) bool) (t time.Time, id string, err error) {
	if s == "" {
		return t, "0", nil
	}
	text, id, _ := strings.Cut(s, ",")
	if t, err = time.Parse(time.RFC3339Nano, text); err != nil || t.IsZero() || !isID(id) {
		return t, "", badCursor(s, "2026-01-31T12:00:00.5Z,"+example)
	}
	return t, id, nil
}

func sqlState(err error) string {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pg.Code
	}
	return ""
}
