package main

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/pyairtable-compose/outbox-cdc/admin"
	"github.com/pyairtable-compose/outbox-cdc/cleanup"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

var update = flag.Bool("update", false, "write the screens of testdata anew")

var screenTime = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func before(d time.Duration) *time.Time { return new(screenTime.Add(-d)) }

// wellStatus is a connector that is well; each screen differs from it.
func wellStatus() admin.Status {
	return admin.Status{
		At: screenTime, Level: monitoring.LevelOK, Connector: "shop",
		Database: admin.StatusDatabase{Address: "db.internal:5432", Name: "shop", User: "outbox", Configured: "outbox.yaml:3", Version: "17.2"},
		Slot: &admin.StatusSlot{
			Name: "shop_outbox", State: admin.SlotStreams, ActivePID: 4711, ActiveFrom: "10.0.0.7", LagBytes: new(int64(1_300)), LagSeconds: new(0.0),
			KeptBytes: new(int64(48 << 20)), KeptLimit: new(int64(10 << 30)), LostAfterBytes: new(int64(9_900 << 20)), LostAfterSeconds: new(11_000.0),
			WALRate: new(900_000.0), WALStatus: "reserved", RecordedAt: before(100 * time.Millisecond), Forecast: monitoring.TrendNothingWaits,
		},
		Instances: []admin.StatusInstance{
			{Role: monitoring.RoleLeader, Host: "orders-1", PID: 71, Version: "1.4.0", Started: before(76 * time.Hour), Health: monitoring.LevelOK},
			{Role: monitoring.RoleStandby, Host: "orders-2", PID: 72, Error: "http.listen is off there"},
		},
		Sinks: []admin.StatusSink{
			{
				Name: "orders", Type: "kafka", Configured: true, Condition: monitoring.ConditionOK, RateNow: new(118.4), RateMinute: new(120.0),
				Rows: admin.StatusRows{Parked: new(int64(0)), Dead: new(int64(0))}, Forecast: monitoring.TrendNothingWaits,
			},
		},
		NoSink: admin.StatusRows{Parked: new(int64(0)), Dead: new(int64(0))},
		Cleanup: &admin.StatusCleanup{
			OutboxSeconds: new(604800.0), LedgerSeconds: new(604800.0), LastPassAt: before(20 * time.Second), ReportedAt: before(4 * time.Minute),
			LastPass: &cleanup.Report{Complete: true, Outbox: cleanup.OutboxReport{Deleted: 12_004}, Log: cleanup.PartitionReport{Dropped: []string{"a"}}},
		},
		Sizes: &admin.StatusSizes{
			Outbox: new(int64(5_800 << 20)), OutboxFrom: before(7 * 24 * time.Hour), Log: new(int64(1_200 << 20)), LogFrom: before(8*24*time.Hour + 3*time.Hour), LogPartitions: 16, Parked: new(int64(12 << 20)),
		},
	}
}

// screens are states of a connector, by the name of the file that has the screen.
var screens = map[string]func(*admin.Status){
	"well": func(*admin.Status) {},
	"away": func(s *admin.Status) {
		s.Level = monitoring.LevelDegraded
		s.Sinks = append(s.Sinks, admin.StatusSink{
			Name: "partner", Type: "webhook", Configured: true, Condition: monitoring.ConditionAway, Since: before(192 * time.Second),
			Cause: "dial tcp 10.0.0.9:443: connect: connection refused", AsksAt: before(-12 * time.Second), RateNow: new(0.0), RateMinute: new(0.0),
			Rows: admin.StatusRows{Parked: new(int64(12_004)), Dead: new(int64(4)), OldestSeconds: new(191.0)}, Forecast: monitoring.TrendGrowing,
		})
		s.ToDo = []admin.StatusToDo{
			{Level: monitoring.LevelDegraded, What: "partner accepts nothing: mend it, then have it asked at once", Command: "outbox-cdc retry partner"},
			{Level: monitoring.LevelDegraded, What: "4 dead letters of partner: look at them, then retry or discard them", Command: "outbox-cdc dlq list --sink partner"},
		}
	},
	"objectives": func(s *admin.Status) {
		count := func(events, inTime int64) monitoring.CountInTime {
			return monitoring.CountInTime{Events: events, InTime: inTime}
		}
		s.Sinks[0].Objective = &monitoring.ObjectiveReport{
			WithinSeconds: 1, Percent: 99, InTimePercent: new(99.999_999), BudgetLeft: .9999, BurnSixHours: .004,
			Trend: monitoring.TrendReport{Start: screenTime.Truncate(time.Hour).Add(-time.Hour), Hour: count(432_000, 432_000), HourBefore: count(430_123, 430_122)},
		}
		s.Sinks = append(s.Sinks, admin.StatusSink{
			Name: "a-sink-with-a-very-long-name-indeed", Configured: true, Condition: monitoring.ConditionOK, Rows: s.Sinks[0].Rows,
			Objective: &monitoring.ObjectiveReport{WithinSeconds: .25, Percent: 99.95, InTimePercent: new(12.0), BudgetLeft: -175.04, BurnHour: 1999.6, BurnSixHours: 14.4},
		}, admin.StatusSink{
			Name: "new", Configured: true, Condition: monitoring.ConditionOK, Rows: s.Sinks[0].Rows, Objective: &monitoring.ObjectiveReport{WithinSeconds: 90, Percent: 99.9, BudgetLeft: 1},
		})
	},
	"catches_up": func(s *admin.Status) {
		s.Sinks[0].CaughtUpAt, s.Sinks[0].Forecast = before(-42*time.Minute), monitoring.TrendCatchingUp
		s.Sinks[0].Rows = admin.StatusRows{Parked: new(int64(1_234_567)), Dead: new(int64(0)), OldestSeconds: new(3_600.0 * 30)}
		s.Sinks[0].RateNow = new(12_345.0)
		s.Slot.LagSeconds, s.Slot.LagBytes, s.Slot.CaughtUpAt = new(95.0), new(int64(700<<20)), before(-time.Minute)
	},
	"nobody_streams": func(s *admin.Status) {
		s.Level = monitoring.LevelFailed
		s.Instances = nil
		s.Slot.State, s.Slot.ActivePID, s.Slot.ActiveFrom, s.Slot.LagSeconds, s.Slot.WALRate, s.Slot.LostAfterSeconds = admin.SlotIdle, 0, "", nil, nil, nil
		s.Slot.InactiveSince, s.Slot.KeptLimit, s.Slot.LostAfterBytes = before(26*time.Hour), nil, nil
		s.Sinks[0] = admin.StatusSink{Name: "orders", Configured: true, Condition: "unknown", Rows: admin.StatusRows{
			Parked: new(int64(10_000)), Dead: new(int64(0)), AtLeast: true, OldestSeconds: new(8_000.0), OldestAtLeast: true,
		}}
		s.ToDo = []admin.StatusToDo{{Level: monitoring.LevelFailed, What: `no connector streams from slot "shop_outbox", so nothing is delivered and WAL piles up: start one`, Command: "outbox-cdc run"}}
		s.Unknown = []string{"what the instance at 127.0.0.1:9640 says (http.listen): dial tcp 127.0.0.1:9640: connect: connection refused"}
	},
	"lost": func(s *admin.Status) {
		s.Level = monitoring.LevelFailed
		s.Slot = &admin.StatusSlot{Name: "shop_outbox", State: admin.SlotLost, Invalidated: "wal_removed", WALStatus: "lost"}
		s.ToDo = []admin.StatusToDo{{Level: monitoring.LevelFailed, What: `replication slot "shop_outbox" was invalidated (wal_removed): WAL that it needs may be gone; mend the cause, run "outbox-cdc resync", which makes the slot anew and delivers what is missing; see docs/slot.md#lost-slot`}}
	},
	"missing": func(s *admin.Status) {
		s.Level, s.Slot = monitoring.LevelFailed, &admin.StatusSlot{Name: "shop_outbox", State: admin.SlotMissing}
	},
	"building": func(s *admin.Status) {
		s.Level, s.Slot = monitoring.LevelFailed, &admin.StatusSlot{Name: "shop_outbox", State: admin.SlotBuilding}
	},
	"no_ledger": func(s *admin.Status) {
		s.Level = monitoring.LevelFailed
		s.Slot, s.Instances, s.Sinks, s.NoSink = &admin.StatusSlot{Name: "shop_outbox", State: admin.SlotAbsent}, nil, nil, admin.StatusRows{}
		s.Cleanup.LastPass, s.Sizes = nil, nil
		s.ToDo = []admin.StatusToDo{{Level: monitoring.LevelFailed, What: `replication slot "shop_outbox" was not made yet; run "outbox-cdc init"`}}
	},
	"down": func(s *admin.Status) {
		s.Level = monitoring.LevelFailed
		s.Database.Version, s.Database.Error = "", "PostgreSQL cannot be reached"
		s.Slot = &admin.StatusSlot{Name: "shop_outbox", State: admin.SlotStreams, LagSeconds: new(2.0), LagBytes: new(int64(1 << 20))}
		s.Cleanup, s.Sizes, s.NoSink = nil, nil, admin.StatusRows{}
		s.Sinks[0].Rows = admin.StatusRows{}
		s.ToDo = []admin.StatusToDo{{Level: monitoring.LevelFailed, What: "the database could not be read: PostgreSQL cannot be reached"}}
	},
	"standby": func(s *admin.Status) {
		s.Database.Standby = true
		s.Slot = &admin.StatusSlot{Name: "shop_outbox", State: admin.SlotUnseen, RecordedAt: before(2 * time.Second)}
		s.Instances = nil
	},
	"paused_and_removed": func(s *admin.Status) {
		s.Sinks[0].Condition, s.Sinks[0].Since = monitoring.ConditionPaused, before(3*time.Hour+7*time.Minute)
		s.Sinks = append(s.Sinks, admin.StatusSink{
			Name: "a-sink-with-a-very-long-name-indeed", Condition: "unknown",
			Rows: admin.StatusRows{Parked: new(int64(3)), Dead: new(int64(0)), OldestSeconds: new(90.0)},
		}, admin.StatusSink{
			Name: "hook", Configured: true, Condition: monitoring.ConditionSuspect, Since: before(time.Minute), TriedRate: 40,
			Cause: "HTTP 500:\x1b[2J " + strings.Repeat("äöü", 60), Rows: admin.StatusRows{Parked: new(int64(0)), Dead: new(int64(5))},
		})
		s.NoSink.Dead = new(int64(2))
	},
	"old_transaction": func(s *admin.Status) {
		kept := &s.Cleanup.LastPass.Outbox.Kept
		kept.Beyond, kept.Unaccounted, kept.Locked = 1, 17, 3
		s.Cleanup.LastPass.Log.Stays = "another session reads it"
		s.Cleanup.LedgerSeconds = nil
		s.Sizes.ParkedDeadRows, s.Sizes.Outbox, s.Sizes.OutboxFrom = 600_000, nil, nil // it is locked
		s.Holders = []admin.StatusHolder{
			{Kind: "transaction", Name: "psql", User: "ann", PID: 99, State: "idle in transaction", Since: before(2 * time.Hour)},
			{Kind: "prepared_transaction", Name: "tx7", User: "bob", Since: before(30 * time.Minute)},
			{Kind: "slot", Name: "replica"},
		}
	},
	"backlog": func(s *admin.Status) {
		s.Sinks[0].Backlog = monitoring.NewBacklogReport(&monitoring.BacklogStatus{
			ID: 7, Reason: "resync", FiledAt: *before(3 * time.Minute), Walked: 123_456, Parked: 1_200, Left: new(int64(876_544)), Rate: new(4_321.0),
		})
		s.Sinks = append(s.Sinks, admin.StatusSink{
			Name: "a-sink-with-a-very-long-name-indeed", Configured: true, Condition: "unknown",
			Backlog: monitoring.NewBacklogReport(&monitoring.BacklogStatus{ID: 8, Reason: "reconcile", FiledAt: *before(5 * time.Second), Waits: "the end of the transactions that ran when the slot was made"}),
		})
		s.Verify = &monitoring.VerifyReport{Unaccounted: new(int64(0)), UpTo: *before(20 * time.Second)}
	},
	"missing_events": func(s *admin.Status) {
		s.Verify = &monitoring.VerifyReport{Unaccounted: new(int64(17)), Example: "e1", UpTo: *before(2 * time.Hour)}
	},
	"not_all_compared": func(s *admin.Status) { s.Verify = &monitoring.VerifyReport{UpTo: *before(26 * time.Hour)} },
	"in_danger": func(s *admin.Status) {
		s.Slot.WALStatus, s.Slot.KeptBytes, s.Slot.LostAfterBytes, s.Slot.LostAfterSeconds = "extended", new(int64(9<<30)), new(int64(1<<30)), new(1_250.0)
	},
}

// Each screen stands in testdata; it has no line of more than 80 columns, and colours change nothing else.
func TestStatusScreens(t *testing.T) {
	t.Parallel()
	for name, change := range screens {
		s := wellStatus()
		change(&s)
		got := statusText(s, plain)
		file := filepath.Join("testdata", "status", name+".txt")
		if *update {
			if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), got); diff != "" {
			t.Errorf("%s (-want +got; -update writes it anew):\n%s", name, diff)
		}
		for line := range strings.Lines(got) {
			if line = strings.TrimSuffix(line, "\n"); utf8.RuneCountInString(line) > screenWidth || strings.HasSuffix(line, " ") || strings.Contains(line, "\x1b") {
				t.Errorf("%s: a line of %d columns, or with a blank at its end: %q", name, utf8.RuneCountInString(line), line)
			}
		}
		bare := regexp.MustCompile("\x1b\\[[0-9]*m").ReplaceAllString(statusText(s, colored), "")
		if diff := cmp.Diff(got, bare); diff != "" {
			t.Errorf("%s without its colours (-plain +colored):\n%s", name, diff)
		}
		if !strings.Contains(statusText(s, colored), "\x1b[") {
			t.Errorf("%s has no colours", name)
		}
	}
}

// The screen of docs/status.md is one of these.
func TestStatusScreenOfTheDocs(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/status.md")
	if err != nil {
		t.Fatal(err)
	}
	s := wellStatus()
	screens["away"](&s)
	var indented strings.Builder
	for line := range strings.Lines(statusText(s, plain)) {
		if line != "\n" {
			line = "    " + line
		}
		indented.WriteString(line)
	}
	if !strings.Contains(string(page), indented.String()) {
		t.Errorf("docs/status.md lacks this screen:\n%s", indented.String())
	}
}

func TestNumbersOfTheScreen(t *testing.T) {
	t.Parallel()
	for seconds, want := range map[float64]string{
		0: "0s", 0.25: "0.2s", 9.96: "10.0s", 12.5: "12s", 59.9: "59s", 60: "1m", 3599: "59m59s", 3600: "1h", 86399: "23h59m", 86400: "1d", 8.64e6: "100d", 1e10: "115741d",
	} {
		if got := secondsText(seconds); got != want {
			t.Errorf("%v s: %q, want %q", seconds, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 kB", 150 << 20: "150 MB", 3 << 40: "3.0 TB"} {
		if got := bytesText(n); got != want {
			t.Errorf("%d bytes: %q, want %q", n, got, want)
		}
	}
	for n, want := range map[float64]string{0: "0", 999: "999", 1000: "1,000", 9999: "9,999", 12345: "12.3k", 99_999: "99.9k", 999_999: "999k", 1_234_567: "1.2M", 2e9: "2000M"} {
		if got := compact(n); got != want {
			t.Errorf("%v: %q, want %q", n, got, want)
		}
	}
}

// On a terminal a screen is drawn over the one before, and cut to its height.
func TestStatusInPlace(t *testing.T) {
	t.Parallel()
	if got, want := inPlace("a\nb\n", 0, 0), "\x1b[Ha\x1b[K\nb\x1b[K\n\x1b[J"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := inPlace("a\nb\nc\nd\n", 80, 4), "\x1b[Ha\x1b[K\nb\x1b[K\n… 2 more lines: make the window higher\x1b[K\n\x1b[J"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := inPlace("a\n\nb\n\nc\n", 80, 5), "\x1b[Ha\x1b[K\nb\x1b[K\n\x1b[K\nc\x1b[K\n\x1b[J"; got != want {
		t.Errorf("empty lines: %q, want %q", got, want)
	}
	if got, want := inPlace("\x1b[1mabcdef\x1b[0m\nb\nc\n", 4, 4), "\x1b[H\x1b[1mabcdef\x1b[0m\x1b[K\n… 2 more lines: make the window higher\x1b[K\n\x1b[J"; got != want {
		t.Errorf("a narrow terminal: %q, want %q", got, want)
	}
}
