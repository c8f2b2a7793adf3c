package service

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/admin"
	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode/exitcodetest"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/provision"
)

// Each start says which database it works on, and where that was configured. It never says a password.
func TestLogDatabase(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		text    string
		environ []string
		want    string
	}{
		{"", []string{"DATABASE_URL=postgres://app:canary@db:5433/shop?sslmode=verify-full"}, `
level=INFO msg=starting address=db:5433 database=shop user=app configured=DATABASE_URL
`},
		{"\nsource: {dsn: \"postgres://app:canary@db/shop?sslmode=verify-full\",\n replication_dsn: \"postgres://stream:${SECRET}@db/shop?sslmode=verify-full\"}", []string{"SECRET=canary"}, `
level=INFO msg=starting address=db:5432 database=shop user=app configured=f.yml:2
level=INFO msg="the stream has a connection of its own" address=db:5432 database=shop user=stream configured=f.yml:3
`},
	} {
		cfg, _, err := config.Parse("f.yml", []byte(test.text), test.environ, config.Options{NoSinks: true})
		if err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		logDatabase(slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}})), cfg)
		if got := log.String(); got != strings.TrimPrefix(test.want, "\n") {
			t.Errorf("got\n%swant%s", got, test.want)
		}
	}
}

// An owner's login for another database than the configuration's would make tables, or drop them, where nobody wants that.
func TestOwnerOfAnotherDatabase(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	other := pgtest.Unmigrated(t)
	_, err := Init(pgtest.Context(t), w.cfg, InitOptions{AdminDSN: other.DSN})
	exitcodetest.Want(t, err, exitcode.Config, "--dsn, or OUTBOX_ADMIN_URL", `database "`+w.database()+`"`, "source.dsn", "(DATABASE_URL)")
	if n := pgtest.Text(t, other.Conn(t), "select count(*)::text from pg_class where relname ~ 'outbox'"); n != "0" {
		t.Errorf("%s relations were made there", n)
	}
	_, err = Destroy(pgtest.Context(t), w.cfg, DestroyOptions{AdminDSN: other.DSN, Ledger: true})
	exitcodetest.Want(t, err, exitcode.Config, "let both lead to the same database")
}

// A restored backup is told from its original by the hosts of source.dsn. So it is if the command has an owner's login, and in the status.
func TestRestoredBackupIsNoticed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if _, err := Init(pgtest.Context(t), w.cfg, InitOptions{}); err != nil {
		t.Fatal(err)
	}
	w.exec("update outbox_checkpoints set timeline = 99, source_hosts = 'original:5432'",
		"insert into outbox_parked (processor_id, commit_lsn, tx_index, agg_hash, status, event) values (1, '0/1', 0, 1, 'parked', '{}')",
		"select pg_drop_replication_slot('"+w.cfg.Source.Slot+"')")
	const restored = "and reached by localhost:"
	for name, owner := range map[string]string{"the connector's login": "", "an owner's login": w.admin + "&application_name=owner"} {
		why, _, err := ResyncPlan(pgtest.Context(t), w.cfg, ResyncOptions{AdminDSN: owner, Parked: provision.ParkedKeep})
		if err != nil || !strings.Contains(why, restored) {
			t.Errorf("%s: resync would be done because %q, %v", name, why, err)
		}
		_, err = Resync(pgtest.Context(t), w.cfg, ResyncOptions{AdminDSN: owner})
		exitcodetest.Want(t, err, exitcode.Config, "still owes 1 parked event", "--parked keep")
	}
	status, err := admin.ReadStatus(pgtest.Context(t), StatusConfig(w.cfg))
	if err != nil || len(status.ToDo) == 0 || !strings.Contains(status.ToDo[0].What, restored) {
		t.Errorf("status says %+v, %v", status.ToDo, err)
	}
}
