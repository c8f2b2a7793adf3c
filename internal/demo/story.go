package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
)

// story tells a person about one outage: what breaks, how the connector reacts, and that nothing was lost.
type story struct {
	*demo
	act
	began    time.Time
	repeated int // arrivals, when it began
	unmended error

	conn    *pgx.Conn // nil while PostgreSQL is away
	state   string    // as last told
	waiting int       // as last told
	counted time.Time
}

func (s *story) title(text string) {
	s.say("%s %s", s.paint(yellow, "~~"), s.paint(yellow, fit(text, s.columns()-len("~~ "))))
}

// line tells what has happened, with the seconds since the story began.
func (s *story) line(i ink, format string, args ...any) {
	text := fit(fmt.Sprintf(format, args...), s.lineWidth())
	s.say("%s %4.1f s  %s", s.paint(yellow, "~~"), time.Since(s.began).Seconds(), s.paint(i, text))
}

// lineWidth is how long the text of a line may be.
func (s *story) lineWidth() int { return s.columns() - len("~~ 99.9 s  ") }

// watch tells what changes, until ctx ends.
func (s *story) watch(ctx context.Context) {
	for pause(ctx, chaosLook) {
		s.look(ctx)
	}
}

// complete waits until the outage has shown all of its effects, and then tells how many events wait. On a busy machine this may take longer
// than Options.Outage: the breaker of the sink has to open, and the shop has to write an event that can wait.
func (s *story) complete(ctx context.Context) {
	for !s.isComplete() && pause(ctx, chaosLook) {
		s.look(ctx)
		if s.waiting == 0 {
			s.count(ctx)
		}
	}
	s.count(ctx)
}

func (s *story) isComplete() bool {
	switch {
	case s.Rate == 0: // nothing may happen at all
		return true
	case s.stopsShop:
		return s.state != ""
	}
	return s.waiting > 0 && (s.sink == "" || s.state == leftAlone(s.sink))
}

// leftAlone is what a person is told of a sink whose breaker is open.
func leftAlone(sink string) string {
	return sink + " is left alone: its breaker is open, one event asks every 2 s"
}

// look tells what has changed. Errors are ignored and the question is asked again at the next look, because the connector or the
// PostgreSQL that should answer may be the one that was killed.
func (s *story) look(ctx context.Context) {
	if state, why, err := s.readState(ctx); err == nil && state != s.state {
		if state != "" {
			s.line(plain, "%s", state+cause(why, s.lineWidth()-utf8.RuneCountInString(state)))
		}
		s.state = state
	}
	if time.Since(s.counted) > chaosTell {
		s.count(ctx)
	}
}

// count tells how many events wait.
func (s *story) count(ctx context.Context) {
	s.counted = time.Now()
	waiting, err := s.readWaiting(ctx)
	if err != nil || waiting <= s.waiting {
		return
	}
	s.waiting = waiting
	where := "in the write-ahead log, which the slot keeps"
	if s.sink != "" {
		where = "parked in PostgreSQL, in order; the slot moves on"
	}
	wait := "wait"
	if waiting == 1 {
		wait = "waits"
	}
	s.line(plain, "%d %s, %s", waiting, wait, where)
}

// catchUp waits until everything that was committed in the meantime has arrived everywhere.
func (s *story) catchUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, s.Outage+chaosCatchUp, errors.New("it does not catch up"))
	defer cancel()
	var owed []string
	for {
		err := s.query(ctx, func(conn *pgx.Conn) error {
			rows, err := conn.Query(ctx, "select id::text from event_outbox where created_at > $1", s.began.Add(-transactionTimeout))
			if err != nil {
				return err
			}
			owed, err = pgx.CollectRows(rows, pgx.RowTo[string])
			return err
		})
		if err == nil {
			break
		}
		if !pause(ctx, chaosLook) {
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
	}
	for {
		redis, webhooks, err := s.others.arrived(owed)
		if err != nil {
			return err
		}
		missing := s.arrivals.missing(owed) + 2*len(owed) - redis - webhooks
		if missing == 0 {
			break
		}
		if !pause(ctx, chaosLook) {
			return fmt.Errorf("%w: %d missing", context.Cause(ctx), missing)
		}
	}
	twice := ""
	if n := s.arrivals.again() - s.repeated; n > 0 {
		twice = fmt.Sprintf("; %d came twice, with the same id", n)
	}
	s.line(green, "caught up, nothing missing%s", twice)
	return nil
}

// readState says what /readyz tells of the outage, and why: "" if all is well. The reason changes often, and is told once.
func (s *story) readState(ctx context.Context) (state, why string, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.connector.http+"/readyz", nil)
	if err != nil {
		return "", "", err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", "", err
	}
	defer response.Body.Close()
	var report struct {
		Components map[string]struct {
			Status string `json:"status"`
			Detail string `json:"detail"`
		} `json:"components"`
	}
	if err := json.NewDecoder(response.Body).Decode(&report); err != nil {
		return "", "", err
	}
	for _, name := range slices.Sorted(maps.Keys(report.Components)) {
		c := report.Components[name]
		sink, isSink := strings.CutPrefix(name, "sink:")
		switch {
		case c.Status == "ok" || isSink && sink != s.sink || !isSink && s.sink != "":
		case strings.HasPrefix(c.Detail, "left alone"):
			return leftAlone(sink), "", nil
		case isSink:
			return sink + " refuses: ", c.Detail, nil
		default:
			return fmt.Sprintf("/readyz says %s, %s: ", c.Status, name), c.Detail, nil
		}
	}
	return "", "", nil
}

// cause shortens an error's text to columns. It keeps the end, which has the reason; the beginning says where in the connector the
// error occurred.
func cause(text string, columns int) string {
	text, _, _ = strings.Cut(strings.TrimPrefix(text, "unavailable: "), "; ") // how many events are parked is told by lines of its own
	for utf8.RuneCountInString(text) > columns {
		_, end, more := strings.Cut(text, ": ")
		if !more {
			break
		}
		text = end
	}
	return fit(text, max(columns, 0))
}

// readWaiting counts the events that were committed and have not been delivered: parked for the sink that is away, or, while
// the connector is away, in the WAL.
func (s *story) readWaiting(ctx context.Context) (n int, err error) {
	text, args := `select count(*) from outbox_parked k join outbox_processors p on p.id = k.processor_id
		where p.processor_name = $1 and k.status = 'parked'`, []any{s.sink}
	if s.sink == "" {
		text, args = `select count(*) from event_outbox e where created_at > $1
			and not exists (select from outbox_delivery_log l where l.event_id = e.id)`, []any{s.began.Add(-time.Second)}
	}
	err = s.query(ctx, func(conn *pgx.Conn) error { return conn.QueryRow(ctx, text, args...).Scan(&n) })
	return n, err
}

// query runs do with a connection, which it makes when there is none.
func (s *story) query(ctx context.Context, do func(*pgx.Conn) error) (err error) {
	if s.conn == nil || s.conn.IsClosed() {
		if s.conn, err = pgx.Connect(ctx, s.dsn()); err != nil {
			s.conn = nil
			return err
		}
	}
	return do(s.conn)
}

func (s *story) disconnect(work context.Context) {
	if s.conn != nil {
		_ = s.conn.Close(work) // an error does not matter: nothing is asked any more
	}
}
