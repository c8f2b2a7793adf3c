package connector

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

// keepFor runs the keeper for d, in a bubble over a real PostgreSQL. The bubble's clock stands still while a statement runs.
func (b *connectorBench) keepFor(d time.Duration, prepare ...func(*Connector)) (took time.Duration, err error) {
	b.t.Helper()
	table := b.query("select 'event_outbox'::regclass::oid")
	synctest.Test(b.t, func(t *testing.T) {
		cfg := b.cfg
		cfg.Health, cfg.Metrics, cfg.Logger = &monitoring.Health{}, monitoring.NewMetrics("", nil), slog.New(slog.DiscardHandler)
		c := New(cfg)
		for _, f := range prepare {
			f(c)
		}
		db, perr := openPostgres(cfg.Name, cfg.Source)
		if perr != nil {
			t.Error(perr)
			return
		}
		defer db.close()
		c.db = db
		if perr := db.pool.QueryRow(t.Context(), "select $1::text::oid", table).Scan(&c.outbox.oid); perr != nil {
			t.Error(perr)
			return
		}
		ctx, cancel := context.WithTimeout(t.Context(), d)
		defer cancel()
		start := time.Now()
		err = c.runKeeper(ctx)
		took = time.Since(start)
	})
	return took, err
}

// The stream does not show which rows a publication leaves out. So the keeper checks the catalog.
func TestKeeperLooksForDrift(t *testing.T) {
	t.Parallel()
	b := newConnectorBench(t)
	b.exec("alter publication " + b.cfg.Source.Publication + " set (publish = 'update')")
	took, err := b.keepFor(time.Hour)
	if exitcode.Of(err) != exitcode.Config || !strings.Contains(err.Error(), "does not publish inserts") {
		t.Errorf("ended with %v, want exit code %d and the drift", err, exitcode.Config)
	}
	if took > driftEvery+time.Second {
		t.Errorf("found after %s, want 30 s at most", took)
	}
}

// The keeper notices when another table has taken the outbox's name: the rows of that table are not streamed.
func TestKeeperFindsTheOutboxReplaced(t *testing.T) {
	t.Parallel()
	b := newConnectorBench(t)
	took, err := b.keepFor(time.Hour, func(*Connector) {
		b.exec("create table eo2 (like event_outbox including all)")
		b.exec("begin; alter table event_outbox rename to eo_old; alter table eo2 rename to event_outbox; commit")
	})
	if exitcode.Of(err) != exitcode.Config || !strings.Contains(err.Error(), "is public.eo_old now") {
		t.Errorf("ended with %v, want exit code %d and the old table's name", err, exitcode.Config)
	}
	if took > driftEvery+time.Second {
		t.Errorf("found after %s, want 30 s at most", took)
	}
}

// When the outbox is renamed, its rows are still delivered. The log says so once, and /readyz shows it until the name is back.
func TestKeeperTellsThatTheOutboxLostItsName(t *testing.T) {
	t.Parallel()
	b := newConnectorBench(t)
	var log bytes.Buffer
	var c *Connector
	var shown []string
	_, err := b.keepFor(10*time.Minute, func(made *Connector) {
		c = made
		c.cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
		b.exec("alter table event_outbox rename to renamed")
		time.AfterFunc(5*time.Minute, func() {
			report := c.cfg.Health.Report()
			shown = append(shown, fmt.Sprint(report.Status, report.Components["outbox"].Detail))
			b.exec("alter table renamed rename to event_outbox")
		})
	})
	if err != nil {
		t.Error(err)
	}
	if n := strings.Count(log.String(), "lost its name"); n != 1 {
		t.Errorf("told %d times, want once: %s", n, log.String())
	}
	if len(shown) != 1 || !strings.HasPrefix(shown[0], "degradedtable public.event_outbox is called public.renamed now; its rows are still delivered") {
		t.Errorf("/readyz shows %q", shown)
	}
	if got := c.cfg.Health.Report().Components["outbox"]; got.Status != monitoring.LevelOK {
		t.Errorf("/readyz shows %+v after the name is back", got)
	}
}

// The keeper writes one heartbeat a minute and no more: each one writes WAL, and an idle server has to stay idle.
func TestHeartbeats(t *testing.T) {
	t.Parallel()
	b := newConnectorBench(t)
	b.exec("insert into outbox_processors (id, connector, processor_name, processor_type) values (1, 'test', 's', 'test')")
	b.exec("create table beats (n int)")
	b.exec("create function beat() returns trigger language plpgsql as 'begin insert into public.beats values (1); return new; end'")
	b.exec("create trigger beat after update of heartbeat_at on outbox_processors for each row execute function beat()")
	if _, err := b.keepFor(10*time.Minute - time.Second); err != nil {
		t.Error(err)
	}
	if got := b.query("select count(*) from beats"); got != "10" {
		t.Errorf("%s heartbeats in ten minutes, want 10", got)
	}
}

// What a sink has done stands in outbox_processors a minute later. What has not changed is not written, and stays.
func TestHeartbeatsHaveNumbers(t *testing.T) {
	t.Parallel()
	b := newConnectorBench(t)
	b.exec("insert into outbox_processors (id, connector, processor_name, processor_type) values (1, 'test', 's', 'test'), (2, 'test', 'gone', 'test'), (3, 'other', 's', 'test')")
	row := func(id int) string {
		return b.query(fmt.Sprintf(`select concat_ws(' ', metrics->>'delivered', metrics->>'failed', metrics->>'epoch', metrics->>'by', last_processed_at is not null,
			heartbeat_at is not null) from outbox_processors where id = %d`, id))
	}
	var mu sync.Mutex // the functions below have a connection and rows in common
	var rows []string
	at := func(after time.Duration, do func()) {
		time.AfterFunc(after, func() {
			mu.Lock()
			defer mu.Unlock()
			do()
		})
	}
	_, err := b.keepFor(5*time.Minute+time.Second, func(c *Connector) {
		state := c.sinks["s"].state
		c.life.streams(7)
		state.begin(2)
		at(30*time.Second, func() {
			state.answered(answer{counts: monitoring.Counts{Delivered: 3, Failed: 1}, cause: errors.New("500")})
		})
		at(59*time.Second, func() { rows = append(rows, row(1)) })
		at(61*time.Second, func() {
			rows = append(rows, row(1))
			b.exec(`update outbox_processors set metrics = '{"by": "a person"}', last_processed_at = null where id = 1`)
		})
		at(3*time.Minute, func() { // nothing has changed since
			rows = append(rows, row(1))
			state.answered(answer{counts: monitoring.Counts{Delivered: 4}})
		})
	})
	if err != nil {
		t.Error(err)
	}
	mu.Lock()
	defer mu.Unlock()
	rows = append(rows, row(1), row(2), row(3))
	want := []string{"0 0 7 f t", "3 1 7 t t", "a person f t", "7 1 7 t t", "f t", "f f"}
	if got := strings.Join(rows, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("outbox_processors had in turn\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}
