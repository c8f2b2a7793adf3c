package service

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/admin"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode/exitcodetest"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

// The lists of a mapped table say what really became of its events, with and without a column for their time.
func TestEventsOfAMappedTable(t *testing.T) {
	t.Parallel()
	d := pgtest.Unmigrated(t)
	planted := d.Plant(t, "public")
	h := &hostile{world: &world{t: t, admin: d.DSN, conn: d.Conn(t)}}
	h.exec("set search_path = pg_catalog", `create schema "Shop"`, `create table "Shop"."EventOutbox" ("EventID" bigint generated always as identity primary key, "Kind" text not null,
		"Agg ID" int not null, "What" text not null, "Body" text not null, "At" timestamp default (now() at time zone 'utc'))`)
	file := t.TempDir() + "/outbox.yaml"
	text := "source: {dsn: '" + h.admin + "', slot: " + d.Slot(t) + `, table: Shop.EventOutbox, ledger_schema: cdc, columns: {id: EventID, aggregate_type: Kind,
    aggregate_id: "Agg ID", event_type: What, event_version: "", payload: Body, metadata: "", created_at: At, max_retries: "", tenant_id: "", correlation_id: "", causation_id: ""}}
sinks: [{name: a, type: stdout}, {name: b, type: stdout}]
http: {listen: ""}
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	h.configure(file)
	ctx := pgtest.Context(t)
	_, err := Init(ctx, h.cfg, InitOptions{})
	h.ok("init", err)
	var stdout lockedBuffer
	run := func() (stop func()) {
		c, err := Build(h.cfg, BuildOptions{
			Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), Health: &monitoring.Health{}, Stdout: &stdout, Metrics: monitoring.NewMetrics("", nil),
		})
		h.ok("build", err)
		running, cancel := context.WithCancel(ctx)
		ended := make(chan error, 1)
		go func() { ended <- c.Run(running) }()
		return func() {
			cancel()
			h.ok("run", <-ended)
		}
	}
	insert := func(aggregate int) {
		h.exec(fmt.Sprintf(`insert into "Shop"."EventOutbox" ("Kind", "Agg ID", "What", "Body") values ('order', %d, 'made', 'no JSON')`, aggregate))
	}
	cfg := AdminConfig(h.cfg)
	change := func(a admin.Action, id string) {
		t.Helper()
		_, err := admin.ChangeParked(ctx, cfg, a, admin.ChangeOptions{Filter: admin.Filter{IDs: []string{id}}, Reason: "test"})
		h.ok(string(a)+" "+id, err)
	}
	stop := run()
	insert(1)
	h.eventually("select count(*)::text from cdc.outbox_delivery_log where status = 'delivered'", "2")
	stop()
	_, err = admin.Pause(ctx, cfg, []string{"a"})
	h.ok("pause", err)
	stop = run()
	insert(2)
	insert(3)
	insert(4)
	h.eventually("select concat_ws(' ', (select count(*) from cdc.outbox_delivery_log where status = 'delivered'), (select count(*) from cdc.outbox_parked))", "5 3")
	change(admin.Kill, "2")
	change(admin.Kill, "3")
	change(admin.Discard, "3") // sink b has it
	stop()
	insert(5)
	h.exec(`insert into "Shop"."EventOutbox" ("Kind", "Agg ID", "What", "Body", "At") values ('order', 6, 'old', '', now() at time zone 'utc' - interval '2 days'), ('order', 7, 'timeless', '', null)`)

	list := func(cfg admin.Config, q admin.EventsQuery) string {
		t.Helper()
		var got []string
		q.Limit = 2
		for {
			page, err := admin.Events(ctx, cfg, q)
			h.ok("list", err)
			for _, e := range page.Events {
				if e.AggregateType != "order" || e.AggregateID != e.ID || e.TenantID != "" {
					t.Errorf("%+v", e)
				}
				if timed := e.ID != "7" && cfg.Source.Columns.CreatedAt != ""; timed != !e.CreatedAt.IsZero() || timed && e.ID != "6" && time.Since(e.CreatedAt).Abs() > 10*time.Minute {
					t.Errorf("event %s was created at %s", e.ID, e.CreatedAt)
				}
				got = append(got, e.ID+":"+e.Status)
			}
			if q.After = page.Next; q.After == "" {
				return strings.Join(got, " ")
			}
		}
	}
	timeless := cfg
	timeless.Source.Columns.CreatedAt = ""
	threeDays := time.Now().Add(-72 * time.Hour)
	for _, tc := range []struct {
		cfg  admin.Config
		q    admin.EventsQuery
		want string
	}{
		{cfg, admin.EventsQuery{}, "5:pending 4:parked 3:discarded 2:dead 1:delivered"},
		{cfg, admin.EventsQuery{Status: "pending"}, "5:pending"},
		{cfg, admin.EventsQuery{Status: "delivered"}, "1:delivered"},
		{cfg, admin.EventsQuery{Status: "pending", Filter: admin.Filter{Since: threeDays}}, "5:pending 6:pending"},
		{cfg, admin.EventsQuery{Filter: admin.Filter{Since: threeDays, Until: time.Now().Add(-time.Hour)}}, "6:pending"},
		{cfg, admin.EventsQuery{Filter: admin.Filter{IDs: []string{"7", "3", "x", "6"}}}, "7:pending 6:pending 3:discarded"},
		{cfg, admin.EventsQuery{Filter: admin.Filter{IDs: []string{"x"}}}, ""},
		{cfg, admin.EventsQuery{Filter: admin.Filter{Aggregate: "order/4"}}, "4:parked"},
		{timeless, admin.EventsQuery{}, "7:pending 6:pending 5:pending 4:parked 3:discarded 2:dead 1:delivered"},
		{timeless, admin.EventsQuery{Status: "delivered"}, "1:delivered"},
		{timeless, admin.EventsQuery{Filter: admin.Filter{Type: "ol*"}}, "6:pending"},
	} {
		if got := list(tc.cfg, tc.q); got != tc.want {
			t.Errorf("created_at %q, %+v: %s, want %s", tc.cfg.Source.Columns.CreatedAt, tc.q, got, tc.want)
		}
	}
	for id, want := range map[string]string{"1": "delivered", "2": "dead", "3": "discarded", "4": "parked", "5": "pending", "7": "pending"} {
		if d, err := admin.ShowEvent(ctx, cfg, admin.EventDetailsQuery{ID: id}); err != nil || d.Event == nil || d.Event.Status != want || d.EventError != "" {
			t.Errorf("event %s: %+v, %v, want %s", id, d, err, want)
		}
	}
	refused := func(what string, cfg admin.Config, q admin.EventsQuery, code exitcode.Code, wants ...string) {
		t.Helper()
		q.Limit = 1
		if _, err := admin.Events(ctx, cfg, q); err == nil {
			t.Errorf("%s: no error", what)
		} else {
			exitcodetest.Want(t, err, code, wants...)
		}
	}
	refused("since", timeless, admin.EventsQuery{Filter: admin.Filter{Since: threeDays}}, exitcode.Failure, "events of Shop.EventOutbox cannot be listed by time: source.columns names no created_at")
	refused("after", cfg, admin.EventsQuery{After: "2026-01-31T00:00:00Z,x"}, exitcode.Failure, "as 2026-01-31T12:00:00.5Z,4711 is")
	refused("after", timeless, admin.EventsQuery{After: "x"}, exitcode.Failure, "as 4711 is")
	for column, want := range map[string]string{"Kind": `column "Kind" of Shop.EventOutbox is no timestamp`, "at": `table Shop.EventOutbox has no column "at"; correct source.columns`} {
		wrong := cfg
		wrong.Source.Columns.CreatedAt = column
		refused(column, wrong, admin.EventsQuery{}, exitcode.Config, want)
		d, err := admin.ShowEvent(ctx, wrong, admin.EventDetailsQuery{ID: "2"})
		if err != nil || d.Event != nil || !strings.Contains(d.EventError, want) || len(d.Parked) != 1 {
			t.Errorf("%+v, %v", d, err)
		}
	}
	h.exec(`create view "Shop".seen as select * from "Shop"."EventOutbox"`)
	for table, want := range map[string]string{"Shop.lost": "table Shop.lost does not exist", "Shop.seen": "Shop.seen is no table"} {
		wrong := cfg
		wrong.Source.Table = table
		refused(table, wrong, admin.EventsQuery{}, exitcode.Config, want)
	}

	// A login that may read the ledger and not the table is told what the owner has to run. Then it works.
	name, dsn := h.newRole()
	h.exec("grant usage on schema cdc to "+name, "grant select on all tables in schema cdc to "+name)
	poor := cfg
	poor.DSN = dsn
	grants := []string{`grant usage on schema "Shop" to ` + name, `grant select on table "Shop"."EventOutbox" to ` + name}
	refused("no right", poor, admin.EventsQuery{}, exitcode.Privilege, strings.Join(grants, "; "))
	shown, err := admin.ShowEvent(ctx, poor, admin.EventDetailsQuery{ID: "2"})
	if err != nil || shown.Event != nil || !strings.Contains(shown.EventError, grants[1]) || len(shown.Parked) != 1 {
		t.Errorf("%+v, %v", shown, err)
	}
	h.exec(grants...)
	if got := list(poor, admin.EventsQuery{Status: "delivered"}); got != "1:delivered" {
		t.Errorf("with the grants: %s", got)
	}
	planted.CheckNothingCaught(t)
}
