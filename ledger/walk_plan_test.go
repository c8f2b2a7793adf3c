package ledger_test

import (
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/migrations"
)

var walkLarge = flag.Bool("walk-large", false, "look at the plans of a walk of 1,000,000 rows")

// planNode is a node of a plan that was executed.
type planNode struct {
	Type     string `json:"Node Type"`
	Relation string `json:"Relation Name"`
	Hit      int    `json:"Shared Hit Blocks"`
	Read     int    `json:"Shared Read Blocks"`
	Plans    []planNode
}

func (n *planNode) visit(do func(*planNode)) {
	do(n)
	for i := range n.Plans {
		n.Plans[i].visit(do)
	}
}

// explained makes the server send the plan of each statement of w.conn. The function that it returns takes those that have come.
func (w *walking) explained() (plans func() []planNode) {
	w.t.Helper()
	cfg := w.conn.Config()
	var texts []string
	cfg.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		if _, plan, found := strings.Cut(n.Message, "plan:\n"); found {
			texts = append(texts, plan)
		}
	}
	conn, err := pgx.ConnectConfig(pgtest.Context(w.t), cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	if _, err := conn.Exec(pgtest.Context(w.t), "load 'auto_explain'"); err != nil {
		w.t.Skipf("this server has no auto_explain: %v", err)
	}
	if _, err := conn.Exec(pgtest.Context(w.t), "set client_min_messages = log; set auto_explain.log_analyze = on; set auto_explain.log_buffers = on; set auto_explain.log_timing = off; "+
		"set auto_explain.log_format = json; set auto_explain.log_min_duration = 0"); err != nil {
		w.t.Fatal(err)
	}
	w.conn = conn
	return func() (all []planNode) {
		w.t.Helper()
		for _, text := range texts {
			var p struct{ Plan planNode }
			if err := json.Unmarshal([]byte(text), &p); err != nil {
				w.t.Fatalf("%v in %s", err, text)
			}
			all = append(all, p.Plan)
		}
		texts = nil
		return all
	}
}

// A chunk of a walk, and its comparison with the ledger, cost what the chunk has, whatever the tables hold: no table is read as a whole, and
// nothing of it is sorted. It is so right after the rows were written, when the planner knows nothing of the tables, with the outbox
// partitioned by time, and with all rows of one time.
func TestPlansOfAWalk(t *testing.T) {
	t.Parallel()
	n := 10_000
	if *walkLarge {
		n = 1_000_000
	}
	const chunk = 500
	for name, test := range map[string]struct {
		partitioned, analyzed bool
		at                    string
		later                 int // blocks of a chunk that a later time begins; 0: as many as of any chunk
	}{
		"new":         {at: "timestamptz '2024-05-01Z' + n * interval '10 s'"},
		"analyzed":    {at: "timestamptz '2024-05-01Z' + n * interval '10 s'", analyzed: true},
		"partitioned": {at: "timestamptz '2024-05-01Z' + n % 10 * interval '1 day' + n * interval '1 ms'", partitioned: true},
		"both":        {at: "timestamptz '2024-05-01Z' + n % 10 * interval '1 day' + n * interval '1 ms'", partitioned: true, analyzed: true},
		"one time":    {at: "timestamptz '2024-05-01Z'", later: 20}, // no row is of a later time, so the table does not matter
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWalking(t)
			if test.partitioned {
				db := pgtest.Unmigrated(t)
				if err := migrations.Apply(pgtest.Context(t), db.DSN, migrations.Options{Partitioned: true}); err != nil {
					t.Fatal(err)
				}
				w = newWalkingIn(t, &testLedger{t, db, db.Conn(t)})
				w.exec("select outbox_make_event_partitions('2024-05-01Z', 12)")
			}
			w.exec(`insert into event_outbox (id, aggregate_type, aggregate_id, event_type, payload, created_at)
				select md5(n::text)::uuid, 'order', n::text, 'made', to_json(repeat('x', 200)), `+test.at+` from generate_series(1, $1::int) n`, n)
			w.exec("select outbox_make_partitions('2024-05-01Z', 3)")
			w.exec(`insert into outbox_delivery_log (event_id, processor_id, attempt_number, status, completed_at, commit_lsn, tx_index, epoch)
				select md5(n::text)::uuid, 1 + n % 2, 1, 'delivered', '2024-05-01Z'::timestamptz + n % 3 * interval '1 day', '0/100'::pg_lsn + n, 0, 1 from generate_series(1, $1::int) n where n % 10 <> 0`, n)
			w.exec(`insert into outbox_parked (processor_id, commit_lsn, tx_index, event_id, agg_hash, status, event)
				select 1, '0/100'::pg_lsn + n, 0, md5(n::text)::uuid, n, 'parked', '{}' from generate_series(1, $1::int) n where n % 20 = 0`, n)
			if test.analyzed {
				w.exec("analyze")
			}
			walk := w.open(ownWalk, 1<<20)
			plans := w.explained()
			cursor, err := walk.Begin(t.Context(), w.conn)
			if err != nil {
				t.Fatal(err)
			}
			w.cheap("begin", plans(), 200)
			q := ledger.WalkQuery{Cursor: cursor, MaxRows: chunk, MaxBytes: 4 << 20}
			for range 3 {
				c, err := walk.Read(t.Context(), w.conn, q)
				if err != nil || len(c.Rows) != chunk {
					t.Fatalf("%d rows, %v", len(c.Rows), err)
				}
				q.Cursor = c.Cursor
				w.cheap("walk", plans(), 3*chunk)
				m := ledger.MissingQuery{Processor: 1, Base: checkpoint.Position{LSN: 0x200}}
				for _, row := range c.Rows {
					m.IDs = append(m.IDs, row.Event.ID)
				}
				if _, err := ledger.Schema("public").Missing(t.Context(), w.conn, m); err != nil {
					t.Fatal(err)
				}
				w.cheap("missing", plans(), 40*chunk)
			}
			q.Since = time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC)
			if _, err := walk.Read(t.Context(), w.conn, q); err != nil {
				t.Fatal(err)
			}
			w.cheap("walk since", plans(), cmp.Or(test.later, 3*chunk))
		})
	}
}

// cheap wants each plan to read at most so many blocks, and neither a table as a whole nor anything that has to be sorted.
func (w *walking) cheap(what string, plans []planNode, blocks int) {
	w.t.Helper()
	if len(plans) == 0 {
		w.t.Errorf("%s: the server has sent no plan", what)
	}
	for _, p := range plans {
		var bad []string
		p.visit(func(n *planNode) {
			if strings.Contains(n.Type, "Sort") || n.Type == "Seq Scan" && (strings.HasPrefix(n.Relation, "event_outbox") || strings.HasPrefix(n.Relation, "outbox_")) || strings.HasPrefix(n.Type, "Bitmap") {
				bad = append(bad, n.Type+" "+n.Relation)
			}
		})
		if got := p.Hit + p.Read; len(bad) > 0 || got > blocks {
			w.t.Errorf("%s: %d blocks, want %d at most; %q", what, got, blocks, bad)
		} else {
			w.t.Log(what, fmt.Sprint(got), "blocks")
		}
	}
}
