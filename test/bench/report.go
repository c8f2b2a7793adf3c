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
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/pyairtable-compose/outbox-cdc/config"
)

// What must be reached, on two cores with nothing else to do.
const (
	mostMemory      = 128 << 20
	mostMemoryRatio = 1.25
)

// bounds are what the figures of a sink must reach. 0 is no bound.
type bounds struct {
	ratio    map[int]float64 // of pg_recvlogical's time to ours, at least, by rows per transaction
	ofKafka  float64         // its rate to that of Kafka, at least
	rate     float64         // events a second, at least
	cpu      float64         // µs an event of the connector, at most
	p50, p99 float64         // ms, at most
}

var boundsOf = map[string]bounds{
	config.SinkKafka:    {ratio: map[int]float64{100: 0.6, 1: 1.3}, cpu: 5, p50: 2, p99: 6},
	config.SinkRedis:    {ofKafka: 0.6, p99: 8},
	config.SinkWebhook:  {rate: 5000},
	config.SinkEventBus: {p99: 8},
}

type results struct {
	Machine    machine            `json:"machine"`
	Versions   versions           `json:"versions"`
	Command    []string           `json:"command"`
	Throughput []throughputResult `json:"throughput,omitempty"`
	Latency    []latencyResult    `json:"latency,omitempty"`
	Memory     *memoryResult      `json:"memory,omitempty"`
	Backlog    *backlogResult     `json:"backlog,omitempty"`
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
			for _, run := range round.Connectors {
				c = c.add(run.Counts)
			}
		}
	}
	for _, l := range r.Latency {
		c = c.add(l.Counts)
	}
	if r.Memory != nil {
		for _, run := range append(r.Memory.Normal, r.Memory.Unread, r.Memory.Transaction) {
			c = c.add(run.Run.Counts)
		}
	}
	if r.Backlog != nil {
		c = c.add(r.Backlog.Stream.Counts).add(r.Backlog.Counts)
	}
	return c
}

// check fails if events were lost, misordered or repeated. It judges no speed, which depends on the machine.
func (r results) check() error { return r.counts().check() }

func (c counts) check() error {
	if c != (counts{}) {
		return fmt.Errorf("%d events are missing, %d misordered, %d duplicated, %d not in the ledger", c.Missing, c.Misordered, c.Duplicated, c.Unrecorded)
	}
	return nil
}

func (r results) write(w io.Writer, o options) error { return writeResults(w, o, r, r.table) }

// writeResults writes results as JSON into their file, and prints them as JSON or as a table.
func writeResults(w io.Writer, o options, results any, table func(io.Writer)) error {
	data, err := json.MarshalIndent(results, "", "  ")
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
	table(w)
	return nil
}

// columns aligns what write writes: each cell ends with a tab, and what follows the last tab of a line is a remark.
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
	if len(r.Latency) > 1 {
		compareLatencies(w, r.Latency)
	}
	for _, l := range r.Latency {
		l.table(w)
	}
	if r.Memory != nil {
		r.Memory.table(w)
	}
	if r.Backlog != nil {
		r.Backlog.write(w)
	}
	c := r.counts()
	fmt.Fprintf(w, "\nMissing %d, misordered %d, duplicated %d, not in the ledger %d\n", c.Missing, c.Misordered, c.Duplicated, c.Unrecorded)
}

func (t throughputResult) table(w io.Writer) {
	fmt.Fprintf(w, "\n%d events of %d bytes of payload, %d a transaction\n", t.Events, t.PayloadBytes, t.Rows)
	if len(t.Rounds) == 0 {
		return
	}
	if len(t.Rounds[0].Connectors) > 1 {
		columns(w, t.compare)
	}
	for i, c := range t.Rounds[0].Connectors {
		if len(t.Rounds[0].Connectors) > 1 {
			fmt.Fprintf(w, "\n%s\n", c.Sink)
		}
		columns(w, func(w io.Writer) { t.roundsTable(w, i) })
		columns(w, func(w io.Writer) { t.cpuTable(w, i) })
		peak := mebibytes(t.median(func(r round) float64 { return float64(r.Connectors[i].PeakMemory) }))
		fmt.Fprintf(w, "peak memory %.1f MiB %s\n", peak, atMost(peak, mebibytes(mostMemory), "%.0f"))
	}
}

func (t throughputResult) seconds(sink int) float64 {
	return t.median(func(r round) float64 { return r.Connectors[sink].Seconds })
}

// compare shows all sinks in one table. A ratio is the median of the ratios within each round.
func (t throughputResult) compare(w io.Writer) {
	sinks := t.Rounds[0].Connectors
	fmt.Fprint(w, "medians\tevents/s\tof pg_recvlogical\t")
	for _, c := range sinks {
		fmt.Fprintf(w, "of %s\t", c.Sink)
	}
	fmt.Fprintln(w)
	for i, c := range sinks {
		rate := float64(t.Events) / t.seconds(i)
		fmt.Fprintf(w, "%s\t%.0f\t%.2f\t", c.Sink, rate, t.median(func(r round) float64 { return r.Connectors[i].Ratio }))
		remark := []string{atLeast(rate, boundsOf[c.Sink].rate, "%.0f/s")}
		for j, other := range sinks {
			ratio := t.median(func(r round) float64 { return r.Connectors[j].Seconds / r.Connectors[i].Seconds })
			fmt.Fprintf(w, "%.2f\t", ratio)
			if other.Sink == config.SinkKafka && t.Rows == 100 {
				remark = append(remark, atLeast(ratio, boundsOf[c.Sink].ofKafka, "%.1f of kafka"))
			}
		}
		fmt.Fprintln(w, " ", strings.Join(remark, ""))
	}
}

func (t throughputResult) roundsTable(w io.Writer, sink int) {
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
		line(strconv.Itoa(i+1), r.Yardstick.Seconds, r.Connectors[sink].Seconds, r.Connectors[sink].Ratio, fmt.Sprintf("%.1f %%", 100*r.others()), remark)
	}
	ratio := t.median(func(r round) float64 { return r.Connectors[sink].Ratio })
	least := boundsOf[t.Rounds[0].Connectors[sink].Sink].ratio[t.Rows]
	line("median", t.median(func(r round) float64 { return r.Yardstick.Seconds }), t.seconds(sink), ratio, "", atLeast(ratio, least, "%.1f"))
}

func (t throughputResult) cpuTable(w io.Writer, sink int) {
	// Each process has a median of its own, so the medians of a line may be of different rounds.
	median := func(run func(round) cpu) cpu {
		of := func(part func(cpu) float64) float64 { return t.median(func(r round) float64 { return part(run(r)) }) }
		return cpu{
			of(func(c cpu) float64 { return c.Reader }), of(func(c cpu) float64 { return c.Walsender }),
			of(func(c cpu) float64 { return c.Recorder }), of(func(c cpu) float64 { return c.Destination }),
		}
	}
	ours, theirs := median(func(r round) cpu { return r.Connectors[sink].CPU }), median(func(r round) cpu { return r.Yardstick.CPU })
	name := t.Rounds[0].Connectors[sink].Sink
	fmt.Fprintf(w, "CPU, µs an event\treader\twalsender\trecorder's backend\t%s\t\n", destinationOf(name))
	fmt.Fprintf(w, "outbox-cdc\t%.2f\t%.2f\t%.2f\t%.2f\t  %s\n", ours.Reader, ours.Walsender, ours.Recorder, ours.Destination,
		atMost(ours.Reader, boundsOf[name].cpu, "%.0f"))
	fmt.Fprintf(w, "pg_recvlogical\t%.2f\t%.2f\t\t\t\n", theirs.Reader, theirs.Walsender)
}

// median returns the median of a figure over the rounds that count.
func (t throughputResult) median(of func(round) float64) float64 {
	var values []float64
	for _, r := range t.Rounds {
		if r.Counts {
			values = append(values, of(r))
		}
	}
	return median(values)
}

// compareLatencies shows the latencies of all sinks in one table.
func compareLatencies(w io.Writer, all []latencyResult) {
	fmt.Fprintln(w, "\nCommit to acceptance, ms")
	kafka := slices.IndexFunc(all, func(l latencyResult) bool { return l.Sink == config.SinkKafka })
	columns(w, func(w io.Writer) {
		fmt.Fprintln(w, "\tp50\tp99\tp99 of kafka\tDeliver p50\tp99\tinsert p50\tp99\tothers\t")
		for _, l := range all {
			ratio := ""
			if kafka >= 0 {
				ratio = fmt.Sprintf("%.2f", l.P99/all[kafka].P99)
			}
			fmt.Fprintf(w, "%s\t%.2f\t%.2f\t%s\t%.2f\t%.2f\t%.2f\t%.2f\t%.1f %%\t  %s\n", l.Sink, l.P50, l.P99, ratio,
				l.DeliverP50, l.DeliverP99, l.InsertP50, l.InsertP99, 100*l.Others, atMost(l.P99, boundsOf[l.Sink].p99, "%.0f"))
		}
	})
}

func (l latencyResult) table(w io.Writer) {
	most := boundsOf[l.Sink]
	fmt.Fprintf(w, "\nCommit to acceptance by %s at %.0f one-row transactions a second, %d events\n", l.Sink, l.Rate, l.Events)
	fmt.Fprintf(w, "p50 %.2f ms %s, p99 %.2f ms %s, slowest %.1f ms\n", l.P50, atMost(l.P50, most.p50, "%.0f"), l.P99, atMost(l.P99, most.p99, "%.0f"), l.Max)
	fmt.Fprintf(w, "a Deliver, which is part of it, took p50 %.2f ms, p99 %.2f ms\n", l.DeliverP50, l.DeliverP99)
	fmt.Fprintf(w, "an insert with its commit took p50 %.2f ms, p99 %.2f ms\n", l.InsertP50, l.InsertP99)
	fmt.Fprintf(w, "CPU, µs an event: outbox-cdc %.0f, walsender %.0f, recorder's backend %.0f, %s %.0f\n",
		l.CPU.Reader, l.CPU.Walsender, l.CPU.Recorder, destinationOf(l.Sink), l.CPU.Destination)
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

// atLeast and atMost say what a figure must reach, and whether it does. A bound of 0 is none.
func atLeast(value, bound float64, format string) string {
	if value >= bound {
		return verdict("≥ "+format+": reached", bound)
	}
	return verdict("≥ "+format+": MISSED", bound)
}

func atMost(value, bound float64, format string) string {
	if value <= bound {
		return verdict("≤ "+format+": reached", bound)
	}
	return verdict("≤ "+format+": MISSED", bound)
}

func verdict(format string, bound float64) string {
	if bound == 0 {
		return ""
	}
	return fmt.Sprintf("("+format+")", bound)
}
