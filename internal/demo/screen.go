package demo

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
	"unicode"
)

// Widest is how many columns the demo uses, however wide the terminal is.
const Widest = 100

// Screen says what the demo's text is shown on.
type Screen struct {
	Colours bool
	Columns func() int // the width of the terminal, which may change; nil if there is no terminal
}

func (s Screen) columns() int {
	if s.Columns == nil {
		return Widest
	}
	return min(s.Columns(), Widest)
}

// ink is how a text looks, as the parameters of ANSI's SGR.
type ink string

const (
	plain  ink = ""
	bold   ink = "1"
	faint  ink = "2"
	red    ink = "1;31"
	green  ink = "1;32"
	yellow ink = "1;33"
	cyan   ink = "36"
)

func (s Screen) paint(i ink, text string) string {
	if !s.Colours || i == plain || text == "" {
		return text
	}
	return "\x1b[" + string(i) + "m" + text + "\x1b[0m"
}

// say prints a line for a person. If it cannot be printed, there is nobody to tell.
func (d *demo) say(format string, args ...any) {
	_, _ = fmt.Fprintf(d.Info, format+"\n", args...)
}

// The columns of an event. The rest of the line is for the payload.
const (
	row      = "%-2s %-8s %8s  %-8s %-8s %-16s %-*s  %s"
	idWidth  = 7 // "…" and the end of an id
	rowWidth = 2 + 1 + 8 + 1 + 8 + 2 + 8 + 1 + 8 + 1 + 16 + 1 + idWidth + 2
)

func (d *demo) heading() string {
	return d.paint(faint, fmt.Sprintf(row, "", "arrived", "after", "topic", "key", "event", idWidth, "id", "payload"))
}

// show prints an event on one line.
func (d *demo) show(a arrival) error {
	if d.JSON {
		return json.NewEncoder(d.Out).Encode(a)
	}
	mark, look := "", plain
	if a.Own {
		mark, look = ">>", green
	}
	text := fmt.Sprintf(row, mark, a.Time.Format(time.TimeOnly), fmt.Sprintf("%d ms", a.Milliseconds),
		fit(strings.TrimPrefix(a.Topic, topics), 8), fit(a.Key, 8), fit(a.EventType, 16), idWidth, shortID(a.ID), "")
	payload := fit(a.Payload, max(0, d.columns()-rowWidth))
	if a.Own {
		text = d.paint(look, text+payload)
	} else {
		text += d.paint(faint, payload)
	}
	_, err := fmt.Fprintln(d.Out, text)
	return err
}

// shortID is the random end of an id. Ids of version 7 begin with the time, which many events share.
func shortID(id string) string {
	r := []rune(printable(id))
	return "…" + string(r[max(0, len(r)-idWidth+1):])
}

// printable replaces what would move the cursor or change colours: an event may contain any text.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s)
}

// fit is the beginning of a text, for a place of so many columns on one line.
func fit(s string, columns int) string {
	r := []rune(printable(s))
	switch {
	case len(r) <= columns:
		return string(r)
	case columns == 0:
		return ""
	}
	return string(r[:columns-1]) + "…"
}

// lockedWriter is for several goroutines.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}
