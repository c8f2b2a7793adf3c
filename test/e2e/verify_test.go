package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
)

// verified is what "outbox-cdc verify -o json" says, and verifiedSink what it says of a sink.
type verified struct {
	Decided  bool
	Streamed bool
	Sinks    []verifiedSink
}

type verifiedSink struct {
	Missing, Pending, Expired int
	Events                    []struct {
		EventType string `json:"event_type"`
	}
}

// verifies runs "outbox-cdc verify" and returns what it says of the sink.
func (c *connector) verifies(code exitcode.Code) (verified, verifiedSink) {
	c.t.Helper()
	var r verified
	out, got := c.command(nil, "verify", "--config", c.config, "-o", "json")
	if err := json.NewDecoder(strings.NewReader(out)).Decode(&r); err != nil || got != code || len(r.Sinks) != 1 {
		c.t.Fatalf("verify: exit code %d, want %d, %v\n%s", got, code, err, out)
	}
	return r, r.Sinks[0]
}

// Rows that the stream has left out are found while the connector is idle, and told apart from those that may still come.
func TestVerify(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{})
	c := w.streaming(20)
	if r, s := c.verifies(exitcode.OK); !r.Decided || s.Missing+s.Pending+s.Expired != 0 {
		t.Errorf("%+v", r)
	}
	w.exec("alter publication " + w.publication + " drop table event_outbox")
	w.insert(3)
	w.exec("alter publication " + w.publication + " add table event_outbox")
	w.insert(5)
	w.deliveredAtLeast(20*time.Second, 25)
	if r, s := c.verifies(exitcode.Failure); !r.Decided || s.Missing != 3 || len(s.Events) != 3 || s.Events[0].EventType == "" || s.Pending != 0 {
		t.Errorf("%+v", r)
	}
	eventually(t, 90*time.Second, "the connector has found them by itself", func() error {
		if n := c.metric("unaccounted_events"); n != 3 {
			return fmt.Errorf("unaccounted_events is %v", n)
		}
		return nil
	})
	c.says("events are missing")
	c.term()
	w.insert(2)
	if r, s := c.verifies(exitcode.Undecided); r.Decided || r.Streamed || s.Missing != 0 || s.Pending != 5 {
		t.Errorf("without a connector: %+v", r)
	}
}
