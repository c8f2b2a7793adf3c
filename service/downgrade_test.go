package service

import (
	"log/slog"
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode/exitcodetest"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/provision"
)

// After a downgrade, whatever works on slot and ledger as a whole refuses the ledger of the later version, and changes nothing.
func TestDowngrade(t *testing.T) {
	t.Parallel()
	ctx := pgtest.Context(t)
	w := newWorld(t)
	if _, err := Init(ctx, w.cfg, InitOptions{}); err != nil {
		t.Fatal(err)
	}
	w.exec("insert into outbox_migrations (version_id, is_applied) values (11, true)",
		"comment on table outbox_migrations is 'outbox-cdc v2.0.0 applied migrations up to 11'",
		"insert into event_outbox (aggregate_type, aggregate_id, event_type, payload) values ('a', '1', 'e', '{}')")
	const everything = `select concat_ws(' ', (select string_agg(c::text, ' ') from outbox_checkpoints c), (select string_agg(m::text, ' ') from outbox_migrations m),
		(select string_agg(p::text, ' ') from outbox_processors p), (select count(*) from outbox_backlog),
		(select string_agg(concat_ws(' ', slot_name, confirmed_flush_lsn, restart_lsn), ' ') from pg_replication_slots where database = current_database()),
		(select string_agg(pubname, ' ') from pg_publication), (select count(*) from pg_class))`
	before := w.text(everything)
	for name, refuses := range map[string]func() error{
		"init":           func() error { _, err := Init(ctx, w.cfg, InitOptions{}); return err },
		"init --dry-run": func() error { _, err := InitPlan(ctx, w.cfg, InitOptions{}); return err },
		"run":            func() error { return Run(ctx, w.cfg, RunOptions{Logger: slog.New(slog.DiscardHandler)}) },
		"run --init":     func() error { return Run(ctx, w.cfg, RunOptions{Init: true, Logger: slog.New(slog.DiscardHandler)}) },
		"resync": func() error {
			_, err := Resync(ctx, w.cfg, ResyncOptions{Parked: provision.ParkedKeep})
			return err
		},
		"adopt":   func() error { _, err := Adopt(ctx, w.cfg, AdoptOptions{}); return err },
		"destroy": func() error { _, err := Destroy(ctx, w.cfg, DestroyOptions{Ledger: true}); return err },
	} {
		err := refuses()
		if err == nil {
			t.Errorf("%s does not refuse", name)
			continue
		}
		exitcodetest.Want(t, err, exitcode.Config, `the ledger in schema "public" is newer than this outbox-cdc: version v2.0.0 has applied migration 11 on `,
			"this one knows those up to 10; install that version or a later one, see docs/upgrades.md#downgrade")
		if after := w.text(everything); after != before {
			t.Errorf("%s has changed something:\n%s\n%s", name, before, after)
		}
	}
}
