package ledger_test

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

func TestSQL(t *testing.T) {
	t.Parallel()
	const text = "select ledger.outbox_make_partitions(now(), 7) from ledger.outbox_parked join ledger.event_outbox_status using (id)"
	got := ledger.Schema(`My "cdc"`).SQL(text)
	want := `select "My ""cdc""".outbox_make_partitions(now(), 7) from "My ""cdc""".outbox_parked join "My ""cdc""".event_outbox_status using (id)`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got, want := ledger.Schema("cdc").Name("outbox_parked"), `"cdc"."outbox_parked"`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// Whatever the DSN says, in whatever case, ours is what the session gets.
func TestPin(t *testing.T) {
	t.Parallel()
	c, err := pgx.ParseConfig("postgres://h/d?search_path=public&Search_Path=public&STATEMENT_TIMEOUT=1&work_mem=64MB")
	if err != nil {
		t.Fatal(err)
	}
	ledger.Pin(&c.Config)
	for name, want := range map[string]string{
		"search_path": "pg_catalog, pg_temp", "Search_Path": "", "STATEMENT_TIMEOUT": "", "statement_timeout": "0",
		"work_mem": "64MB", "application_name": "outbox-cdc",
	} {
		if got := c.RuntimeParams[name]; got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}
