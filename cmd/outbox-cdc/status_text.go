package main

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/pyairtable-compose/outbox-cdc/admin"
	"github.com/pyairtable-compose/outbox-cdc/internal/dsn"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

// screenWidth is how many columns the screen has at most.
const screenWidth = 80

// screen collects the lines of the text.
type screen struct {
	b   strings.Builder
	now time.Time
	style
}

// style says whether a text has colours.
type style bool

const (
	plain   style = false
	colored style = true
)

// statusText returns the screen for a person. Colours do not change where things stand.
func statusText(st admin.Status, style style) string {
	s := &screen{now: st.At, style: style}
	s.head(st)
	s.slot(st.Slot)
	s.instances(st.Instances)
	s.sinks(st)
	s.backlogs(st.Sinks)
	s.objectives(st.Sinks)
	s.verify(st.Verify)
	s.cleanup(st.Cleanup)
	s.storage(st)
	s.toDo(st)
	for i, text := range st.Unknown {
		label := ""
		if i == 0 {
			label = "NOT KNOWN"
		}
		s.listed(label, text)
	}
	return s.b.String()
}

func (s *screen) head(st admin.Status) {
	title := "outbox-cdc " + shorten(clean(st.Connector), 40) + ": "
	at := st.At.UTC().Format("2006-01-02 15:04:05Z")
	gap := max(1, screenWidth-utf8.RuneCountInString(title)-len(st.Level)-len(at))
	fmt.Fprintf(&s.b, "%s%s%s%s\n", title, s.paint(st.Level, string(st.Level)), strings.Repeat(" ", gap), at)
	d := st.Database
	text := dsn.Target{Address: d.Address, Database: d.Name, User: d.User, Configured: d.Configured}.String()
	if d.Version != "" {
		text += "; PostgreSQL " + d.Version
	}
	if d.Standby {
		text += ", a standby"
	}
	s.item("", text)
	if d.Error != "" {
		s.item("", "cannot be read")
	}
}

func (s *screen) slot(slot *admin.StatusSlot) {
	if slot == nil {
		return
	}
	s.gap()
	text := slot.Name + " "
	switch slot.State {
	case admin.SlotStreams:
		text += "is streamed"
		if slot.ActivePID != 0 {
			text += fmt.Sprintf(" by pid %d", slot.ActivePID)
		}
		if slot.ActiveFrom != "" {
			text += " for " + slot.ActiveFrom
		}
	case admin.SlotIdle:
		text += "is not streamed from"
		if slot.InactiveSince != nil {
			text += " for " + ago(s.now, slot.InactiveSince)
		}
	case admin.SlotAbsent:
		text += "does not exist yet"
	case admin.SlotBuilding:
		text += "is half made: an init or resync did not end, or is at work"
	case admin.SlotMissing:
		text += "is gone"
	case admin.SlotLost:
		text += "is lost: " + slot.Invalidated
	case admin.SlotForeign:
		text += "is not ours"
	case admin.SlotUnseen:
		text += "cannot be seen from a standby of PostgreSQL"
	default:
		text += string(slot.State)
	}
	s.item("SLOT", text)
	if slot.LagBytes != nil {
		text := "behind " + bytesText(*slot.LagBytes)
		if slot.LagSeconds != nil {
			text += ", " + secondsText(*slot.LagSeconds)
		}
		if slot.WALRate != nil {
			text += ", " + bytesText(int64(*slot.WALRate)) + "/s of WAL"
		}
		text += forecastText(s.now, slot.Forecast, slot.CaughtUpAt)
		if slot.RecordedAt != nil {
			text += "; recorded " + ago(s.now, slot.RecordedAt) + " ago"
		}
		s.item("", text)
	}
	if text := keptText(slot); text != "" {
		s.item("", text)
	}
}

// keptText says how much WAL the server keeps, and for how long it goes on.
func keptText(slot *admin.StatusSlot) string {
	if slot.KeptBytes == nil {
		return ""
	}
	text := "WAL kept " + bytesText(*slot.KeptBytes)
	switch {
	case slot.KeptLimit == nil:
		return text + ", unlimited: the slot is never lost, but the disk may fill"
	case slot.LostAfterBytes == nil:
		return text + " of " + bytesText(*slot.KeptLimit)
	}
	text += " of " + bytesText(*slot.KeptLimit)
	if *slot.LostAfterBytes == 0 {
		return text + "; lost at PostgreSQL's next checkpoint (" + slot.WALStatus + ")"
	}
	text += "; lost after " + bytesText(*slot.LostAfterBytes) + " more"
	if slot.LostAfterSeconds != nil {
		text += ", in " + secondsText(*slot.LostAfterSeconds) + " at this rate"
	}
	if slot.WALStatus != "reserved" {
		text += " (" + slot.WALStatus + ")"
	}
	return text
}

func (s *screen) instances(all []admin.StatusInstance) {
	if len(all) > 0 {
		s.gap()
	}
	for i, in := range all {
		label := ""
		if i == 0 {
			label = "INSTANCES"
		}
		role := string(in.Role)
		if role == "" {
			role = "instance"
		}
		text := role
		if in.Host != "" {
			text += " on " + in.Host
		}
		if in.PID != 0 {
			text += fmt.Sprintf(", pid %d", in.PID)
		}
		if in.Version != "" {
			text += ", version " + in.Version
		}
		if in.Started != nil {
			text += ", up " + ago(s.now, in.Started)
		}
		if in.Health != "" && in.Health != monitoring.LevelOK {
			text += ", " + string(in.Health)
		}
		if in.Error != "" {
			text += ": not asked: " + in.Error
		}
		s.item(label, text)
		if in.LastError != "" && in.Health == monitoring.LevelFailed {
			s.item("", shorten("last error: "+in.LastError, 3*screenWidth))
		}
	}
}

const sinkFormat = "%-14s %-11s %6s %7s %6s %6s %6s %7s %8s\n"

func (s *screen) sinks(st admin.Status) {
	s.gap()
	s.b.WriteString(s.bold(strings.TrimSuffix(fmt.Sprintf(sinkFormat, "SINK", "CONDITION", "SINCE", "WAITING", "OLDEST", "DEAD", "NOW/S", "1 MIN/S", "DONE IN"), "\n")) + "\n")
	for i := range st.Sinks {
		s.sink(&st.Sinks[i])
	}
	if len(st.Sinks) == 0 {
		s.b.WriteString("(none is known)\n")
	}
	if r := st.NoSink; r.Dead != nil && *r.Dead+*r.Parked > 0 {
		line := fmt.Sprintf(sinkFormat, "(no sink)", "", "", countText(r.Parked, r), "", countText(r.Dead, r), "", "", "")
		s.b.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
}

func (s *screen) sink(k *admin.StatusSink) {
	name := clean(k.Name)
	if utf8.RuneCountInString(name) > 14 {
		s.b.WriteString(shorten(name, screenWidth) + "\n")
		name = ""
	}
	condition := string(k.Condition)
	switch {
	case !k.Configured:
		condition = "removed"
	case k.State == monitoring.StateCatchingUp:
		condition = string(k.State)
	}
	done := ""
	switch {
	case k.CaughtUpAt != nil:
		done = until(s.now, k.CaughtUpAt)
	case k.Forecast == monitoring.TrendGrowing:
		done = "growing"
	case k.Forecast == monitoring.TrendNotAtThisRate:
		done = "never"
	}
	line := fmt.Sprintf(sinkFormat, name, "\x00", ago(s.now, k.Since), countText(k.Rows.Parked, k.Rows), oldestText(k.Rows),
		countText(k.Rows.Dead, k.Rows), perSecondText(k.RateNow), perSecondText(k.RateMinute), done)
	padded := fmt.Sprintf("%-11s", shorten(condition, 11))
	line = strings.Replace(line, fmt.Sprintf("%-11s", "\x00"), s.paint(conditionLevel(k.Condition), padded), 1)
	s.b.WriteString(strings.TrimRight(line, " \n") + "\n")
	var why []string
	if k.Condition != monitoring.ConditionOK && k.Cause != "" {
		why = append(why, shorten(clean(k.Cause), 150))
	}
	if k.AsksAt != nil {
		why = append(why, "asked next in "+until(s.now, k.AsksAt))
	}
	if k.TriedRate > 0 {
		why = append(why, fmt.Sprintf("at most %d a second are tried again", k.TriedRate))
	}
	if len(why) > 0 {
		s.wrapped("  ", strings.Join(why, "; "))
	}
}

func (s *screen) cleanup(c *admin.StatusCleanup) {
	if c == nil {
		return
	}
	s.gap()
	age := func(seconds *float64) string {
		switch {
		case seconds == nil:
			return "for ever"
		case *seconds == 0:
			return "until it is settled"
		}
		return secondsText(*seconds)
	}
	s.item("CLEANUP", "outbox kept "+age(c.OutboxSeconds)+", log "+age(c.LedgerSeconds))
	if c.OutboxSeconds == nil && c.LedgerSeconds == nil {
		return
	}
	p := c.LastPass
	if p == nil {
		s.item("", "no pass yet")
		return
	}
	text := fmt.Sprintf("reported %s ago: events deleted: %s", ago(s.now, c.ReportedAt), compact(float64(p.Outbox.Deleted)))
	if c.LastPassAt != nil {
		text = fmt.Sprintf("last pass %s ago; ", ago(s.now, c.LastPassAt)) + text
	}
	if n := len(p.Log.Dropped) + len(p.Outbox.Partitions.Dropped); n > 0 {
		text += fmt.Sprintf("; partitions dropped: %d", n)
	}
	s.item("", text)
	k := p.Outbox.Kept
	for _, stays := range []struct {
		n   int64
		why string
	}{
		{k.Beyond, "not settled yet"},
		{k.Unread, "not read yet"},
		{k.Unaccounted, "unknown to the ledger"},
		{k.Locked, "locked by other transactions"},
		{k.Refused, "refused: " + p.Outbox.Refused},
	} {
		if stays.n > 0 {
			s.item("", fmt.Sprintf("old events that stay, %s: %s", stays.why, compact(float64(stays.n))))
		}
	}
	for _, why := range []string{p.Blocked, p.Outbox.Partitions.Stays, p.Log.Stays} {
		if why != "" {
			s.item("", "stays: "+shorten(why, 200))
		}
	}
}

func (s *screen) storage(st admin.Status) {
	if z := st.Sizes; z != nil {
		s.gap()
		text := "outbox " + sizeText(z.Outbox)
		if z.OutboxFrom != nil {
			text += " back to " + ago(s.now, z.OutboxFrom) + " ago"
		}
		text += ", log " + sizeText(z.Log)
		if z.LogFrom != nil {
			text += " back to " + z.LogFrom.UTC().Format(time.DateOnly)
		}
		text += ", parked " + sizeText(z.Parked)
		if z.ParkedDeadRows > 0 {
			text += fmt.Sprintf(" with %s deleted rows not vacuumed", compact(float64(z.ParkedDeadRows)))
		}
		s.item("SIZES", text)
	}
	for i, h := range st.Holders {
		text := strings.ReplaceAll(h.Kind, "_", " ") + " " + h.Name
		if h.User != "" {
			text += " of " + h.User
		}
		if h.PID != 0 {
			text += fmt.Sprintf(" (pid %d, %s)", h.PID, h.State)
		}
		if h.Since != nil {
			text += " open for " + ago(s.now, h.Since)
		}
		label := ""
		if i == 0 {
			label = "OPEN"
		}
		s.item(label, text)
	}
}

func (s *screen) toDo(st admin.Status) {
	s.gap()
	if len(st.ToDo) == 0 {
		s.item("TO DO", "nothing")
	}
	for i, t := range st.ToDo {
		label := ""
		if i == 0 {
			label = "TO DO"
		}
		s.listed(label, t.What)
		if t.Command != "" {
			fmt.Fprintf(&s.b, "%s    %s\n", strings.Repeat(" ", labelWidth), s.bold(clean(t.Command)))
		}
	}
}

// labelWidth is the width of the labels in front of the lines.
const labelWidth = 10

// item writes a text behind a label, on as many lines as it takes.
func (s *screen) item(label, text string) { s.behind(label, "", text) }

// listed is item for one text of a list: its further lines are indented, so that one sees where the next text begins.
func (s *screen) listed(label, text string) { s.behind(label, "- ", text) }

func (s *screen) behind(label, mark, text string) {
	indent := strings.Repeat(" ", labelWidth+len(mark))
	before := s.b.Len()
	s.wrapped(indent, text)
	line := s.b.String()[before:]
	rest := strings.TrimPrefix(line, indent)
	kept := s.b.String()[:before]
	s.b.Reset()
	s.b.WriteString(kept + s.bold(fmt.Sprintf("%-*s", labelWidth, label)) + mark + rest)
}

// wrapped writes a text on lines that begin with indent.
func (s *screen) wrapped(indent, text string) {
	room := screenWidth - len(indent)
	line := ""
	flush := func() {
		if line != "" {
			s.b.WriteString(indent + line + "\n")
			line = ""
		}
	}
	for word := range strings.FieldsSeq(clean(text)) {
		for utf8.RuneCountInString(word) > room { // a URL, for example
			flush()
			r := []rune(word)
			s.b.WriteString(indent + string(r[:room]) + "\n")
			word = string(r[room:])
		}
		if line != "" && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > room {
			flush()
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	flush()
}

func (s *screen) gap() { s.b.WriteByte('\n') }

// paint colours a text by a level.
func (s style) paint(level monitoring.Level, text string) string {
	if s == plain {
		return text
	}
	code := map[monitoring.Level]string{monitoring.LevelOK: "32", monitoring.LevelDegraded: "33", monitoring.LevelFailed: "31"}[level]
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func (s style) bold(text string) string {
	if s == plain || strings.TrimSpace(text) == "" {
		return text
	}
	return "\x1b[1m" + text + "\x1b[0m"
}

func conditionLevel(c monitoring.Condition) monitoring.Level {
	switch c {
	case monitoring.ConditionOK:
		return monitoring.LevelOK
	case monitoring.ConditionAway, monitoring.ConditionFailing, monitoring.ConditionUnreachable, monitoring.ConditionSuspect, monitoring.ConditionRefusing:
		return monitoring.LevelFailed
	case monitoring.ConditionPaused:
	}
	return monitoring.LevelDegraded
}

func forecastText(now time.Time, trend monitoring.Trend, at *time.Time) string {
	switch {
	case at != nil:
		return ", caught up in " + until(now, at)
	case trend == monitoring.TrendGrowing:
		return ", growing"
	}
	return ""
}
