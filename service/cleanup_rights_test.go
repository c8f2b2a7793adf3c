package service

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/provision"
)

// The printed SQL grants what the cleanup needs, and only if something is deleted.
func TestCleanupRights(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		outbox, log config.Age
		grants      []string // "%s" is the login
	}{
		"nothing": {config.AgeOff, config.AgeOff, nil},
		"ledger": {config.AgeOff, "7d", []string{
			"grant execute on function public.outbox_drop_log_partitions(timestamptz, boolean) to %s", "grant insert, update on table public.outbox_retention to %s",
		}},
		"both": {"7d", "7d", []string{
			"grant delete on table public.event_outbox to %s", "grant execute on function public.outbox_drop_log_partitions(timestamptz, boolean) to %s",
			"grant insert, update on table public.outbox_retention to %s",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			role, dsn := w.newRole()
			_, streamDSN := w.newRole()
			w.cfg.Source.DSN, w.cfg.Source.ReplicationDSN = config.DSN(dsn), config.DSN(streamDSN)
			install := func(outbox, log config.Age) {
				t.Helper()
				w.cfg.Retention = config.Retention{Outbox: outbox, Ledger: log}
				text, err := InitSQL(pgtest.Context(t), w.cfg, InitOptions{AdminDSN: w.admin})
				if err != nil {
					t.Fatal(err)
				}
				w.exec("revoke create on schema public from public", text)
			}
			install(config.AgeOff, config.AgeOff)
			if _, err := Init(pgtest.Context(t), w.cfg, InitOptions{}); err != nil {
				t.Fatal(err)
			}
			conn, err := pgx.Connect(pgtest.Context(t), dsn)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close(pgtest.Context(t))
			lacking := func() []string {
				t.Helper()
				grants, err := provision.LackingCleanup(pgtest.Context(t), conn, source(w.cfg))
				if err != nil {
					t.Fatal(err)
				}
				for i := range grants {
					grants[i] = strings.ReplaceAll(grants[i], role, "%s")
				}
				return grants
			}
			w.cfg.Retention = config.Retention{Outbox: tc.outbox, Ledger: tc.log}
			if diff := cmp.Diff(tc.grants, lacking()); diff != "" {
				t.Errorf("without the rights, -want +got:\n%s", diff)
			}
			// Without them a session begins, and validate --connect names them.
			warnings, err := provision.Reach(pgtest.Context(t), source(w.cfg), dsn, streamDSN)
			if said := strings.Contains(strings.Join(warnings, "\n"), "grant "); err != nil || said != (tc.grants != nil) {
				t.Errorf("%q, %v", warnings, err)
			}
			install(tc.outbox, tc.log)
			if got := lacking(); len(got) > 0 {
				t.Errorf("with the rights: %q", got)
			}
			if may := w.text("select has_table_privilege('" + role + "', 'event_outbox', 'delete')::text"); (may == "true") != (tc.outbox != config.AgeOff) {
				t.Errorf("delete from event_outbox: %s", may)
			}
			if tc.log == config.AgeOff {
				return
			}
			// They are enough.
			s := ledger.Schema("public")
			w.exec("select outbox_make_partitions('2020-01-01 12:00Z', 0)")
			for _, call := range []func() ([]ledger.LogPartition, error){
				func() ([]ledger.LogPartition, error) { return s.LogPartitions(pgtest.Context(t), conn) },
				func() ([]ledger.LogPartition, error) {
					return s.PlanLogDrop(pgtest.Context(t), conn, ledger.LogCutoff{Age: time.Hour})
				},
				func() ([]ledger.LogPartition, error) {
					return s.DropLogPartition(pgtest.Context(t), conn, ledger.LogCutoff{Age: time.Hour})
				},
			} {
				all, err := call()
				if err != nil || len(all) == 0 || all[0].Name != "outbox_delivery_log_20200101" || all[0].Outcome != "" && all[0].Outcome != ledger.LogDropped {
					t.Errorf("%+v, %v", all, err)
				}
			}
			if err := s.WriteRetentionReport(pgtest.Context(t), conn, json.RawMessage(`{}`)); err != nil {
				t.Error(err)
			}
			if _, err := s.ReadRetention(pgtest.Context(t), conn); err != nil {
				t.Error(err)
			}
		})
	}
}
