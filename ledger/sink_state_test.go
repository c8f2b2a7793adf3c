package ledger_test

import (
	"strings"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/ledger"
)

// A state is read as it was written, with times by the server's clock. That of an earlier session, and what is none, are left out.
func TestSinkState(t *testing.T) {
	t.Parallel()
	l := newLedger(t)
	l.exec("insert into outbox_processors (connector, processor_name, processor_type) values ('c', 'a', 'kafka'), ('c', 'b', 'kafka'), ('c', 'd', 'kafka')")
	l.exec("insert into outbox_checkpoints (slot_name, state, epoch) values ('slot', 'ready', 7) on conflict (slot_name) do update set epoch = 7")
	schema := ledger.Schema("public")
	now := time.Now()
	for id, st := range map[int32]ledger.SinkState{
		1: {Condition: "away", Since: now.Add(-time.Minute), AsksAt: now.Add(10 * time.Second), Cause: "no route\x00 to höst " + strings.Repeat("x", 1000), Epoch: 7},
		2: {Condition: "suspect", Rate: 40, Epoch: 6},
	} {
		if err := schema.WriteSinkState(t.Context(), l.conn, id, st); err != nil {
			t.Fatal(err)
		}
	}
	l.exec(`update outbox_processors set state = '[1]' where id = 3`)
	c, err := ledger.NewClient(t.Context(), l.conn, schema, "c")
	if err != nil {
		t.Fatal(err)
	}
	states, err := c.ReadSinkStates(t.Context(), "slot", []int32{1, 2, 3})
	if err != nil {
		t.Fatal(err)
	}
	st, ok := states[1]
	if len(states) != 1 || !ok || st.Condition != "away" || len(st.Cause) != 500 || !strings.HasPrefix(st.Cause, "no route? to h?st x") {
		t.Fatalf("read %+v", states)
	}
	for what, d := range map[string]time.Duration{"since": now.Add(-time.Minute).Sub(st.Since), "asks at": now.Add(10 * time.Second).Sub(st.AsksAt), "at": now.Sub(st.At)} {
		if d.Abs() > 5*time.Second {
			t.Errorf("%s is off by %s", what, d)
		}
	}
	if states, err := c.ReadSinkStates(t.Context(), "other", []int32{1}); err != nil || len(states) > 0 {
		t.Errorf("of another slot: %v, %v", states, err)
	}
}
