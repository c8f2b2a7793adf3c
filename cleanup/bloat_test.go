package cleanup_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/cleanup"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// bloated is a slowDatabase of which vacuum says something.
type bloated struct {
	slowDatabase
	rows  func() ledger.DeadRows
	looks int
	wrote int
}

func (d *bloated) DeadRows(context.Context) ([]ledger.DeadRows, error) {
	d.looks++
	r := d.rows()
	r.Table, r.At = "public.event_outbox", time.Now()
	return []ledger.DeadRows{r}, nil
}

func (d *bloated) WriteReport(context.Context, []byte) error {
	d.wrote++
	return nil
}

func TestBloat(t *testing.T) {
	t.Parallel()
	ago := func(d time.Duration) *time.Time { return new(time.Now().Add(-d)) }
	holder := func(since *time.Time) *ledger.VacuumHolder {
		return &ledger.VacuumHolder{Kind: ledger.HoldsTransaction, PID: 4711, Since: since}
	}
	for name, test := range map[string]struct {
		rows func() ledger.DeadRows
		// from says after which time it is told, or -1 for never.
		from time.Duration
		want string
	}{
		"few":             {func() ledger.DeadRows { return ledger.DeadRows{Dead: 50_000, AutovacuumOff: true} }, -1, ""},
		"few of the rows": {func() ledger.DeadRows { return ledger.DeadRows{Dead: 60_000, Live: 120_000, AutovacuumOff: true} }, -1, ""},
		"vacuum comes":    {func() ledger.DeadRows { return ledger.DeadRows{Dead: 60_000, VacuumedAt: ago(time.Minute)} }, -1, ""},
		"vacuumed by hand": {func() ledger.DeadRows {
			return ledger.DeadRows{Dead: 60_000, VacuumedAt: ago(time.Minute), AutovacuumOff: true}
		}, -1, ""},
		"off": {func() ledger.DeadRows { return ledger.DeadRows{Dead: 60_000, AutovacuumOff: true} }, 0, "60,000 deleted rows of public.event_outbox are not vacuumed away: autovacuum is off"},
		"no vacuum": {
			func() ledger.DeadRows { return ledger.DeadRows{Dead: 1_200_000, VacuumedAt: ago(time.Hour)} }, 10 * time.Minute,
			"1,200,000 deleted rows of public.event_outbox are not vacuumed away: the last vacuum was at 1999-12-31 23:10:00Z",
		},
		"never": {func() ledger.DeadRows { return ledger.DeadRows{Dead: 60_000} }, 10 * time.Minute, "no vacuum has ended yet"},
		"held": {func() ledger.DeadRows {
			return ledger.DeadRows{Dead: 60_000, VacuumedAt: ago(time.Second), Holder: holder(new(time.Date(1999, 12, 31, 23, 55, 0, 0, time.UTC)))}
		}, 5 * time.Minute, "cannot be vacuumed away: pid 4711 has had a transaction open since 1999-12-31 23:55:00Z"},
		"others each time": {func() ledger.DeadRows {
			return ledger.DeadRows{Dead: 60_000, VacuumedAt: ago(time.Second), Holder: holder(ago(2 * time.Minute))}
		}, -1, ""},
		"held, and nobody knows since when": {func() ledger.DeadRows {
			return ledger.DeadRows{Dead: 60_000, VacuumedAt: ago(time.Second), Holder: holder(nil)}
		}, 10 * time.Minute, "pid 4711 has had a transaction open for long"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { // which begins at 2000-01-01 00:00 UTC
				d := &bloated{slowDatabase: slowDatabase{&slowOutbox{}}, rows: test.rows}
				c := cleanup.New(cleanup.Config{Retention: cleanup.Retention{Outbox: 7 * 24 * time.Hour, Ledger: cleanup.Forever}, Database: d})
				began := time.Now()
				for ; time.Since(began) < 70*time.Minute; time.Sleep(30 * time.Second) {
					r, err := c.Pass(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					after := time.Since(began)
					if told := len(r.Bloat) > 0; told != (test.from >= 0 && after >= test.from) {
						t.Fatalf("after %s: told %v, want from %s", after, told, test.from)
					}
					for i := range r.Bloat {
						if after == test.from && !strings.Contains(r.Bloat[i].String(), test.want) {
							t.Errorf("it says %s, want %s", r.Bloat[i].String(), test.want)
						}
						if r.Bloat[i].Long() != (after >= time.Hour) {
							t.Errorf("after %s: long %v", after, r.Bloat[i].Long())
						}
					}
				}
				if d.looks > 70 || d.wrote > 3 {
					t.Errorf("%d looks, %d reports", d.looks, d.wrote)
				}
				d.rows = func() ledger.DeadRows { return ledger.DeadRows{} }
				time.Sleep(time.Minute)
				if r, err := c.Pass(t.Context()); err != nil || len(r.Bloat) > 0 {
					t.Errorf("at the next look: %+v, %v", r.Bloat, err)
				}
			})
		})
	}
}

// On a real server a transaction keeps rows that were deleted from vacuum, and the report says so.
func TestBloatOnARealServer(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	reader := s.db.Conn(t)
	s.exec("alter table event_outbox set (autovacuum_enabled = off)")
	s.events(50_010, 2*time.Hour)
	s.settle()
	if _, err := reader.Exec(t.Context(), "begin isolation level repeatable read; select from event_outbox limit 1"); err != nil {
		t.Fatal(err)
	}
	c := cleanup.New(cleanup.Config{Retention: cleanup.Retention{Outbox: time.Hour, Ledger: cleanup.Forever}, Database: s.database()})
	if r, err := c.Pass(t.Context()); err != nil || r.Outbox.Deleted != 50_010 {
		t.Fatalf("%+v, %v", r, err)
	}
	// The server counts late, and PostgreSQL 14 only when the session that has deleted has something else to do.
	for deadline := time.Now().Add(time.Minute); s.count("select pg_stat_get_dead_tuples('event_outbox'::regclass)") < 50_010; {
		if time.Now().After(deadline) {
			t.Fatal("the server does not count the deleted rows")
		}
		s.exec("select pg_sleep(0.6)") // a session of 14 says what it has done at most twice a second (PGSTAT_STAT_INTERVAL)
		if _, err := c.Pass(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	c = cleanup.New(cleanup.Config{Retention: cleanup.Retention{Outbox: time.Hour, Ledger: cleanup.Forever}, Database: s.database()})
	r, err := c.Pass(t.Context())
	if err != nil || len(r.Bloat) != 1 || r.Bloat[0].Table != "public.event_outbox" || !r.Bloat[0].AutovacuumOff || r.Bloat[0].Dead < 50_010 || r.Bloat[0].Long() {
		t.Fatalf("%+v, %v", r.Bloat, err)
	}
	if n := s.count(fmt.Sprintf("select count(*) from outbox_retention where report -> 'bloat' -> 0 -> 'vacuum' ->> 'dead_rows' = '%d'", r.Bloat[0].Dead)); n != 1 {
		t.Error("it is not in outbox_retention")
	}
}
