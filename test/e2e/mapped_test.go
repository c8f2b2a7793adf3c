package e2e

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// A message says nothing of a column that the table does not have, and its content type is what the type of the payload's column
// stands for, also if the event was parked meanwhile.
func TestMessagesOfAMappedTable(t *testing.T) {
	t.Parallel()
	w := numberedWorld(t)
	c := w.numbered("files_outbox")
	w.exec("alter table files_outbox alter payload type bytea using null")
	c.start()
	c.ready("leader")
	c.does("pause", "event_bus")
	eventually(t, 30*time.Second, "the connector has paused the sink", func() error {
		if !strings.Contains(tail(c.last().stderr, 1000), "sink paused") {
			return errors.New("not yet")
		}
		return nil
	})
	const insert = `insert into files_outbox (aggregate_type, aggregate_id, event_type, payload) values ('order', '7', 'placed', '\x00ff')`
	w.exec(insert)
	eventually(t, 30*time.Second, "the event is parked", func() error {
		return atLeast(ask[int](w, "select count(*) from outbox.outbox_parked"), 1)
	})
	c.does("resume", "event_bus")
	w.numberedDelivered(1)
	w.exec(insert)
	w.numberedDelivered(2)
	stream, err := w.jetStream().Stream(t.Context(), "events")
	if err != nil {
		t.Fatal(err)
	}
	for seq := uint64(1); seq <= 2; seq++ {
		var m *jetstream.RawStreamMsg
		if m, err = stream.GetMsg(t.Context(), seq); err != nil {
			t.Fatal(err)
		}
		if got := m.Header.Get("content-type"); got != "application/octet-stream" || string(m.Data) != "\x00\xff" {
			t.Errorf("message %d: %q of type %s", seq, m.Data, got)
		}
		if versions := m.Header["ce-dataversion"]; len(versions) > 0 {
			t.Errorf("message %d has the version %s, and the table has none", seq, versions)
		}
	}
	// The list of the command is that of the ledger.
	out, code := c.command(nil, "events", "list", "--config", c.config, "--status", "delivered")
	if lines := strings.Split(strings.TrimSpace(out), "\n"); code != 0 || len(lines) != 3 || !strings.HasPrefix(lines[1], "2 ") || !strings.HasPrefix(lines[2], "1 ") {
		t.Errorf("exit code %d\n%s", code, out)
	}
	c.term()
}
