package provision

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode/exitcodetest"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
)

// A table that cannot be walked in the order is refused, and the statements of the message are enough.
func TestCheckOrder(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		sql   string
		order []string
		words []string // of the error; none: it is accepted
	}{
		"our own":             {order: []string{"created_at", "id"}},
		"by id":               {order: []string{"id"}},
		"without its index":   {sql: "drop index idx_outbox_created_at", order: []string{"created_at", "id"}, words: []string{"no btree index of public.event_outbox begins with created_at, id", `create index concurrently on public.event_outbox ("created_at", "id")`}},
		"an index of a part":  {sql: "drop index idx_outbox_created_at; create index on event_outbox (created_at, id) where event_version = 1", order: []string{"created_at", "id"}, words: []string{"no btree index"}},
		"the other way round": {sql: "drop index idx_outbox_created_at; create index on event_outbox (id, created_at)", order: []string{"created_at", "id"}, words: []string{"no btree index"}},
		"the time alone":      {sql: "drop index idx_outbox_created_at; create index on event_outbox (created_at, event_version)", order: []string{"created_at"}},
		"nullable":            {order: []string{"tenant_id", "id"}, words: []string{`column "tenant_id" of public.event_outbox may be null`, `alter table "public"."event_outbox" alter column "tenant_id" set not null`, "source.order_by"}},
		"no column":           {order: []string{"seq"}, words: []string{`has no column "seq"`, "source.order_by"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := newLost(t)
			o.cfg.OrderBy = test.order
			if test.sql != "" {
				if _, err := o.conn.Exec(pgtest.Context(t), test.sql, pgx.QueryExecModeSimpleProtocol); err != nil {
					t.Fatal(err)
				}
			}
			o.exec(dropSlotSQL)
			_, err := Resync(pgtest.Context(t), ResyncConfig{SetupConfig: o.cfg})
			if test.words == nil {
				if err != nil {
					t.Error(err)
				}
				return
			}
			exitcodetest.Want(t, err, exitcode.Config, test.words...)
			if o.slot() != "none" || !strings.HasPrefix(o.checkpoint(), "ready 0/10/5") {
				t.Errorf("a refusal changed something: slot %s, checkpoint %s", o.slot(), o.checkpoint())
			}
			if _, statements, found := strings.Cut(err.Error(), "as its owner: "); found {
				for sql := range strings.SplitSeq(statements, "; ") {
					if _, err := o.conn.Exec(context.Background(), sql); err != nil {
						t.Fatal(err)
					}
				}
				o.resync()
			}
		})
	}
}
