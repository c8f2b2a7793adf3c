package provision_test

import (
	"strings"
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/decoder"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/provision"
)

// An outbox can be walked only by columns that exist, are never null and have an index. The message has the statement that helps.
func TestCheckOrder(t *testing.T) {
	t.Parallel()
	conn := pgtest.New(t).Conn(t)
	if _, err := conn.Exec(t.Context(), "create table public.mine (id bigint primary key, seq bigint not null, at timestamptz)"); err != nil {
		t.Fatal(err)
	}
	own := provision.Source{Table: "public.event_outbox", Columns: decoder.DefaultColumns()}
	mine := provision.Source{Table: "public.mine", Columns: decoder.Columns{ID: "id"}}
	for _, test := range []struct {
		source  provision.Source
		orderBy string
		want    string // in the error; "" for none
	}{
		{own, "created_at id", ""},
		{own, "id", ""},
		{own, "created_at", ""},
		{own, "tenant_id", `alter table "public"."event_outbox" alter column "tenant_id" set not null`},
		{own, "nothing", `has no column "nothing"`},
		{mine, "seq", `create index concurrently on "public"."mine" ("seq", "id")`},
		{mine, "at seq", "may be null"},
		{mine, "", ""},
	} {
		test.source.OrderBy = strings.Fields(test.orderBy)
		err := test.source.CheckOrder(t.Context(), conn)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s by %q: %v, want %q", test.source.Table, test.orderBy, err, test.want)
		}
	}
}
