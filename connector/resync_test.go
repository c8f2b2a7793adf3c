package connector

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode/exitcodetest"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/provision"
)

// A slot that is lost again and again is made anew after longer and longer pauses, and /readyz says so meanwhile.
func TestResyncPauses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		lost := exitcode.Errorf(exitcode.SlotLost, "the slot is gone")
		d := &refusingDatabase{preflightSays: func() error { return lost }}
		ctx, cancel := context.WithCancel(t.Context())
		health := &monitoring.Health{}
		var at []time.Duration
		c := newConnector(Config{
			Source: Source{DSN: "postgres://u:p@h/d", ReplicationDSN: "postgres://u:p@h/d"}, Health: health, Logger: slog.New(slog.DiscardHandler),
			Resync: func(context.Context) error {
				if at = append(at, time.Since(began)); len(at) == 9 {
					cancel()
				}
				return nil
			},
		}, func() (database, error) { return d, nil })
		ended := make(chan error, 1)
		go func() { ended <- c.Run(ctx) }()
		time.Sleep(30 * time.Second)
		if got := health.Report(); got.Ready || !strings.Contains(got.Components["session"].Detail, "the slot is made anew in 1m0s (source.on_slot_loss): the slot is gone") {
			t.Errorf("%+v", got)
		}
		if got := c.Status().Mended.Slots; got != 1 {
			t.Errorf("%d slots were made anew, want 1", got)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if got := c.Status().Mended.Slots; got != 8 {
			t.Errorf("%d slots were made anew, want 8: the process ended during the ninth", got)
		}
		minutes := []int{}
		for _, d := range at {
			minutes = append(minutes, int(d.Round(time.Second).Minutes()))
		}
		if diff := cmp.Diff([]int{0, 1, 3, 7, 15, 31, 63, 123, 183}, minutes); diff != "" {
			t.Error(diff)
		}
	})
}

// What no new slot mends ends the process, as without a resync.
func TestResyncIsNoRemedyForAll(t *testing.T) {
	t.Parallel()
	lost := exitcode.Errorf(exitcode.SlotLost, "a row that cannot be decoded")
	for name, test := range map[string]struct {
		why    error
		answer error
		asked  int
	}{
		"the slot is sound":     {lost, provision.ErrSound, 2}, // the first time another process may have made it anew
		"it is another server":  {lost, exitcode.Errorf(exitcode.SlotLost, "another cluster"), 1},
		"a right is missing":    {lost, exitcode.Errorf(exitcode.Privilege, "no right"), 1},
		"another cause":         {exitcode.Errorf(exitcode.Config, "no table"), nil, 0},
		"PostgreSQL is away so": {lost, errors.New("away"), 5},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				asked := 0
				c := newConnector(Config{
					Source: Source{DSN: "postgres://u:p@h/d", ReplicationDSN: "postgres://u:p@h/d"}, Health: &monitoring.Health{}, Logger: slog.New(slog.DiscardHandler),
					Resync: func(context.Context) error {
						if asked++; asked == 5 {
							cancel()
						}
						return test.answer
					},
				}, func() (database, error) {
					return &refusingDatabase{preflightSays: func() error { return test.why }}, nil
				})
				err := c.Run(ctx)
				if asked == 5 {
					if err != nil {
						t.Error(err)
					}
				} else {
					exitcodetest.Want(t, err, exitcode.Of(test.why), test.why.Error())
				}
				if asked != test.asked {
					t.Errorf("asked %d times, want %d", asked, test.asked)
				}
				if got := c.Status().Mended.Slots; got != 0 {
					t.Errorf("%d slots were made anew, want none", got)
				}
				cancel()
			})
		})
	}
}

// A connector whose slot is gone makes it anew, files the jobs, and streams.
func TestResyncUnattended(t *testing.T) {
	t.Parallel()
	b := newConnectorBench(t)
	b.exec("insert into outbox_processors (connector, processor_name, processor_type) values ('test', 's', 'test')")
	b.exec("select pg_drop_replication_slot('" + b.cfg.Source.Slot + "')")
	prefix := b.query("select prefix_lsn::text from outbox_checkpoints")
	b.cfg.Resync = func(ctx context.Context) error {
		_, err := provision.Resync(ctx, provision.ResyncConfig{
			SetupConfig: provision.SetupConfig{
				Source: b.cfg.Source.provision(), DSN: b.cfg.Source.DSN, ReplicationDSN: b.cfg.Source.DSN,
				Connector: "test", Processors: []ledger.Processor{{Name: "s", Type: "test"}},
			}, IfLost: true,
		})
		return err
	}
	r := b.run()
	b.waitFor("the stream", r.streaming)
	if got := b.query("select string_agg(reason || ' ' || base_lsn, ', ') from outbox_backlog"); got != "resync "+prefix {
		t.Errorf("jobs %q, the prefix was %s", got, prefix)
	}
	r.stop()
}

// A sink that is new and has "backlog: all" has a job from the first session on, and only from that.
func TestBacklogOfANewSink(t *testing.T) {
	t.Parallel()
	b := newConnectorBench(t)
	b.cfg.Sinks[0].Backlog = true
	prefix := b.query("select prefix_lsn::text from outbox_checkpoints")
	for range 2 {
		r := b.run()
		b.waitFor("the stream", r.streaming)
		r.stop()
	}
	if got := b.query("select string_agg(concat_ws(' ', reason, base_lsn, start_lsn, since, snapshot_xmax is not null), ', ') from outbox_backlog join outbox_processors p on p.id = processor_id"); got != "sink 0/0 "+prefix+" -infinity t" {
		t.Errorf("%q, the prefix was %s", got, prefix)
	}
}
