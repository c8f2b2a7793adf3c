package ledger_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

func TestRegisterProcessors(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	register := func(connector string, ps ...ledger.Processor) map[string]int32 {
		t.Helper()
		ids, err := ledger.Schema("public").RegisterProcessors(t.Context(), l.conn, connector, ps)
		if err != nil {
			t.Fatal(err)
		}
		return ids
	}
	kafka := ledger.Processor{Name: "events", Type: "kafka", Configuration: []byte(`{"topic": "a"}`), FromStart: true}
	if diff := cmp.Diff(map[string]int32{"events": 1}, register("c", kafka)); diff != "" {
		t.Error(diff)
	}
	l.exec("update outbox_processors set is_active = false")
	version := func() string { return l.query("select xmin::text from outbox_processors where id = 1") }
	before := version()
	register("c", kafka)
	if version() != before {
		t.Error("the same again was written")
	}
	kafka.Configuration, kafka.FromStart = []byte(`{"topic": "b"}`), false
	if diff := cmp.Diff(map[string]int32{"events": 1, "log": 2}, register("c", kafka, ledger.Processor{Name: "log", Type: "stdout"})); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(map[string]int32{"events": 3}, register("d", kafka)); diff != "" {
		t.Error(diff)
	}
	got := l.query(`select string_agg(format('%s %s/%s %s %s %s %s', id, connector, processor_name, processor_type, configuration, is_active, since = '-infinity'), '; ' order by id)
		from outbox_processors`)
	want := `1 c/events kafka {"topic": "b"} f t; 2 c/log stdout {} t f; 3 d/events kafka {"topic": "b"} t f`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
