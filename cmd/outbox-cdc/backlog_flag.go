package main

import (
	"strconv"
	"strings"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/provision"
)

// parseBacklog reads the value of init's flag --backlog.
func parseBacklog(text string, now time.Time) (provision.Backlog, error) {
	kind, value, _ := strings.Cut(text, ":")
	switch {
	case text == "":
		return provision.Backlog{}, nil
	case text == "none":
		return provision.Backlog{None: true}, nil
	case text == "all":
		return provision.Backlog{Some: true}, nil
	case kind == "since":
		since, err := parseSince(value, now)
		return provision.Backlog{Some: true, Since: since}, err
	case kind == "where" && strings.TrimSpace(value) != "":
		return provision.Backlog{Some: true, Where: value}, nil
	}
	return provision.Backlog{}, usageError("no backlog %q; write all, none, since:<time> or where:<SQL condition>", text)
}

// parseSince reads a time, a date (in UTC), or how long ago.
func parseSince(text string, now time.Time) (time.Time, error) {
	for _, layout := range []string{time.RFC3339Nano, time.DateOnly} {
		if t, err := time.Parse(layout, text); err == nil {
			return t, nil
		}
	}
	if d, err := time.ParseDuration(text); err == nil && d > 0 {
		return now.Add(-d), nil
	}
	if number, ok := strings.CutSuffix(text, "d"); ok {
		if days, err := strconv.ParseUint(number, 10, 16); err == nil && days > 0 {
			return now.AddDate(0, 0, -int(days)), nil
		}
	}
	return time.Time{}, usageError("no time %q behind since:; write how long ago (36h, 7d), a date (2024-05-31, UTC) or a time (2024-05-31T08:00:00Z)", text)
}

// parseParked reads the value of the flag --parked.
func parseParked(text string) (provision.ParkedChoice, error) {
	switch c := provision.ParkedChoice(text); c {
	case "", provision.ParkedKeep, provision.ParkedDiscard:
		return c, nil
	}
	return "", usageError("--parked %q is neither keep nor discard", text)
}
