//go:build linux

// Command soak has outbox-cdc live through what lasts long, and compares it with what it must reach. Run it from the root of
// the repository, on a machine that does nothing else:
//
//	go run ./test/soak                             # the parts one after the other
//	go run ./test/soak -only kafka -away 2m        # one of: kafka, redis, snapshot, memory, idle, refused, retention, cleanup
//
// kafka, redis: the one sink is away for a while (Kafka falls silent, Redis refuses connections) under a steady load, the other
// is well. snapshot: redis again, with a session that holds an old snapshot throughout, so that vacuum removes nothing.
// memory: the peak with a million parked rows beside that with ten thousand. idle: what a connector asks the server whose
// parked rows are not due. refused: one message in a hundred is refused once, at 2,000 a second. retention: 2,000 events a second for
// 20 minutes, one a transaction, while the connector deletes what is a minute old. cleanup: the latency of 500 events a second while a
// million old rows are deleted, beside that while none is.
//
// It starts a PostgreSQL (fsync on, checkpoints as by default), a Kafka fake and a Redis. All figures are of one machine and hour.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/test/process"
)

type options struct {
	away, before time.Duration
	rate         int
	only         []string
	reset        time.Duration
	rows         int
	// Of the retention part.
	duration      time.Duration
	retentionRate int
	version       string
	dir           string
	results       string
}

var parts = []string{"kafka", "redis", "snapshot", "memory", "idle", "refused", "retention", "cleanup"}

func parseOptions(args []string) (options, error) {
	o := options{only: parts}
	flags := flag.NewFlagSet("soak", flag.ContinueOnError)
	flags.DurationVar(&o.away, "away", 10*time.Minute, "how long a sink is away")
	flags.DurationVar(&o.before, "before", 20*time.Second, "how long all is well before; its latencies are what the others are compared with")
	flags.IntVar(&o.rate, "rate", 1000, "events a second, one a transaction")
	flags.DurationVar(&o.reset, "reset", 10*time.Second, "breaker.reset_timeout")
	flags.IntVar(&o.rows, "rows", 1_000_000, "parked rows of the memory part, old rows of the cleanup part")
	flags.DurationVar(&o.duration, "duration", 20*time.Minute, "how long the retention part writes events")
	flags.IntVar(&o.retentionRate, "retention-rate", retentionRate, "events a second of the retention part, one a transaction")
	flags.StringVar(&o.version, "pg", "15", "major version of PostgreSQL")
	flags.StringVar(&o.dir, "dir", "", "where PostgreSQL's data go: a real disk (default the system's directory for temporary files)")
	flags.StringVar(&o.results, "results", "bin/soak.json", "the `file` into which the figures go as JSON")
	flags.Func("only", "parts, as a list (default "+strings.Join(parts, ",")+")", func(s string) error {
		o.only = process.List(s)
		for _, part := range o.only {
			if !slices.Contains(parts, part) {
				return fmt.Errorf("%q is none of %s", part, strings.Join(parts, ", "))
			}
		}
		if len(o.only) == 0 {
			o.only = parts
		}
		return nil
	})
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unknown argument %q", flags.Arg(0))
	}
	if o.duration < sampleEvery || o.retentionRate < 1 {
		return o, fmt.Errorf("-duration is at least %s, -retention-rate at least 1", sampleEvery)
	}
	if o.away < 5*time.Second || o.before < 5*time.Second || o.rate < 1 || o.rows < 10_000 {
		return o, errors.New("-away and -before are at least 5s, -rate is at least 1, -rows at least 10000")
	}
	return o, nil
}

// soak is what all parts share.
type soak struct {
	options
	postgres  *servers.Postgres
	temporary string // binaries, configurations and logs
	cli, fake string
	report    report
}

func main() {
	os.Exit(process.Program[options]{
		Parse: parseOptions, Run: run, Children: map[string]func([]string) error{refuserCommand: runRefuser},
	}.Main())
}

func run(ctx context.Context, o options) (err error) {
	dir, err := os.MkdirTemp("", "outbox-cdc-soak-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	s := &soak{options: o, temporary: dir}
	if s.cli, err = process.Build(ctx, ".", process.Product, dir); err != nil {
		return err
	}
	if s.fake, err = process.Build(ctx, ".", process.KafkaFake, dir); err != nil {
		return err
	}
	s.postgres, err = servers.StartPostgres(ctx, servers.PostgresOptions{Version: o.version, Dir: o.dir, Settings: map[string]string{
		"shared_buffers":           "256MB",
		"track_commit_timestamp":   "on", // latency counts from the commit
		"shared_preload_libraries": "pg_stat_statements",
	}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.postgres.Close()) }()
	for _, part := range o.only {
		process.Note("%s", part)
		if err := s.part(ctx, part); err != nil {
			return fmt.Errorf("%s: %w", part, err)
		}
	}
	err = errors.Join(s.report.write(o.results), s.report.failed())
	verdict := "PASS"
	if err != nil {
		verdict = "FAIL"
	}
	fmt.Println(verdict)
	return err
}

func (s *soak) part(ctx context.Context, name string) error {
	switch name {
	case "memory":
		return s.memory(ctx)
	case "idle":
		return s.idle(ctx)
	case "refused":
		return s.refused(ctx)
	case "retention":
		return s.retention(ctx)
	case "cleanup":
		return s.cleanup(ctx)
	}
	return s.awayPart(ctx, name)
}
