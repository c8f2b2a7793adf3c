package admin

import (
	"context"
	"crypto/rand"
	"fmt"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/decoder"
	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/provision"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// world is a database with a ledger, and the Config that leads to it.
type world struct {
	t     *testing.T
	conn  *pgx.Conn
	admin Config
}

// newWorld makes a ledger with the sinks "a" (id 1) and "b" (id 2) of our connector, and a sink of another connector.
func newWorld(t *testing.T) *world {
	t.Helper()
	d := pgtest.New(t)
	w := &world{t: t, conn: d.Conn(t), admin: Config{Name: "shop", DSN: d.DSN, Source: provision.Source{
		Table: "public.event_outbox", LedgerSchema: "public", Slot: "shop", Publication: "shop", Columns: decoder.DefaultColumns(),
	}}}
	w.exec(`insert into outbox_processors (id, connector, processor_name, processor_type)
		values (1, 'shop', 'a', 'stdout'), (2, 'shop', 'b', 'stdout'), (3, 'other', 'a', 'stdout')`,
		"insert into outbox_checkpoints (slot_name, state, epoch) values ('shop', 'ready', 7)")
	return w
}

func (w *world) exec(sqls ...string) {
	w.t.Helper()
	for _, sql := range sqls {
		if _, err := w.conn.Exec(testContext(w.t), sql); err != nil {
			w.t.Fatalf("%s: %v", sql, err)
		}
	}
}

func (w *world) text(sql string) string {
	w.t.Helper()
	var s string
	if err := w.conn.QueryRow(testContext(w.t), sql).Scan(&s); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
	return s
}

// newRole makes a login, which is dropped when the test ends, and returns its name and its DSN.
func (w *world) newRole() (name, dsn string) {
	w.t.Helper()
	name = "role_" + strings.ToLower(rand.Text())
	w.exec("create role " + name + " login password 'x'")
	w.t.Cleanup(func() {
		for _, sql := range []string{"drop owned by " + name, "drop role " + name} {
			if _, err := w.conn.Exec(context.Background(), sql); err != nil {
				w.t.Error(err)
			}
		}
	})
	u, err := url.Parse(w.admin.DSN)
	if err != nil {
		w.t.Fatal(err)
	}
	u.User = url.UserPassword(name, "x")
	return name, u.String()
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func wantExit(t *testing.T, err error, code exitcode.Code, words ...string) {
	t.Helper()
	if exitcode.Of(err) != code {
		t.Fatalf("exit code of %v is not %d", err, code)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q is not in: %v", w, err)
		}
	}
}

func eventID(n int) string { return fmt.Sprintf("00000000-0000-7000-8000-%012d", n) }

// park inserts row n of a processor. set says in what it differs from an untried row.
func (w *world) park(processor, n int, status string, set string) {
	w.t.Helper()
	w.exec(fmt.Sprintf(`insert into outbox_parked (processor_id, commit_lsn, tx_index, event_id, agg_hash, status, event, payload)
		values (%[1]d, '0/%[2]X', 0, '%[3]s', %[4]d, '%[5]s',
			'{"aggregate_type":"order","aggregate_id":"%[4]d","event_type":"order.made","tenant_id":"acme","metadata":{"nul":"\u0000"}}', '{"n": %[2]d}')`,
		processor, n, eventID(n), n%10, status))
	if set != "" {
		w.exec(fmt.Sprintf("update outbox_parked set %s where processor_id = %d and commit_lsn = '0/%X'", set, processor, n))
	}
}

const rowsNow = `select coalesce(string_agg(concat_ws(':', processor_id, commit_lsn, status, attempts, tries, tried_at is not null,
	next_attempt_at <= now(), error_message), ' ' order by processor_id, commit_lsn), '') from outbox_parked`

const logNow = `select coalesce(string_agg(concat_ws(':', processor_id, commit_lsn, tx_index, event_id is not null, status, attempt_number, epoch, error_message), ' '
	order by processor_id, commit_lsn), '') from outbox_delivery_log`

// heard returns the notifications since its last call.
func heard(t *testing.T, conn *pgx.Conn) (payloads []string) {
	t.Helper()
	if _, err := conn.Exec(testContext(t), "select 1"); err != nil {
		t.Fatal(err)
	}
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		n, err := conn.WaitForNotification(ctx)
		cancel()
		if err != nil {
			return payloads
		}
		payloads = append(payloads, n.Payload)
	}
}

func (w *world) listen() *pgx.Conn {
	w.t.Helper()
	conn, err := pgx.Connect(testContext(w.t), w.admin.DSN)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { conn.Close(context.Background()) })
	if err := ledger.ListenChanged(testContext(w.t), conn); err != nil {
		w.t.Fatal(err)
	}
	return conn
}
