//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"text/tabwriter"
)

// What must be reached, on two cores with nothing else to do.
const (
	mostConnectorCPU = 5.0 // µs an event
	mostMemory       = 128 << 20
	mostMemoryRatio  = 1.25
	mostP50          = 2.0 // ms
	mostP99          = 6.0
)

// leastRatio is that of pg_recvlogical's time to ours, by rows per transaction.
var leastRatio = map[int]float64{100: 0.6, 1: 1.3}

type results struct {
	Machine    machine            `json:"machine"`
	Versions   versions           `json:"versions"`
	Command    []string           `json:"command"`
	Throughput []throughputResult `json:"throughput,omitempty"`
	Latency    *latencyResult     `json:"latency,omitempty"`
	Memory     *memoryResult      `json:"memory,omitempty"`
}

type versions struct {
	OutboxCDC  string `json:"outbox_cdc"`
	PostgreSQL string `json:"postgresql"`
	Go         string `json:"go"`
}

func (b *bench) versions(ctx context.Context) versions {
	v := versions{PostgreSQL: b.postgres.Version(), Go: runtime.Version()}
	if out, err := exec.CommandContext(ctx, b.cli, "version").Output(); err == nil {
		v.OutboxCDC = strings.TrimSpace(string(out))
	}
	return v
}

// counts adds up all runs, those of noisy rounds included.
func (r results) counts() (c counts) {
	for _, t := range r.Throughput {
		for _, round := range t.Rounds {
			c = c.add(round.Connector.Counts)
		}
	}
	if r.Latency != nil {
		c = c.add(r.Latency.Counts)
	}
	if r.Memory != nil {
		for _, run := range append(r.Memory.Normal, r.Memory.Unread, r.Memory.Transaction) {
			c = c.add(run.Run.Counts)
		}
	}
	return c
}

// check: how fast it is depends on the machine; that it is right does not.
func (r results) check() error {
	if c := r.counts(); c != (counts{}) {
		return fmt.Errorf("%d events are missing, %d misordered, %d duplicated, %d not in the ledger", c.Missing, c.Misordered, c.Duplicated, c.Unrecorded)
	}
	return nil
}

func (r results) write(w io.Writer, o options) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	data = append(data, '\n')
	if err := os.MkdirAll(filepath.Dir(o.results), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(o.results, data, 0o644); err != nil {
		return err
	}
	if o.output == "json" {
		_, err = w.Write(data)
		return err
	}
	r.table(w)
	return nil
}

// columns writes a block whose cells end with tabs and stand below each other; what follows the last tab of a line is a remark.
func columns(w io.Writer, write func(io.Writer)) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	write(t)
	_ = t.Flush() // as for every line printed: what goes wrong with stdout is for its reader to notice
}

func (r results) table(w io.Writer) {
	m := r.Machine
	fmt.Fprintf(w, "%s, %d cores, %.0f GiB; PostgreSQL %s; %s; %s\n", m.CPU, m.Cores, m.MemoryGiB, r.Versions.PostgreSQL, r.Versions.Go, r.Versions.OutboxCDC)
	for _, t := range r.Throughput {
		t.table(w)
	}
	if r.Latency != nil {
		r.Latency.table(w)
	}
	if r.Memory != nil {
		r.Memory.table(w)
	}
	c := r.counts()
	fmt.Fprintf(w, "\nMissing %d, misordered %d, duplicated %d, not in the ledger %d\n", c.Missing, c.Misordered, c.Duplicated, c.Unrecorded)
}

func (t throughputResult) table(w io.Writer) {
	fmt.Fprintf(w, "\n%d events of %d bytes of payload, %d a transaction\n", t.Events, t.PayloadBytes, t.Rows)
	columns(w, t.roundsTable)
	columns(w, t.cpuTable)
	peak := mebibytes(t.median(func(r round) float64 { return float64(r.Connector.PeakMemory) }))
	fmt.Fprintf(w, "peak memory %.1f MiB %s\n", peak, atMost(peak, mebibytes(mostMemory), "%.0f"))
}

func (t throughputResult) roundsTable(w io.Writer) {
	line := func(name string, theirs, ours, ratio float64, others, remark string) {
		fmt.Fprintf(w, "%s\t%.2f s\t%.0f\t%.2f s\t%.0f\t%.2f\t%s\t  %s\n", name, theirs, float64(t.Events)/theirs, ours, float64(t.Events)/ours,
			ratio, others, remark)
	}
	fmt.Fprintln(w, "round\tpg_recvlogical\tevents/s\toutbox-cdc\tevents/s\tratio\tothers\t")
	for i, r := range t.Rounds {
		remark := ""
		switch {
		case !r.Counts:
			remark = "noisy, does not count"
		case !r.Quiet:
			remark = "noisy"
		}
		line(strconv.Itoa(i+1), r.Yardstick.Seconds, r.Connector.Seconds, r.Ratio, fmt.Sprintf("%.1f %%", 100*r.others()), remark)
	}
	ratio := t.median(func(r round) float64 { return r.Ratio })
	line("median", t.median(func(r round) float64 { return r.Yardstick.Seconds }), t.median(func(r round) float64 { return r.Connector.Seconds }),
		ratio, "", atLeast(ratio, leastRatio[t.Rows]))
}

func (t throughputResult) cpuTable(w io.Writer) {
	// The medians of one process may be of different rounds.
	median := func(run func(round) cpu) cpu {
		of := func(part func(cpu) float64) float64 { return t.median(func(r round) float64 { return part(run(r)) }) }
		return cpu{
			of(func(c cpu) float64 { return c.Reader }), of(func(c cpu) float64 { return c.Walsender }),
			of(func(c cpu) float64 { return c.Recorder }), of(func(c cpu) float64 { return c.Fake }),
		}
	}
	ours, theirs := median(func(r round) cpu { return r.Connector.CPU }), median(func(r round) cpu { return r.Yardstick.CPU })
	fmt.Fprintln(w, "CPU, µs an event\treader\twalsender\trecorder's backend\tKafka fake\t")
	fmt.Fprintf(w, "outbox-cdc\t%.2f\t%.2f\t%.2f\t%.2f\t  %s\n", ours.Reader, ours.Walsender, ours.Recorder, ours.Fake, atMost(ours.Reader, mostConnectorCPU, "%.0f"))
	fmt.Fprintf(w, "pg_recvlogical\t%.2f\t%.2f\t\t\t\n", theirs.Reader, theirs.Walsender)
}

// median is of the rounds that count.
func (t throughputResult) median(of func(round) float64) float64 {
	var values []float64
	for _, r := range t.Rounds {
		if r.Counts {
			values = append(values, of(r))
		}
	}
	return median(values)
}

func (l latencyResult) table(w io.Writer) {
	fmt.Fprintf(w, "\nCommit to acceptance at %.0f one-row transactions a second, %d events\n", l.Rate, l.Events)
	fmt.Fprintf(w, "p50 %.2f ms %s, p99 %.2f ms %s, slowest %.1f ms\n", l.P50, atMost(l.P50, mostP50, "%.0f"), l.P99, atMost(l.P99, mostP99, "%.0f"), l.Max)
	fmt.Fprintf(w, "an insert with its commit took p50 %.2f ms, p99 %.2f ms\n", l.InsertP50, l.InsertP99)
	fmt.Fprintf(w, "CPU, µs an event: outbox-cdc %.0f, walsender %.0f, recorder's backend %.0f, Kafka fake %.0f\n",
		l.CPU.Reader, l.CPU.Walsender, l.CPU.Recorder, l.CPU.Fake)
	remark := ""
	if !l.Quiet {
		remark = ": noisy"
	}
	fmt.Fprintf(w, "peak memory %.1f MiB; others used %.1f %% of the CPU%s\n", mebibytes(float64(l.PeakMemory)), 100*l.Others, remark)
}

func (m memoryResult) table(w io.Writer) {
	fmt.Fprintln(w, "\nPeak memory")
	columns(w, func(w io.Writer) {
		normal := mebibytes(m.normal())
		line := func(name string, r memoryRun, remark string) {
			peak := mebibytes(float64(r.Run.PeakMemory))
			fmt.Fprintf(w, "%s\t%d\t%d\t%.1f\t%.2f\t  %s\n", name, r.Events, r.Rows, peak, peak/normal, remark)
		}
		fmt.Fprintln(w, "\tevents\ta transaction\tMiB\tof normal\t")
		for _, r := range m.Normal {
			line("normal", r, "")
		}
		fmt.Fprintf(w, "median\t\t\t%.1f\t\t  %s\n", normal, atMost(normal, mebibytes(mostMemory), "%.0f"))
		of := func(r memoryRun) string {
			return atMost(mebibytes(float64(r.Run.PeakMemory))/normal, mostMemoryRatio, "%.2f")
		}
		line("unread WAL", m.Unread, of(m.Unread))
		line("one transaction", m.Transaction, of(m.Transaction))
	})
}

func mebibytes(bytes float64) float64 { return bytes / (1 << 20) }

// atLeast and atMost say what a figure must reach, and whether it does.
func atLeast(value, bound float64) string {
	switch {
	case bound == 0:
		return ""
	case value >= bound:
		return fmt.Sprintf("(≥ %.1f: reached)", bound)
	}
	return fmt.Sprintf("(≥ %.1f: MISSED)", bound)
}

func atMost(value, bound float64, format string) string {
	if value <= bound {
		return fmt.Sprintf("(≤ "+format+": reached)", bound)
	}
	return fmt.Sprintf("(≤ "+format+": MISSED)", bound)
}
