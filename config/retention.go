package config

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Retention says how long rows are kept before they are deleted.
type Retention struct {
	// Outbox is for rows of the outbox, by their created_at; 0s deletes a row as soon as it is settled for every sink. By default it is
	// defaultRetention for the outbox that init makes, and AgeOff for a mapped table.
	Outbox Age `yaml:"outbox"`
	// Ledger is for the delivery log. By default it is defaultRetention, or Outbox if that is longer. It is not less than Outbox, unless
	// Outbox is AgeOff.
	Ledger Age `yaml:"ledger"`
}

const (
	// AgeOff keeps rows for ever.
	AgeOff           Age = "off"
	defaultRetention Age = "7d"
	day                  = 24 * time.Hour
	// maxAge is the longest Age that is not AgeOff.
	maxAge = 36_500 * day
)

// Age is how long something is kept: a duration as it was written, which may have days, such as 7d, 1d12h or 90m, or AgeOff.
type Age string

// Off reports whether rows are kept for ever.
func (a Age) Off() bool { return a == AgeOff }

// Duration returns the age. For AgeOff it is longer than every other.
func (a Age) Duration() time.Duration {
	d, err := ageDuration(string(a))
	if err != nil {
		return math.MaxInt64 // nobody has validated this; to keep rows does no harm
	}
	return d
}

// ageDays splits an age into its days and the rest, which has Go's units.
var ageDays = regexp.MustCompile(`^(?:(\d+)d)?((?:\d.*)?)$`)

func ageDuration(text string) (time.Duration, error) {
	const examples = "write 7d, 1d12h or 90m, or off to keep rows for ever"
	switch {
	case strings.EqualFold(text, string(AgeOff)):
		return math.MaxInt64, nil
	case text == "0": // some programs delete at once, others never
		return 0, errors.New("means two things to people; write 0s to delete rows as soon as they are settled, or off to keep them")
	case strings.HasPrefix(text, "-"):
		return 0, errors.New("is negative; " + examples)
	}
	parts := ageDays.FindStringSubmatch(text)
	if parts == nil || text == "" {
		return 0, errors.New("is no age; " + examples)
	}
	var days, rest time.Duration
	if parts[1] != "" {
		n, err := strconv.Atoi(parts[1])
		if err != nil || n > int(maxAge/day) {
			return 0, errTooLong
		}
		days = time.Duration(n) * day
	}
	if parts[2] != "" {
		var err error
		if rest, err = time.ParseDuration(parts[2]); err != nil {
			return 0, errors.New("is no age; " + examples)
		}
	}
	if rest < 0 || days+rest > maxAge {
		return 0, errTooLong
	}
	return days + rest, nil
}

var errTooLong = fmt.Errorf("is longer than %dd; write off to keep rows for ever", maxAge/day)

// ParseAge parses text, and returns it in the form in which it is kept. If text is wrong, it returns AgeOff, so that no other mistake
// follows from it.
func ParseAge(text string) (Age, error) {
	if _, err := ageDuration(text); err != nil {
		return AgeOff, err
	}
	if strings.EqualFold(text, string(AgeOff)) {
		return AgeOff, nil
	}
	return Age(text), nil
}

const (
	retentionDays   = "OUTBOX_RETENTION_DAYS"
	retentionOutbox = "OUTBOX_RETENTION_OUTBOX"
)

// applyRetentionDays sets retention.outbox by OUTBOX_RETENTION_DAYS. OUTBOX_RETENTION_OUTBOX says the same more exactly, and beats it:
// somebody whose environment has the former for every service can set the latter.
func (l *loader) applyRetentionDays() {
	const path = "retention.outbox"
	text := l.env[retentionDays]
	if text == "" {
		return
	}
	days, err := strconv.Atoi(text)
	var refused string
	switch {
	case err != nil && !errors.Is(err, strconv.ErrRange):
		refused = fmt.Sprintf("%q is no number of days; write 7, or set %s, which takes 7d, 36h or off", text, retentionOutbox)
	case days < 0:
		refused = fmt.Sprintf("%s is negative; write how many days rows are kept, or set %s=off to keep them for ever", text, retentionOutbox)
	case days > int(maxAge/day):
		refused = fmt.Sprintf("%s days are too many; write at most %d, or set %s=off to keep rows for ever", text, maxAge/day, retentionOutbox)
	case days == 0 && l.env[retentionOutbox] == "":
		refused = fmt.Sprintf("0 means two things to people; set %[1]s=0s to delete rows as soon as they are settled, or %[1]s=off to keep them",
			retentionOutbox)
	}
	if refused != "" {
		l.mistakes = append(l.mistakes, Mistake{Variable: retentionDays, Path: path, Text: refused})
		l.config.Retention.Outbox = AgeOff // so that no other mistake follows
		return
	}
	if l.env[retentionOutbox] == "" {
		l.origins[path], l.written[path] = origin{variable: retentionDays}, true
		l.config.Retention.Outbox = Age(strconv.Itoa(days) + "d")
		return
	}
	if exact, err := ParseAge(l.env[retentionOutbox]); err == nil && (days == 0 || exact.Duration() != time.Duration(days)*day) {
		l.warn("%s=%s is used, and %s=%d, which says something else, is not", retentionOutbox, exact, retentionDays, days)
	}
}

// completeRetention fills in the ages that nobody has written.
func (l *loader) completeRetention() {
	r := &l.config.Retention
	if r.Outbox == "" {
		r.Outbox = defaultRetention
		if l.config.Source.mapped() {
			r.Outbox = AgeOff // what is in a table of the user's is the user's to delete
		}
	}
	if r.Ledger == "" {
		r.Ledger = defaultRetention
		if !r.Outbox.Off() && r.Outbox.Duration() > r.Ledger.Duration() {
			r.Ledger = r.Outbox
		}
	}
}

// mapped reports whether the outbox is a table of the user's own, as provision.Source.Mapped does.
func (s *Source) mapped() bool {
	return s.Table != s.LedgerSchema+".event_outbox" || s.Columns != Default().Source.Columns
}

func (v *validator) retention(c *Config) {
	outbox, ledger := c.Retention.Outbox, c.Retention.Ledger
	if outbox.Off() {
		return
	}
	if c.Source.Columns.CreatedAt == "" {
		v.mistake("retention.outbox", `%s needs the time of each row, and source.columns.created_at is ""; name the column, or write off`, outbox)
	}
	if ledger.Duration() < outbox.Duration() {
		v.mistake("retention.ledger", "%s is shorter than %s (%s): the log says which rows of the outbox may be deleted, "+
			"so it has to be kept as long; write %s or more, or a shorter %[2]s",
			ledger, v.names.Of("retention.outbox"), v.whence("retention.outbox", string(outbox)), outbox)
	}
}
