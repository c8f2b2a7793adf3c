package cleanup_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/cleanup"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/migrations"
)

// newDays is a server whose outbox is by day, with three days of long ago.
func newDays(t *testing.T) *server {
	t.Helper()
	s := &server{t: t, db: pgtest.Unmigrated(t)}
	if err := migrations.Apply(context.Background(), s.db.DSN, migrations.Options{Partitioned: true}); err != nil {
		t.Fatal(err)
	}
	conn := s.db.Conn(t)
	s.exec = func(sql string, args ...any) {
		t.Helper()
		if _, err := conn.Exec(context.Background(), sql, args...); err != nil {
			t.Fatal(err)
		}
	}
	s.exec(`insert into outbox_checkpoints (slot_name, state, system_identifier, timeline, prefix_lsn, prefix_index, confirmed_lsn, epoch, slot_epoch)
		values ('slot', 'ready', '42', 1, '0/64', -1, '0/64', 3, 3)`)
	s.exec("select from outbox_make_event_partitions('2020-01-01Z', 2)")
	return s
}

// of inserts events of a day.
func (s *server) of(n int, at string) {
	s.t.Helper()
	s.exec(`insert into event_outbox (aggregate_type, aggregate_id, event_type, payload, created_at)
		select 'order', 'a', 'made', '{}', $2::text::timestamptz + i * interval '1 ms' from generate_series(1, $1::int) i`, n, at)
}

// Days of which all rows may go are dropped; one with a row that has to stay is not, and its other rows are deleted. A long reader
// delays a day, and it is not looked at again. What is old only in part stays whole.
func TestDaysAreDropped(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		prepare string // the second day has a row that has to stay
		dropped []string
		left    int64
	}{
		"all settled":          {"select", []string{"event_outbox_20200101", "event_outbox_20200102", "event_outbox_20200103"}, 0},
		"an unaccounted row":   {"delete from outbox_delivery_log where event_id = (select id from event_outbox where created_at > '2020-01-02Z' order by created_at limit 1)", []string{"event_outbox_20200101", "event_outbox_20200103"}, 1},
		"a row not settled":    {"update outbox_delivery_log set commit_lsn = '0/99' where event_id = (select id from event_outbox where created_at > '2020-01-02Z' order by created_at offset 6000 limit 1)", []string{"event_outbox_20200101", "event_outbox_20200103"}, 1},
		"a second slot behind": {"insert into outbox_checkpoints (slot_name, state, prefix_lsn, prefix_index, confirmed_lsn, epoch, slot_epoch) values ('second', 'ready', '0/5F', -1, '0/0', 3, 3)", nil, 6502 + 2000},
		"an unfinished job":    {"insert into outbox_backlog (processor_id, mode, status) values (1, 'missing', 'running')", nil, 6502 + 2000},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newDays(t)
			s.of(2000, "2020-01-01 10:00Z")
			s.of(6500, "2020-01-02 10:00Z")
			s.of(2, "2020-01-03 10:00Z")
			s.settle()
			s.exec(test.prepare)
			config := cleanup.Config{Retention: cleanup.Retention{Outbox: 7 * 24 * time.Hour, Ledger: cleanup.Forever}, Database: s.database()}
			dry, err := cleanup.New(config).DryRun(t.Context(), 0)
			if err != nil || !slices.Equal(dry.Outbox.Partitions.Dropped, test.dropped) || s.count("select count(*) from event_outbox") != 8502 {
				t.Errorf("dry run: %+v, %v", dry, err)
			}
			r, err := cleanup.New(config).Pass(t.Context())
			if err != nil || !slices.Equal(r.Outbox.Partitions.Dropped, test.dropped) || r.Outbox.Deleted != 8502-test.left {
				t.Errorf("%+v, %v", r, err)
			}
			if r.Outbox.Deleted != dry.Outbox.Deleted || r.Outbox.Kept != dry.Outbox.Kept || r.Outbox.Partitions.Stays != dry.Outbox.Partitions.Stays {
				t.Errorf("dry run: %+v, pass: %+v", dry.Outbox, r.Outbox)
			}
			if left := s.count("select count(*) from event_outbox"); left != test.left {
				t.Errorf("%d rows are left, want %d", left, test.left)
			}
		})
	}
}

// Somebody who reads for long delays a day and its log, and nothing else: other rows go, and the day goes when the reader has gone,
// without a new look at its rows.
func TestDayWaitsForAReader(t *testing.T) {
	t.Parallel()
	s := newDays(t)
	s.of(2000, "2020-01-02 10:00Z")
	s.of(10, "1999-01-01 10:00Z") // in the default partition
	s.settle()
	c := cleanup.New(cleanup.Config{Retention: cleanup.Retention{Outbox: 7 * 24 * time.Hour, Ledger: cleanup.Forever}, Database: s.database()})
	reader := s.db.Conn(t)
	pgtest.Exec(t, reader, "begin")
	pgtest.Exec(t, reader, "select count(*) from event_outbox")
	for i := range 2 {
		r, err := c.Pass(t.Context())
		if err != nil || len(r.Outbox.Partitions.Dropped) > 0 || !strings.HasPrefix(r.Outbox.Partitions.Stays, "event_outbox_20200102: busy: somebody uses it: pid ") || r.FromStart != (i == 0) {
			t.Errorf("pass %d: %+v, %v", i, r, err)
		}
		if n := s.count("select count(*) from event_outbox"); n != 2000 {
			t.Errorf("pass %d: %d rows are left", i, n)
		}
	}
	pgtest.Exec(t, reader, "rollback")
	// A new look at the rows would find one that has to stay.
	s.exec("delete from outbox_delivery_log where event_id = (select id from event_outbox order by created_at offset 1000 limit 1)")
	r, err := c.Pass(t.Context())
	if err != nil || !slices.Equal(r.Outbox.Partitions.Dropped, []string{"event_outbox_20200102"}) || r.Outbox.Deleted != 2000 {
		t.Errorf("%+v, %v", r, err)
	}
}

// A row that comes between the look and the drop keeps its day.
func TestLateRowKeepsItsDay(t *testing.T) {
	t.Parallel()
	s := newDays(t)
	s.of(20, "2020-01-02 10:00Z")
	s.settle()
	c := cleanup.New(cleanup.Config{Retention: cleanup.Retention{Outbox: 7 * 24 * time.Hour, Ledger: cleanup.Forever}, Database: s.database()})
	late := s.db.Conn(t)
	pgtest.Exec(t, late, "begin")
	pgtest.Exec(t, late, "insert into event_outbox (aggregate_type, aggregate_id, event_type, payload, created_at) values ('order', 'a', 'late', '{}', '2020-01-02 10:00Z')")
	if r, err := c.Pass(t.Context()); err != nil || !strings.Contains(r.Outbox.Partitions.Stays, ": busy: ") {
		t.Errorf("%+v, %v", r, err)
	}
	pgtest.Exec(t, late, "commit")
	if r, err := c.Pass(t.Context()); err != nil || !strings.Contains(r.Outbox.Partitions.Stays, ": changed: 21 rows were found, 20 were looked at before") {
		t.Errorf("%+v, %v", r, err)
	}
	if n := s.count("select count(*) from event_outbox where event_type = 'late'"); n != 1 {
		t.Errorf("%d late rows", n)
	}
}
