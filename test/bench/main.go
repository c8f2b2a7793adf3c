//go:build linux

// Command bench measures outbox-cdc beside pg_recvlogical, which reads the same unread WAL into nothing. Run it from the
// root of the repository, on a machine that does nothing else:
//
//	go run ./test/bench                   # throughput and latency
//	go run ./test/bench -sink kafka,redis_stream,webhook,event_bus
//	go run ./test/bench -only memory
//	go run ./test/bench -only backlog     # rows that were there before the slot, beside the same rows from the stream
//	go run ./test/bench -only sizing      # the figures of docs/sizing.md; -page writes them into it
//	go run ./test/bench -profile DIR      # one run of each kind, with a CPU profile of the connector; -only as well
//	go run ./test/bench -compare REVISION # the connector of another revision and this one, in turn; -pairs, -only as well
//
// It starts a PostgreSQL (fsync on, defaults otherwise) and, anew for each run, what the sink delivers to, in a process of
// its own: a Kafka fake, a Redis, a NATS server, or a receiver of webhooks that answers after a millisecond. Several sinks
// take turns within each round. All figures are of one machine and one hour: only their ratios carry over to others.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/test/process"
)

type options struct {
	rounds, events int
	rows           []int
	only           string
	sinks          []string
	output         string
	results        string
	profile        string
	compareWith    string // a revision
	pairs          int
	patience       time.Duration // how long to wait before a run until others use little of the CPU
	version        string
	dir            string
	others         float64
	page           string
}

// The parts that -only chooses from.
const (
	throughput = "throughput"
	latency    = "latency"
	memory     = "memory"
	sizing     = "sizing"
	jobs       = "backlog"
)

func parseOptions(args []string) (options, error) {
	o := options{rows: []int{100, 1}, patience: 30 * time.Second}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.IntVar(&o.rounds, "rounds", 5, "rounds that count, of pg_recvlogical and outbox-cdc each; 3 with several sinks")
	flags.IntVar(&o.events, "events", 200_000, "events of the backlog, 100000 with several sinks; the memory part also reads ten and five times as many")
	flags.Func("rows", "rows per transaction, as a list (default 100,1; 100 with several sinks)", func(s string) error {
		o.rows = nil
		for field := range strings.SplitSeq(s, ",") {
			n, err := strconv.Atoi(field)
			if err != nil || n < 1 {
				return fmt.Errorf("%q is no number of rows", field)
			}
			o.rows = append(o.rows, n)
		}
		return nil
	})
	flags.StringVar(&o.only, "only", "", "throughput, latency, memory, sizing or backlog (default throughput and latency; with -compare throughput)")
	flags.Func("sink", "the sinks to deliver to, as a list: kafka, redis_stream, webhook, event_bus (default kafka)", func(s string) error {
		o.sinks = process.List(s)
		for i, sink := range o.sinks {
			if !isSink(sink) || slices.Contains(o.sinks[:i], sink) {
				return fmt.Errorf("%q is none of kafka, redis_stream, webhook, event_bus, or is there twice", sink)
			}
		}
		return nil
	})
	flags.StringVar(&o.output, "o", "table", "what to print: table or json")
	flags.StringVar(&o.results, "results", "", "the `file` into which the results go as JSON (default bin/bench.json, with -compare bin/bench-compare.json)")
	flags.StringVar(&o.profile, "profile", "", "measure nothing, but write CPU profiles of the connector into this `directory`")
	flags.StringVar(&o.compareWith, "compare", "", "measure the connector of this `revision` and that of the working tree in turn")
	flags.IntVar(&o.pairs, "pairs", 5, "with -compare: pairs of runs that count")
	flags.StringVar(&o.version, "pg", "15", "major version of PostgreSQL")
	flags.StringVar(&o.page, "page", "", "with -only sizing: the Markdown `file` whose tables are replaced by what was measured")
	flags.Float64Var(&o.others, "others", 0.05, "share of the CPU that others may use in a round that counts")
	flags.StringVar(&o.dir, "dir", "", "where PostgreSQL's data go: a real disk (default the system's directory for temporary files)")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if len(o.sinks) == 0 {
		o.sinks = []string{config.SinkKafka}
	}
	given := map[string]bool{}
	flags.Visit(func(f *flag.Flag) { given[f.Name] = true })
	if len(o.sinks) > 1 {
		o.shorten(given)
	}
	errs := o.forComparison(given)
	if flags.NArg() > 0 {
		errs = append(errs, fmt.Errorf("unknown argument %q", flags.Arg(0)))
	}
	if o.rounds < 1 {
		errs = append(errs, errors.New("-rounds must be at least 1"))
	}
	for _, rows := range o.rows {
		if o.events < 2*rows || o.events%rows != 0 {
			errs = append(errs, fmt.Errorf("-events must be a multiple of %d, and at least two transactions", rows))
		}
	}
	if o.only == memory && len(o.sinks) > 1 {
		errs = append(errs, errors.New("memory is measured with one -sink"))
	}
	if given["page"] && o.page != "" && o.only != sizing {
		errs = append(errs, errors.New("-page goes with -only sizing"))
	}
	if o.only == sizing && given["compare"] {
		errs = append(errs, errors.New("-only sizing does not go with -compare"))
	}
	if o.output != "table" && o.output != "json" {
		errs = append(errs, fmt.Errorf("-o %q is neither table nor json", o.output))
	}
	switch o.only {
	case "", throughput, latency, memory, sizing, jobs:
	default:
		errs = append(errs, fmt.Errorf("-only %q is none of throughput, latency, memory, sizing, backlog", o.only))
	}
	return o, errors.Join(errs...)
}

// shorten sets lower defaults for several sinks: some are ten times slower than others, and a round of them takes long.
func (o *options) shorten(given map[string]bool) {
	if !given["rounds"] {
		o.rounds = 3
	}
	if !given["events"] {
		o.events = 100_000
	}
	if !given["rows"] {
		o.rows = []int{100}
	}
}

// forComparison sets the defaults that depend on whether two revisions are compared, and says what does not fit.
func (o *options) forComparison(given map[string]bool) (errs []error) {
	if !given["compare"] {
		if o.only == sizing {
			o.results = cmp.Or(o.results, "bin/sizing.json")
		}
		o.results = cmp.Or(o.results, "bin/bench.json")
		if given["pairs"] {
			errs = append(errs, errors.New("-pairs needs -compare"))
		}
		return errs
	}
	o.results = cmp.Or(o.results, "bin/bench-compare.json")
	o.only = cmp.Or(o.only, throughput)
	o.patience = 5 * time.Second // both runs of a pair meet the same noise
	if o.compareWith == "" {
		errs = append(errs, errors.New("name the revision to compare with: make bench-compare OLD=REVISION"))
	}
	if o.pairs < 1 {
		errs = append(errs, errors.New("-pairs must be at least 1"))
	}
	for _, other := range []string{"rounds", "profile"} {
		if given[other] {
			errs = append(errs, fmt.Errorf("-%s does not go with -compare", other))
		}
	}
	return errs
}

// bench is what all parts share.
type bench struct {
	options
	postgres  *servers.Postgres
	dir       string // holds binaries, configurations and logs; removed at the end
	cli       string // the product
	connector string // what is measured: the product, or the same with a profiler
	fake      string // the Kafka fake's
}

func main() {
	os.Exit(process.Program[options]{
		Parse: parseOptions, Run: run, Children: map[string]func([]string) error{receiverCommand: runReceiver},
	}.Main())
}

func run(ctx context.Context, o options) (err error) {
	dir, err := os.MkdirTemp("", "outbox-cdc-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := &bench{options: o, dir: dir}
	var old, now revision
	if o.compareWith != "" {
		if old, now, err = b.buildRevisions(ctx); err != nil {
			return err
		}
		b.cli = now.binary
	}
	if err := b.build(ctx); err != nil {
		return err
	}
	settings := map[string]string{
		"shared_buffers":         "256MB",
		"max_wal_size":           "64GB", // no checkpoint but those between the runs
		"checkpoint_timeout":     "1h",
		"track_commit_timestamp": "on", // latency counts from the commit
		"max_replication_slots":  strconv.Itoa(b.slots() + 8),
	}
	if o.only == sizing {
		settings["autovacuum"] = "off" // its WAL is not an event's
	}
	b.postgres, err = servers.StartPostgres(ctx, servers.PostgresOptions{Version: o.version, Dir: o.dir, Settings: settings})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.postgres.Close()) }()
	if _, err := os.Stat(b.yardstick()); err != nil {
		return fmt.Errorf("find pg_recvlogical of PostgreSQL %s: %w; install its client programs (Debian: apt-get install postgresql-client-%s)",
			b.postgres.Version(), err, o.version)
	}
	if o.profile != "" {
		return b.profiles(ctx)
	}
	if o.only == sizing {
		return b.runSizing(ctx)
	}
	if o.compareWith != "" {
		return b.runComparison(ctx, old, now)
	}
	results, err := b.measure(ctx)
	if err != nil {
		return err
	}
	return errors.Join(results.write(os.Stdout, o), results.check())
}

// slots is how many a database needs at most.
func (b *bench) slots() int {
	if b.compareWith != "" {
		return (1 + 2*len(b.sinks)) * (1 + b.pairs)
	}
	return (1 + len(b.sinks)) * b.attempts()
}

func (b *bench) measure(ctx context.Context) (results, error) {
	r := results{Machine: describeMachine(), Versions: b.versions(ctx), Command: os.Args}
	if b.only == "" || b.only == throughput {
		for _, rows := range b.rows {
			t, err := b.throughput(ctx, rows)
			if err != nil {
				return r, fmt.Errorf("throughput at %d rows a transaction: %w", rows, err)
			}
			r.Throughput = append(r.Throughput, t)
		}
	}
	if b.only == "" || b.only == latency {
		l, err := b.latency(ctx)
		if err != nil {
			return r, fmt.Errorf("latency: %w", err)
		}
		r.Latency = l
	}
	if b.only == jobs {
		j, err := b.backlog(ctx)
		if err != nil {
			return r, fmt.Errorf("backlog: %w", err)
		}
		r.Backlog = &j
	}
	if b.only == memory {
		m, err := b.memory(ctx)
		if err != nil {
			return r, fmt.Errorf("memory: %w", err)
		}
		r.Memory = &m
	}
	return r, nil
}

// build makes the programs to measure from the sources at hand; a comparison has built the product already.
func (b *bench) build(ctx context.Context) (err error) {
	if b.fake, err = process.Build(ctx, ".", process.KafkaFake, b.dir); err != nil {
		return err
	}
	if b.cli == "" {
		if b.cli, err = process.Build(ctx, ".", process.Product, b.dir); err != nil {
			return err
		}
	}
	b.connector = b.cli
	if b.profile != "" {
		b.connector, err = process.Build(ctx, ".", "./test/bench/connector", b.dir)
	}
	return err
}
