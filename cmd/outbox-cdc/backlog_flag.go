package main

import (
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
	case kind == "since" && value != "":
		since, err := parseTime("backlog since:", value, now)
		return provision.Backlog{Some: true, Since: since}, err
	case kind == "where" && strings.TrimSpace(value) != "":
		return provision.Backlog{Some: true, Where: value}, nil
	}
	return provision.Backlog{}, usageError("no backlog %q; write all, none, since:<time> or where:<SQL condition>", text)
}

// parseParked reads the value of the flag --parked.
func parseParked(text string) (provision.ParkedChoice, error) {
	switch c := provision.ParkedChoice(text); c {
	case "", provision.ParkedKeep, provision.ParkedDiscard:
		return c, nil
	}
	return "", usageError("--parked %q is neither keep nor discard", text)
}
