package service

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pyairtable-compose/outbox-cdc/cleanup"
	"github.com/pyairtable-compose/outbox-cdc/config"
)

// What is said of the retention is what the connector is given.
func TestDeletes(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	for text, want := range map[string]struct {
		retention cleanup.Retention
		texts     []string
	}{
		"": {cleanup.Retention{Outbox: 7 * day, Ledger: 7 * day}, []string{
			"rows of public.event_outbox that are settled for every sink are deleted when they are older than 7d; retention.outbox: off keeps them",
			"days of the delivery log that are settled are deleted when they are older than 7d; retention.ledger: off keeps them",
		}},
		"retention: {outbox: 0s, ledger: 36h}": {cleanup.Retention{Outbox: 0, Ledger: 36 * time.Hour}, []string{
			"rows of public.event_outbox are deleted as soon as they are settled for every sink; retention.outbox: off keeps them",
			"days of the delivery log that are settled are deleted when they are older than 36h; retention.ledger: off keeps them",
		}},
		"retention: {ledger: off}": {cleanup.Retention{Outbox: 7 * day, Ledger: cleanup.Forever}, []string{
			"rows of public.event_outbox that are settled for every sink are deleted when they are older than 7d; retention.outbox: off keeps them",
			"no days of the delivery log are deleted: retention.ledger is off",
		}},
		"source: {table: shop.outbox}": {cleanup.Retention{Outbox: cleanup.Forever, Ledger: 7 * day}, []string{
			"no rows of shop.outbox are deleted: retention.outbox is off",
			"days of the delivery log that are settled are deleted when they are older than 7d; retention.ledger: off keeps them",
		}},
		"retention: {outbox: off, ledger: off}": {cleanup.Retention{Outbox: cleanup.Forever, Ledger: cleanup.Forever}, []string{
			"nothing is deleted: retention.outbox and retention.ledger are off",
		}},
	} {
		cfg, _, err := config.Parse("f.yml", []byte(text), []string{"DATABASE_URL=" + testDSN, "OUTBOX_PUBLISHER_TYPE=stdout"}, config.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want.retention, Retention(cfg)); diff != "" {
			t.Errorf("%s: -want +got:\n%s", text, diff)
		}
		if diff := cmp.Diff(want.texts, Deletes(cfg)); diff != "" {
			t.Errorf("%s: -want +got:\n%s", text, diff)
		}
	}
}
