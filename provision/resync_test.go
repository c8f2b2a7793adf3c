package provision

import (
	"errors"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode/exitcodetest"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// newLost makes a database in which everything is set up for two sinks, a session has settled everything up to 0/10/5 of the slot, and the
// outbox holds a row.
func newLost(t *testing.T) *outboxDB {
	o := newOutbox(t)
	o.cfg.Connector = "c"
	o.cfg.Processors = []ledger.Processor{{Name: "a", Type: "kafka"}, {Name: "b", Type: "redis"}}
	o.setup()
	o.exec("update outbox_checkpoints set prefix_lsn = '0/10', prefix_index = 5, epoch = 3",
		"insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) values ('a', '1', 'e', '{}')")
	return o
}

func (o *outboxDB) resync() ResyncResult {
	o.t.Helper()
	r, err := Resync(pgtest.Context(o.t), ResyncConfig{SetupConfig: o.cfg})
	if err != nil {
		o.t.Fatal(err)
	}
	return r
}

// jobs returns the unfinished jobs.
func (o *outboxDB) jobs() string {
	o.t.Helper()
	return o.text(`select coalesce(string_agg(format('%s %s base %s/%s start %s filter %s', processor_name, reason, base_lsn, base_index, start_lsn, filter), ', ' order by processor_name), 'none')
		from outbox_backlog join outbox_processors p on p.id = processor_id where status <> 'done' and snapshot_xmax is not null`)
}

const dropSlotSQL = "select pg_drop_replication_slot('SLOT')"

func TestResync(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		lose []string
		why  string
	}{
		"gone":             {[]string{dropSlotSQL}, "it is gone"},
		"made by hand":     {[]string{dropSlotSQL, "select pg_create_logical_replication_slot('SLOT', 'pgoutput')"}, ""},
		"sound":            {nil, ""},
		"no publication":   {[]string{"drop publication outbox_cdc"}, ""},
		"another cluster":  {[]string{dropSlotSQL, "update outbox_checkpoints set system_identifier = 7"}, "its checkpoint belongs to the cluster with system identifier 7"},
		"another database": {[]string{"update outbox_checkpoints set database_oid = 7"}, "with oid 7"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newLost(t)
			o.exec(test.lose...)
			why, steps, err := ResyncPlan(pgtest.Context(t), ResyncConfig{SetupConfig: o.cfg})
			if err != nil || len(steps) < 2 || !strings.Contains(steps[len(steps)-1], "file a job for each of 2 sinks, which compares 1 row of public.event_outbox") {
				t.Errorf("plan: %q, %v", steps, err)
			}
			before := o.checkpoint()
			if !strings.HasPrefix(before, "ready 0/10/5 ") {
				t.Fatalf("the plan was carried out: %s", before)
			}
			r := o.resync()
			if !strings.Contains(r.Why, test.why) || r.Why != why || (r.Why == "") != (test.why == "") {
				t.Errorf("why: %q, in the plan %q; want %q", r.Why, why, test.why)
			}
			point := r.ConsistentPoint.String()
			if got := o.checkpoint(); !strings.HasPrefix(got, "ready "+point+"/-1 confirmed "+point+" epoch 4 slot_epoch 5") {
				t.Errorf("checkpoint %s, the slot begins at %s", got, point)
			}
			if got := o.slot(); !strings.HasSuffix(got, " "+point) {
				t.Errorf("slot %s", got)
			}
			want := "a resync base 0/10/5 start " + point + " filter {}, b resync base 0/10/5 start " + point + " filter {}"
			if diff := cmp.Diff(want, o.jobs()); diff != "" || r.Jobs != 2 || r.Rows != (Estimate{1, true}) {
				t.Errorf("%+v %s", r, diff)
			}
			if _, err := Preflight(pgtest.Context(t), o.conn, PreflightConfig{Source: o.cfg.Source, ReplicationUser: "postgres"}); err != nil {
				t.Error(err)
			}
			if id := o.text("select system_identifier from outbox_checkpoints"); id != o.text("select system_identifier::text from pg_control_system()") {
				t.Errorf("cluster %s", id)
			}
		})
	}
}

// Resync that was killed after any of its steps does not stream, says so, and finishes when it is run again.
func TestResyncKilled(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"published", "building", "dropped", "created", "ready"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			o := newLost(t)
			o.exec("drop publication outbox_cdc")
			first := o.slot()
			cfg := ResyncConfig{SetupConfig: o.cfg}
			reached := false
			cfg.step = func(name string) {
				if name == step {
					reached = true
					runtime.Goexit() // this closes the connections and mends nothing, as the end of the process does
				}
			}
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				_, err := Resync(pgtest.Context(t), cfg)
				t.Errorf("not killed: %v", err)
			}()
			<-ended
			if !reached {
				t.Fatal("there is no such step")
			}
			_, err := Preflight(pgtest.Context(t), o.conn, PreflightConfig{Source: o.cfg.Source})
			_, init := Setup(pgtest.Context(t), o.cfg)
			switch step {
			case "published", "ready":
				if err != nil || init != nil {
					t.Errorf("%v; init: %v", err, init)
				}
			default:
				exitcodetest.Want(t, err, exitcode.SlotLost, "is being made anew", `"outbox-cdc resync" again`)
				exitcodetest.Want(t, init, exitcode.SlotLost, "is being made anew", `"outbox-cdc resync" again`)
				if !strings.HasPrefix(o.checkpoint(), "building 0/10/5 ") {
					t.Errorf("checkpoint %s", o.checkpoint())
				}
			}
			if step != "ready" && o.jobs() != "none" {
				t.Errorf("jobs: %s", o.jobs())
			}
			// The server may still be closing the connection that had the lock.
			waitUntil(t, func() bool {
				return o.text("select count(*)::text from pg_locks where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())") == "0"
			})
			r := o.resync()
			if o.slot() == first || !strings.HasPrefix(o.checkpoint(), "ready "+r.ConsistentPoint.String()) {
				t.Errorf("slot %s, checkpoint %s", o.slot(), o.checkpoint())
			}
			start := r.ConsistentPoint.String()
			if step == "ready" { // the jobs of the first one are replaced
				start = o.text("select min(start_lsn)::text from outbox_backlog")
			}
			if got := strings.Count(o.jobs(), "base 0/10/5 start "+start+" "); got != 2 {
				t.Errorf("jobs: %s", o.jobs())
			}
		})
	}
}

func TestResyncRefuses(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		before []string
		change func(*testing.T, *outboxDB)
		code   exitcode.Code
		words  []string
	}{
		"no checkpoint": {
			before: []string{dropSlotSQL, "delete from outbox_checkpoints"},
			code:   exitcode.Config, words: []string{"was never ready", `run "outbox-cdc init"`},
		},
		"an init that was killed": {
			before: []string{dropSlotSQL, "delete from outbox_checkpoints", "insert into outbox_checkpoints (slot_name, state) values ('SLOT', 'building')"},
			code:   exitcode.Config, words: []string{"was never ready", `run "outbox-cdc init"`},
		},
		"a slot of another plugin": {
			before: []string{dropSlotSQL, "select pg_create_logical_replication_slot('SLOT', 'test_decoding')"},
			code:   exitcode.SlotLost, words: []string{"was not made by", "pg_drop_replication_slot"},
		},
		"a physical slot": {
			before: []string{dropSlotSQL, "select pg_create_physical_replication_slot('SLOT')"},
			code:   exitcode.SlotLost, words: []string{"was not made by", "pg_drop_replication_slot"},
		},
		"an instance that streams": {
			change: func(t *testing.T, o *outboxDB) {
				repl, err := connectReplication(pgtest.Context(t), o.dsn)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { closeReplication(pgtest.Context(t), repl) })
				err = pglogrepl.StartReplication(pgtest.Context(t), repl, o.cfg.Slot, 0, pglogrepl.StartReplicationOptions{
					PluginArgs: []string{"proto_version '1'", "publication_names 'outbox_cdc'"},
				})
				if err != nil {
					t.Fatal(err)
				}
				waitUntil(t, func() bool {
					return o.text("select active::text from pg_replication_slots where slot_name = $1", o.cfg.Slot) == "true"
				})
			},
			code: exitcode.Failure, words: []string{`user "postgres"`, "streams from slot", "stop it first"},
		},
		"another resync": {
			before: []string{"select pg_advisory_lock(hashtextextended('outbox-cdc slot SLOT', 0))"},
			code:   exitcode.Failure, words: []string{"is locked by another session", "pid "},
		},
		"a publication of all tables": {
			before: []string{"drop publication outbox_cdc", "create publication outbox_cdc for all tables"},
			code:   exitcode.Config, words: []string{"of all tables"},
		},
		"no sinks": {
			change: func(_ *testing.T, o *outboxDB) { o.cfg.Processors = nil },
			code:   exitcode.Config, words: []string{"has no sinks"},
		},
		"a server that owes what another one owes": {
			before: []string{
				"update outbox_checkpoints set system_identifier = 7",
				"insert into outbox_parked (processor_id, commit_lsn, tx_index, agg_hash, status, event) values (1, '7F/0', 0, 1, 'parked', '{}'), (1, '7F/0', 1, 1, 'dead', '{}')",
			},
			code: exitcode.Config, words: []string{"still owes 1 parked event", "--parked keep", "--parked discard"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newLost(t)
			o.exec(test.before...)
			if test.change != nil {
				test.change(t, o)
			}
			slot, checkpoint := o.slot(), o.checkpoint()
			_, err := Resync(pgtest.Context(t), ResyncConfig{SetupConfig: o.cfg})
			exitcodetest.Want(t, err, test.code, test.words...)
			if o.slot() != slot || o.checkpoint() != checkpoint || o.jobs() != "none" {
				t.Errorf("slot %s became %s, checkpoint %s became %s, jobs %s", slot, o.slot(), checkpoint, o.checkpoint(), o.jobs())
			}
		})
	}
}

// What is parked keeps its order, and stands before what the new slot sends. What was streamed up to the old prefix is told from the rest.
func TestResyncParked(t *testing.T) {
	t.Parallel()
	const insert = `insert into outbox_parked (processor_id, commit_lsn, tx_index, agg_hash, status, event, error_message) values
		(1, '0/1', -4, 1, 'parked', '{}', '1'), (1, '0/2', 4, 1, 'parked', '{}', '2'),
		(1, '7F/10', 5, 1, 'parked', '{}', '4'), (2, '7F/10', 5, 1, 'parked', '{}', '3'), (2, '7F/08', -9, 1, 'parked', '{}', '2'), (2, '7F/08', 0, 1, 'dead', '{}', '2b'),
		(1, '7F/10', -7, 1, 'parked', '{}', '3'), (1, '7F/10', 6, 1, 'parked', '{}', '5'), (1, '7F/20', 0, 1, 'parked', '{}', '6')`
	order := "select string_agg(processor_id || ':' || error_message, ' ' order by processor_id, commit_lsn, tx_index) from outbox_parked"
	for _, choice := range []ParkedChoice{ParkedKeep, ParkedDiscard} {
		t.Run(string(choice), func(t *testing.T) {
			t.Parallel()
			o := newLost(t)
			o.exec("update outbox_checkpoints set system_identifier = 7, prefix_lsn = '7F/10', prefix_index = 5", insert)
			before := o.text(order)
			o.cfg.Parked = choice
			r := o.resync()
			if o.text("select count(*)::text from outbox_parked where commit_lsn >= '0/100000'") != "0" {
				t.Error("some rows are beyond the slot")
			}
			if choice == ParkedDiscard {
				if got := o.text(order); got != "2:2b" || r.Discarded != 8 {
					t.Errorf("%s is left, %d given up", got, r.Discarded)
				}
				if got := o.text("select count(*) || ' ' || count(distinct (processor_id, commit_lsn, tx_index)) || ' ' || min(error_message) from outbox_delivery_log where status = 'discarded'"); got != "8 8 given up when the replication slot was made (--parked discard)" {
					t.Error(got)
				}
				return
			}
			if after := o.text(order); after != before {
				t.Errorf("%s became %s", before, after)
			}
			// Those at or before the old prefix have an index from 0 on, jobs' rows and later ones have not.
			streamed := "select string_agg(processor_id || ':' || error_message, ' ' order by processor_id, commit_lsn, tx_index) from outbox_parked where tx_index >= 0"
			if got := o.text(streamed); got != "1:2 1:4 2:2b 2:3" {
				t.Errorf("streamed before the gap: %s", got)
			}
			if one := o.text("select count(distinct (commit_lsn, tx_index))::text from outbox_parked where error_message in ('3', '4') and commit_lsn > '0/2' and tx_index >= 0"); one != "1" {
				t.Errorf("one event has %s positions in two sinks", one)
			}
			// It can be done again.
			o.exec("update outbox_checkpoints set system_identifier = 8", `insert into outbox_parked (processor_id, commit_lsn, tx_index, agg_hash, status, event, error_message) values (1, '7F/10', 3, 1, 'parked', '{}', '7')`)
			before = o.text(order)
			if o.resync(); o.text(order) != before {
				t.Errorf("%s became %s", before, o.text(order))
			}
		})
	}
}

// Without a backlog no job is filed, and none goes on.
func TestResyncWithoutBacklog(t *testing.T) {
	t.Parallel()
	o := newLost(t)
	o.resync()
	o.exec("update outbox_processors set since = '-infinity'")
	o.cfg.Backlog.None = true
	if r := o.resync(); r.Jobs != 0 || o.jobs() != "none" {
		t.Errorf("%+v, jobs %s", r, o.jobs())
	}
	if got := o.text("select count(*)::text from outbox_processors where since > now() - interval '1 minute'"); got != "2" {
		t.Errorf("%s sinks are owed nothing from before", got)
	}
}

// A sink that is new has no job, because nobody owed it what was lost. An unfinished job is replaced, and its base and start kept.
func TestResyncSinks(t *testing.T) {
	t.Parallel()
	o := newLost(t)
	first := o.resync().ConsistentPoint.String()
	o.exec("update outbox_checkpoints set prefix_lsn = '0/90'", "update outbox_backlog set status = 'done' where processor_id = 2")
	o.cfg.Processors = append(o.cfg.Processors, ledger.Processor{Name: "new", Type: "kafka"})
	point := o.resync().ConsistentPoint.String()
	want := "a resync base 0/10/5 start " + first + " filter {}, b resync base 0/90/-1 start " + point + " filter {}"
	if diff := cmp.Diff(want, o.jobs()); diff != "" {
		t.Error(diff)
	}
}

// A connector that does it unattended makes anew only what is lost, and only on the same server.
func TestResyncIfLost(t *testing.T) {
	t.Parallel()
	o := newLost(t)
	cfg := ResyncConfig{SetupConfig: o.cfg, IfLost: true}
	if _, err := Resync(pgtest.Context(t), cfg); !errors.Is(err, ErrSound) {
		t.Errorf("a sound slot: %v", err)
	}
	o.exec(dropSlotSQL, "update outbox_checkpoints set system_identifier = 7")
	_, err := Resync(pgtest.Context(t), cfg)
	exitcodetest.Want(t, err, exitcode.SlotLost, "system identifier 7", "outbox-cdc resync")
	o.exec("update outbox_checkpoints set system_identifier = (select system_identifier::text from pg_control_system())")
	if r, err := Resync(pgtest.Context(t), cfg); err != nil || r.Why != "it is gone" || r.Jobs != 2 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestSetupFilesJobs(t *testing.T) {
	t.Parallel()
	since := time.Date(2024, 5, 31, 0, 0, 0, 0, time.UTC)
	for name, test := range map[string]struct {
		backlog Backlog
		filter  string
		rows    int64
		walked  string
		since   string
	}{
		"all":   {Backlog{Some: true}, "{}", 3, "3", "-infinity"},
		"since": {Backlog{Some: true, Since: since}, `{"since": "2024-05-31T00:00:00Z"}`, 2, "2", "2024-05-31 00:00:00+00"},
		"where": {Backlog{Some: true, Where: "tenant_id = 'a' -- mine"}, `{"where": "tenant_id = 'a' -- mine"}`, 1, "3", "-infinity"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOutbox(t)
			o.cfg.Connector, o.cfg.Processors = "c", []ledger.Processor{{Name: "a", Type: "kafka"}}
			o.exec("insert into event_outbox (aggregate_type, aggregate_id, event_type, payload, created_at, tenant_id) values ('a', '1', 'e', '{}', '2024-05-30', 'b'), ('a', '1', 'e', '{}', '2024-05-31T00:00:00Z', 'a'), ('a', '1', 'e', '{}', '2024-06-30', null)",
				"insert into outbox_processors (connector, processor_name, processor_type) values ('c', 'a', 'kafka')")
			o.cfg.Backlog = test.backlog
			o.cfg.OrderBy = []string{"created_at"}
			r := o.setup()
			want := "a init base 0/0/0 start " + r.ConsistentPoint.String() + " filter " + test.filter
			if diff := cmp.Diff(want, o.jobs()); diff != "" || r.Jobs != 1 || r.Rows != (Estimate{test.rows, true}) {
				t.Errorf("%+v %s", r, diff)
			}
			if got := o.text("select since at time zone 'utc' || case when isfinite(since) then '+00' else '' end from outbox_processors"); got != test.since {
				t.Errorf("since %s", got)
			}
			if got := o.text("select estimate::text from outbox_backlog"); got != test.walked {
				t.Errorf("estimate %s", got)
			}
		})
	}
}

func TestSetupRefusesBacklogs(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		backlog Backlog
		change  func(*outboxDB)
		words   []string
	}{
		"no SQL":                   {Backlog{Some: true, Where: "tenant_id ="}, nil, []string{"where:tenant_id = is no SQL condition", "syntax error"}},
		"no column":                {Backlog{Some: true, Where: "tenant = 'a'"}, nil, []string{"is no SQL condition", `column "tenant" does not exist`}},
		"no condition":             {Backlog{Some: true, Where: "aggregate_id || ''"}, nil, []string{"is no SQL condition", "must be type boolean"}},
		"two conditions":           {Backlog{Some: true, Where: "true) or (true"}, nil, []string{"is no SQL condition", "syntax error"}},
		"two statements":           {Backlog{Some: true, Where: "true; drop table event_outbox"}, nil, []string{"is no SQL condition", "syntax error"}},
		"a parameter":              {Backlog{Some: true, Where: "tenant_id = $1"}, nil, []string{"has a parameter ($1)"}},
		"one that fails":           {Backlog{Some: true, Where: "1 / (event_version - event_version) > 0"}, nil, []string{"fails on the rows", "division by zero"}},
		"one that matches nothing": {Backlog{Some: true, Where: "tenant_id = 'nobody'"}, nil, []string{"names no row of public.event_outbox", "--backlog none"}},
		"a time in the future":     {Backlog{Some: true, Since: time.Now().AddDate(1, 0, 0)}, nil, []string{"names no row of public.event_outbox"}},
		"a table without times":    {Backlog{Some: true, Since: time.Now()}, func(o *outboxDB) { o.cfg.Columns.CreatedAt = "" }, []string{"source.columns names no created_at", "where:"}},
		"an order without an index": {
			Backlog{Some: true},
			func(o *outboxDB) {
				o.exec("drop index idx_outbox_created_at")
				o.cfg.OrderBy = []string{"created_at", "id"}
			},
			[]string{`create index concurrently on public.event_outbox ("created_at", "id")`},
		},
		"an order that is nullable": {Backlog{Some: true}, func(o *outboxDB) { o.cfg.OrderBy = []string{"tenant_id"} }, []string{`column "tenant_id" of public.event_outbox may be null`, "set not null"}},
		"a configuration without a": {Backlog{Some: true}, func(o *outboxDB) { o.cfg.Processors = nil }, []string{"has no sinks"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newOutbox(t)
			o.cfg.Connector, o.cfg.Processors = "c", []ledger.Processor{{Name: "a", Type: "kafka"}}
			o.exec("insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) values ('a', '1', 'e', '{}')")
			o.cfg.Backlog = test.backlog
			if test.change != nil {
				test.change(o)
			}
			_, err := Setup(pgtest.Context(t), o.cfg)
			exitcodetest.Want(t, err, exitcode.Config, test.words...)
			if o.slot() != "none" || o.checkpoint() != "none" || o.text("select count(*)::text from pg_publication") != "0" {
				t.Error("a refusal made something")
			}
		})
	}
}

// A ledger may still owe something when init makes a slot: the database is a copy, or the slot was destroyed.
func TestSetupParked(t *testing.T) {
	t.Parallel()
	o := newOutbox(t)
	o.exec("insert into outbox_parked (processor_id, commit_lsn, tx_index, agg_hash, status, event) values (1, '7F/0', 0, 1, 'parked', '{}'), (1, '7F/0', 1, 1, 'dead', '{}')")
	_, err := Setup(pgtest.Context(t), o.cfg)
	exitcodetest.Want(t, err, exitcode.Config, "still owes 1 parked event", "--parked keep", "--parked discard")
	if o.slot() != "none" || o.checkpoint() != "none" {
		t.Error("a refusal made something")
	}
	o.cfg.Parked = ParkedKeep
	o.setup()
	if got := o.text("select string_agg(commit_lsn || '/' || tx_index + (1::bigint << 62), ' ' order by tx_index) from outbox_parked"); got != "0/1/1 0/1/2" {
		t.Error(got)
	}
}

// Counting a large table ends when its time is over.
func TestEstimate(t *testing.T) {
	t.Parallel()
	o := newOutbox(t)
	o.exec("insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) select 'a', '1', 'e', '{}' from generate_series(1, 1000)", "analyze event_outbox")
	conn, err := pgx.Connect(pgtest.Context(t), o.dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(pgtest.Context(t))
	e, err := estimateRows(pgtest.Context(t), conn, o.cfg.Source, ledger.JobFilter{Where: "pg_sleep(10) is not null"})
	if err != nil || e.Exact || e.Rows < 100 || e.Rows > 2000 {
		t.Errorf("%+v, %v", e, err)
	}
	e, err = estimateRows(pgtest.Context(t), conn, o.cfg.Source, ledger.JobFilter{Since: time.Now().Add(-time.Hour), Where: "pg_sleep(10) is not null"})
	if err != nil || e.Exact {
		t.Errorf("%+v, %v", e, err)
	}
	if !strings.Contains(e.String(), "estimate") {
		t.Error(e)
	}
}

// A sink that is new and has a backlog has a job, whoever hears of it first. A first start delivers everything anyway.
func TestBacklogOfANewSink(t *testing.T) {
	t.Parallel()
	o := newLost(t)
	sink := func(name string) {
		o.cfg.Processors = append(o.cfg.Processors, ledger.Processor{Name: name, Type: "kafka", Backlog: &ledger.NewJob{Reason: ledger.JobOfSink}})
	}
	sink("c")
	o.setup()
	o.setup()
	if got := o.jobs(); got != "c sink base 0/0/0 start 0/10 filter {}" {
		t.Errorf("init: %s", got)
	}
	o.exec("update outbox_backlog set status = 'done'")
	sink("d")
	point := o.resync().ConsistentPoint.String()
	if got := o.jobs(); !strings.HasSuffix(got, ", c resync base 0/10/5 start "+point+" filter {}, d sink base 0/0/0 start "+point+" filter {}") {
		t.Errorf("resync: %s", got)
	}
	first := newOutbox(t)
	first.cfg.Connector, first.cfg.Processors = "c", o.cfg.Processors
	first.setup()
	if got := first.jobs(); got != "none" {
		t.Errorf("first start: %s", got)
	}
}
