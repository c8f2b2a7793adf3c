package admin

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/decoder"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode/exitcodetest"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/migrations"
	"github.com/pyairtable-compose/outbox-cdc/provision"
)

// Where source.dsn leads to a standby, commands that need the primary say so.
func TestOnAStandby(t *testing.T) {
	t.Parallel()
	settings := servers.NoSync()
	settings["wal_keep_size"] = "256MB"
	primary := pgtest.Start(t, servers.PostgresOptions{Settings: settings})
	if err := migrations.Apply(t.Context(), primary.DSN("postgres"), migrations.Options{}); err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), primary.DSN("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	pgtest.Exec(t, conn, "insert into outbox_processors (id, connector, processor_name, processor_type) values (1, 'shop', 'a', 'stdout')")
	standby, err := servers.StartReplica(t.Context(), primary, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := standby.Close(); err != nil {
			t.Error(err)
		}
	})
	c := Config{Name: "shop", DSN: standby.DSN("postgres"), Source: provision.Source{
		Table: "public.event_outbox", LedgerSchema: "public", Slot: "shop", Publication: "shop", Columns: decoder.DefaultColumns(),
	}}
	const remedy = "let source.dsn lead to the primary"
	_, err = Verify(pgtest.Context(t), c, Routing{}, VerifyOptions{})
	exitcodetest.Want(t, err, exitcode.Config, "the server is a standby", remedy)
	_, err = Pause(pgtest.Context(t), c, []string{"a"})
	exitcodetest.Want(t, err, exitcode.Config, "if the server is a standby, "+remedy)
}
