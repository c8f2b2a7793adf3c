package admin

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/decoder"
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
	pgtest.Exec(w.t, w.conn, sqls...)
}

func (w *world) text(sql string) string {
	w.t.Helper()
	return pgtest.Text(w.t, w.conn, sql)
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

// transactionID is a transaction's id in the payload of a notification.
var transactionID = regexp.MustCompile(`:rows:\d+:`)

// heard returns the notifications since its last call.
func heard(t *testing.T, conn *pgx.Conn) (payloads []string) {
	t.Helper()
	if _, err := conn.Exec(pgtest.Context(t), "select 1"); err != nil {
		t.Fatal(err)
	}
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		n, err := conn.WaitForNotification(ctx)
		cancel()
		if err != nil {
			return payloads
		}
		payloads = append(payloads, transactionID.ReplaceAllString(n.Payload, ":rows:#:"))
	}
}

func (w *world) listen() *pgx.Conn {
	w.t.Helper()
	conn, err := pgx.Connect(pgtest.Context(w.t), w.admin.DSN)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { conn.Close(context.Background()) })
	if err := ledger.ListenChanged(pgtest.Context(w.t), conn); err != nil {
		w.t.Fatal(err)
	}
	return conn
}
