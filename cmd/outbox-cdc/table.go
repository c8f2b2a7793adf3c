package main

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/pyairtable-compose/outbox-cdc/admin"
)

// tableText prints rows as aligned columns below the head. Empty cells become "-".
func tableText(head string, rows [][]string) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, strings.Join(strings.Fields(head), "\t"))
	for _, row := range rows {
		for i := range row {
			if row[i] = clean(row[i]); row[i] == "" {
				row[i] = "-"
			}
		}
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	_ = w.Flush() // cannot fail: it writes into memory
	return b.String()
}

// clean replaces control characters, which a terminal would obey. Error messages contain what a receiver has answered,
// and events contain whatever somebody wrote.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			if unicode.IsSpace(r) {
				return ' '
			}
			return '�'
		}
		return r
	}, s)
}

// shorten cuts a text to this many characters. The last one is then an ellipsis.
func shorten(s string, longest int) string {
	if r := []rune(s); len(r) > longest {
		return string(r[:longest-1]) + "…"
	}
	return s
}

const (
	// errorWidth is how many characters of an error message a list shows.
	errorWidth = 60
	// wholeError is for what shows one event, with all that its destination has answered.
	wholeError = math.MaxInt
)

func timeText(t *time.Time) string {
	if t == nil {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04:05")
}

func aggregateText(typ, id string) string {
	if typ == "" && id == "" {
		return ""
	}
	return typ + "/" + id
}

// nextText says how to get the next page.
func nextText(next string) string {
	if next == "" {
		return ""
	}
	return "more: --after " + next + "\n"
}

// deadTable lists dead letters.
func deadTable(letters []*admin.ParkedRow) string {
	var rows [][]string
	for _, p := range letters {
		e := p.Event
		rows = append(rows, []string{
			e.ID, p.Sink, e.EventType, aggregateText(e.AggregateType, e.AggregateID), timeText(&p.ParkedAt),
			fmt.Sprintf("%d/%d", p.Attempts, p.Tries), shorten(p.Error, errorWidth),
		})
	}
	return tableText("EVENT SINK TYPE AGGREGATE PARKED ATTEMPTS/TRIES ERROR", rows)
}

// parkedTable lists parked events, and what they wait for.
func parkedTable(parked []*admin.ParkedRow) string {
	var rows [][]string
	for _, p := range parked {
		e := p.Event
		rows = append(rows, []string{
			e.ID, p.Sink, e.EventType, aggregateText(e.AggregateType, e.AggregateID), timeText(&p.ParkedAt),
			fmt.Sprintf("%d/%d", p.Attempts, p.Tries), timeText(p.WaitsUntil), p.Waits, shorten(p.Error, errorWidth),
		})
	}
	return tableText("EVENT SINK TYPE AGGREGATE PARKED ATTEMPTS/TRIES UNTIL WAITS-FOR ERROR", rows)
}

// triesTable lists tries. Of each error it shows the first characters, as many as longest says.
func triesTable(tries []admin.Try, longest int) string {
	var rows [][]string
	for _, t := range tries {
		duration := ""
		if t.DurationMS != nil {
			duration = fmt.Sprintf("%.0f ms", *t.DurationMS)
		}
		sink := t.Sink
		if t.Member != "" {
			sink += "/" + t.Member
		}
		rows = append(rows, []string{t.EventID, sink, t.Status, fmt.Sprint(t.Attempt), timeText(&t.CompletedAt), duration, shorten(t.Error, longest)})
	}
	return tableText("EVENT SINK STATUS TRY AT TOOK ERROR", rows)
}

func eventsTable(events []admin.Event) string {
	var rows [][]string
	for _, e := range events {
		created := ""
		if !e.CreatedAt.IsZero() {
			created = timeText(&e.CreatedAt)
		}
		rows = append(rows, []string{
			e.ID, e.EventType, aggregateText(e.AggregateType, e.AggregateID), created, e.Status, timeText(e.ProcessedAt),
			fmt.Sprint(e.Retries), shorten(e.Error, errorWidth),
		})
	}
	return tableText("EVENT TYPE AGGREGATE CREATED STATUS PROCESSED RETRIES ERROR", rows)
}

// details collects lines of a name and a value. It leaves out empty values.
type details struct{ strings.Builder }

func (d *details) line(name, value string) {
	if value != "" {
		fmt.Fprintf(d, "%-16s%s\n", name+":", clean(value))
	}
}

// parkedDetails prints all that is known of one parked event or dead letter.
func parkedDetails(p *admin.ParkedRow) string {
	var d details
	e := p.Event
	d.line("event", e.ID)
	d.line("sink", p.Sink)
	d.line("status", p.Status)
	d.line("waits for", p.Waits)
	d.line("error", p.Error)
	d.line("attempts", fmt.Sprintf("%d refused, of %d tries", p.Attempts, p.Tries))
	d.line("parked", timeText(&p.ParkedAt))
	d.line("first try", timeText(p.FirstTry))
	d.line("next attempt", timeText(p.NextAttempt))
	d.line("type", e.EventType)
	if e.EventVersion != 0 {
		d.line("version", fmt.Sprint(e.EventVersion))
	}
	d.line("aggregate", aggregateText(e.AggregateType, e.AggregateID))
	d.line("tenant", e.TenantID)
	d.line("correlation id", e.CorrelationID)
	d.line("causation id", e.CausationID)
	d.line("created", timeText(e.CreatedAt))
	d.line("committed", timeText(e.CommittedAt))
	d.line("position", p.Position)
	d.line("metadata", string(e.Metadata))
	if e.MetadataText != nil {
		d.line("metadata", *e.MetadataText)
	}
	switch {
	case p.Payload != nil:
		d.line("payload", string(p.Payload))
	case p.PayloadBase64 != nil:
		text, err := json.Marshal(p.PayloadBase64)
		if err != nil {
			panic(err) // cannot happen: JSON can hold any bytes
		}
		d.line("payload, base64", strings.Trim(string(text), `"`))
	}
	return d.String()
}
