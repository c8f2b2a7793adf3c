package ledger_test

import (
	"flag"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

var verifyLarge = flag.Bool("verify-large", false, "measure the comparison of 1,000,000 rows")

// A million rows for two sinks are compared within 10 s, however they have come: on the stream, or by a job.
func TestCompareAMillionRows(t *testing.T) {
	t.Parallel()
	n, most := 2_000, 10*time.Second
	if *verifyLarge {
		n = 1_000_000
	}
	for name, index := range map[string]string{"streamed": "n % 10", "by a job": "n - 9000000"} {
		t.Run(name, func(t *testing.T) {
			w := newWalking(t)
			w.checkpointAt(checkpoint.Position{LSN: 0xfffffff, Index: -1})
			w.exec("insert into event_outbox (id, aggregate_type, aggregate_id, event_type, payload) select ('00000000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, 'order', n::text, 'made', to_json(repeat('x', 200)) from generate_series(1, $1::int) n", n)
			w.exec(`insert into outbox_delivery_log (event_id, processor_id, attempt_number, status, completed_at, commit_lsn, tx_index, epoch)
				select ('00000000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, p, 1, 'delivered', now() + n % 3 * interval '1 day', '0/0'::pg_lsn + n * 10, `+index+`, 1 from generate_series(1, $1::int) n, generate_series(1, 2) p where n % 100000 > 1`, n)
			began := time.Now()
			found, _ := w.compare(ledger.VerifyQuery{Slot: "s", Processors: []int32{1, 2}})
			took := time.Since(began)
			t.Logf("%d rows: %s", n, took)
			if want := max(n/100_000*2, 1); len(found[1]) != want || len(found[2]) != want {
				t.Errorf("found %d and %d, want %d", len(found[1]), len(found[2]), want)
			}
			if took > most {
				t.Errorf("took %s", took)
			}
		})
	}
}
