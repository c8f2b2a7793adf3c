//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
)

// measured is the file from which the tables of docs/sizing.md were made. A test compares the two.
const measured = "test/bench/testdata/sizing.json"

// publish prints the tables. With -page it puts them into the page, too, and the figures beside its test.
func (s sizes) publish(w io.Writer, o options) error {
	if err := writeResults(w, o, s, func(w io.Writer) { fmt.Fprint(w, s.markdown()) }); err != nil || o.page == "" {
		return err
	}
	text, err := os.ReadFile(o.page)
	if err != nil {
		return err
	}
	page, err := s.replaceTables(string(text))
	if err != nil {
		return fmt.Errorf("%s: %w", o.page, err)
	}
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(measured, append(data, '\n'), 0o644); err != nil {
		return err
	}
	return os.WriteFile(o.page, []byte(page), 0o644)
}

// markdown is all tables.
func (s sizes) markdown() string {
	var b strings.Builder
	for _, t := range s.tables() {
		fmt.Fprintf(&b, "%s\n%s\n", t.name, t.text)
	}
	return b.String()
}

// sizeTable is a table that stands in the page between two marks.
type sizeTable struct{ name, text string }

func marks(name string) (begin, end string) {
	return "<!-- make sizing: " + name + " -->\n", "<!-- end of " + name + " -->\n"
}

// replaceTables puts each table between its marks.
func (s sizes) replaceTables(page string) (string, error) {
	for _, t := range s.tables() {
		begin, end := marks(t.name)
		before, rest, ok := strings.Cut(page, begin)
		_, after, ok2 := strings.Cut(rest, end)
		if !ok || !ok2 {
			return "", fmt.Errorf("there are no marks %q and %q", begin, end)
		}
		page = before + begin + t.text + end + after
	}
	return page, nil
}

func (s sizes) tables() []sizeTable {
	return []sizeTable{
		{"machine", s.machineLine()},
		{"bytes", s.bytesTable()},
		{"days", s.daysTable()},
		{"cpu", s.cpuTable()},
		{"steady", s.steadyTable()},
		{"lanes", s.lanesTable()},
		{"connections", s.connectionsTable()},
	}
}

func (s sizes) machineLine() string {
	return fmt.Sprintf("Measured on %s: %s, %d cores, %.0f GiB, PostgreSQL %s, %s.\n",
		s.Date, s.Machine.CPU, s.Machine.Cores, s.Machine.MemoryGiB, s.Versions.PostgreSQL, s.Versions.Go)
}

// row is a line of a table.
func row(cells ...string) string { return "| " + strings.Join(cells, " | ") + " |\n" }

// head is the first two lines.
func head(cells ...string) string {
	return row(cells...) + "|" + strings.Repeat("---|", len(cells)) + "\n"
}

func (s sizes) bytesTable() string {
	names := []string{"Bytes"}
	for _, one := range s.Storage {
		names = append(names, fmt.Sprintf("payload %s B", thousands(float64(one.Payload))))
	}
	var b strings.Builder
	b.WriteString(head(names...))
	for _, line := range []struct {
		name string
		of   func(storage) float64
	}{
		{"`event_outbox`, an event: the table", func(o storage) float64 { return o.Outbox.Table }},
		{"its five indexes", func(o storage) float64 { return o.Outbox.Indexes }},
		{"WAL of an insert alone in its transaction", func(o storage) float64 { return o.WALOneRow }},
		{"WAL of an insert, 100 in a transaction", func(o storage) float64 { return o.WALHundred }},
		{"`outbox_delivery_log`, a delivery: the partition", func(o storage) float64 { return o.Log.Table }},
		{"its three indexes", func(o storage) float64 { return o.Log.Indexes }},
		{"WAL of recording it, in large batches", func(o storage) float64 { return o.LogWAL }},
		{"`outbox_parked`, a delivery that waits: the table", func(o storage) float64 { return o.Parked.Table }},
		{"its three indexes", func(o storage) float64 { return o.Parked.Indexes }},
		{"WAL of parking it", func(o storage) float64 { return o.ParkWAL }},
		{"WAL of delivering it from there, with its log row", func(o storage) float64 { return o.UnparkWAL }},
		{"WAL of deleting a row of `event_outbox`, after a checkpoint", func(o storage) float64 { return o.DeleteWAL }},
		{"WAL of vacuum after that", func(o storage) float64 { return o.VacuumWAL }},
	} {
		cells := []string{line.name}
		for _, one := range s.Storage {
			cells = append(cells, thousands(line.of(one)))
		}
		b.WriteString(row(cells...))
	}
	cells := []string{"rows a second that `cleanup --once` deletes"}
	for _, one := range s.Storage {
		cells = append(cells, thousands(round2(one.DeletesPerSec)))
	}
	b.WriteString(row(cells...))
	return b.String()
}

// rates are what the page gives advice for.
var rates = []int{10, 1000, 50_000}

// daysTable multiplies: it is about events of one kilobyte and one sink.
func (s sizes) daysTable() string {
	const day = 24 * 60 * 60
	var one storage
	for _, of := range s.Storage {
		if of.Payload == 1000 {
			one = of
		}
	}
	names := []string{"Payload 1 kB, one sink"}
	for _, rate := range rates {
		names = append(names, thousands(float64(rate))+" events/s")
	}
	var b strings.Builder
	b.WriteString(head(names...))
	for _, line := range []struct {
		name           string
		bytes, seconds float64
	}{
		{"events a day", 0, day},
		{"`event_outbox`, a day", one.Outbox.total(), day},
		{"`event_outbox` with `retention.outbox: 7d`", one.Outbox.total(), 7 * day},
		{"partitioned by day, with `1d`: up to 2 days", one.Outbox.total(), 2 * day},
		{"the log, a day and sink", one.Log.total(), day},
		{"the log with `retention.ledger: 7d`: up to 8 days, for each sink", one.Log.total(), 8 * day},
		{"the log with `1d`: up to 2 days, for each sink", one.Log.total(), 2 * day},
		{"WAL a day: the inserts", one.WALOneRow, day},
		{"WAL a day: the ledger, for each sink", one.LogWAL, day},
		{"WAL an hour, both: what the slot keeps without a connector", one.WALOneRow + one.LogWAL, 60 * 60},
		{"`outbox_parked`, an hour with the sink away", one.Parked.total(), 60 * 60},
	} {
		cells := []string{line.name}
		for _, rate := range rates {
			n := float64(rate) * line.seconds
			if line.bytes == 0 {
				cells = append(cells, thousands(n))
			} else {
				cells = append(cells, gigabytes(n*line.bytes))
			}
		}
		b.WriteString(row(cells...))
	}
	return b.String()
}

func (s sizes) cpuTable() string {
	var b strings.Builder
	b.WriteString(head("Catching up, µs of CPU an event", "connector", "walsender", "recorder's backend", "events/s", "connector's peak memory"))
	for _, one := range s.Storage {
		b.WriteString(row(fmt.Sprintf("payload %s B", thousands(float64(one.Payload))), significant(one.CPU.Reader), significant(one.CPU.Walsender),
			significant(one.CPU.Recorder), thousands(round2(one.EventsASecond)), fmt.Sprintf("%.0f MiB", mebibytes(float64(one.PeakMemory)))))
	}
	return b.String()
}

func (s sizes) steadyTable() string {
	var b strings.Builder
	b.WriteString(head("One-row transactions a second", "connector", "walsender", "recorder's backend", "WAL, inserts and ledger", "connector's peak memory"))
	for _, one := range s.Steady {
		share := func(ms float64) string { return fmt.Sprintf("%.1f %%", ms/10) }
		b.WriteString(row(thousands(float64(one.Rate)), share(one.CPU.Reader), share(one.CPU.Walsender), share(one.CPU.Recorder),
			fmt.Sprintf("%s kB/s", significant(one.WAL/1000)), fmt.Sprintf("%.0f MiB", mebibytes(float64(one.Memory)))))
	}
	return b.String()
}

func (s sizes) lanesTable() string {
	var b strings.Builder
	b.WriteString(head("Sink", "`delivery.lanes`", "events/s", "connector, µs of CPU an event", "connector's peak memory"))
	for _, one := range s.Lanes {
		b.WriteString(row("`"+one.Sink+"`", fmt.Sprint(one.Lanes), thousands(round2(one.Rate)), significant(one.CPU),
			fmt.Sprintf("%.0f MiB", mebibytes(float64(one.Memory)))))
	}
	return b.String()
}

func (s sizes) connectionsTable() string {
	c := s.Connections
	return head("Connections at 1,000 events/s", "") +
		row("one sink", fmt.Sprint(c.OneSink)) +
		row("three sinks", fmt.Sprint(c.ThreeSinks)) +
		row("more of an instance that stands by", fmt.Sprint(c.Standby)) +
		row("bound of one instance (`source.max_connections` + the stream)", fmt.Sprint(c.Bound))
}

// round2 leaves two digits of a figure that differs by that much from run to run.
func round2(v float64) float64 {
	unit := 1.0
	for v/unit >= 100 {
		unit *= 10
	}
	return float64(int(v/unit+0.5)) * unit
}

// thousands writes a whole number with commas.
func thousands(v float64) string {
	digits := fmt.Sprintf("%.0f", v)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

func gigabytes(bytes float64) string {
	const giga = 1e9
	if bytes >= 1000*giga {
		return significant(bytes/giga/1000) + " TB"
	}
	return significant(bytes/giga) + " GB"
}
