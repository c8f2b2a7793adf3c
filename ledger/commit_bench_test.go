package ledger_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/internal/pgtest"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// BenchmarkCommitParked parks 2,000 rows in one batch and delivers them in another, as lanes that catch up do. One operation is both.
func BenchmarkCommitParked(b *testing.B) {
	db := pgtest.New(b)
	conn := db.Conn(b)
	if _, err := conn.Exec(b.Context(), `insert into outbox_checkpoints (slot_name, state, system_identifier, timeline, prefix_lsn, prefix_index, confirmed_lsn)
		values ('s', 'ready', '42', 1, '0/64', -1, '0/64')`); err != nil {
		b.Fatal(err)
	}
	pool := db.Pool(b, ledger.Pin)
	w, _, err := ledger.Open(b.Context(), ledger.Config{Schema: "public", Slot: "s", Owner: "test", Connect: func(ctx context.Context) (*pgx.Conn, error) {
		return pgx.ConnectConfig(ctx, pool.Config().ConnConfig)
	}})
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	lsn := pglogrepl.LSN(100)
	for b.Loop() {
		parked, delivered := make([]checkpoint.Outcome, 2000), make([]checkpoint.Outcome, 2000)
		for i := range parked {
			o := checkpoint.Outcome{Processor: 1, Position: pos(lsn, int64(i)), EventID: eventID(i), Attempt: 1, Row: checkpoint.RowDelete, StartedAt: time.Now(), CompletedAt: time.Now()}
			delivered[i] = o
			o.Row, o.Status = checkpoint.RowInsert, checkpoint.Parked
			o.Parked = &checkpoint.ParkedState{AggregateHash: int64(i), Event: []byte(`{"aggregate_type":"order"}`), Payload: fmt.Appendf(nil, "%0600d", i)}
			parked[i] = o
		}
		for _, rows := range [][]checkpoint.Outcome{parked, delivered} {
			batch := checkpoint.Batch{Outcomes: []checkpoint.Outcomes{{Rows: rows}}, Watermark: checkpoint.Watermark{Prefix: pos(lsn, 0), LSN: lsn}}
			if err := w.Commit(b.Context(), batch); err != nil {
				b.Fatal(err)
			}
		}
		lsn += 8
	}
	b.ReportMetric(float64(b.N)*4000/b.Elapsed().Seconds(), "changes/s")
}
