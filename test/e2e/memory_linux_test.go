package e2e

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

var large = flag.Bool("large", false, "large rows of the full size: a minute or two, and 2 GiB for PostgreSQL")

// sizeReceiver takes webhooks and answers at once. It keeps nothing of them but their number, and by id their length.
type sizeReceiver struct {
	*httptest.Server
	mu    sync.Mutex
	sizes map[string]int64
}

func (r *sizeReceiver) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	n, err := io.Copy(io.Discard, request.Body)
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sizes[request.Header.Get("webhook-id")] = n
}

// listen starts it, at the same address each time.
func (r *sizeReceiver) listen(t *testing.T, address string) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	r.Server = &httptest.Server{Listener: l, Config: &http.Server{Handler: r, ReadHeaderTimeout: time.Minute}}
	r.Start()
}

// got counts what was accepted of at least this size.
func (r *sizeReceiver) got(size int64) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, s := range r.sizes {
		if s >= size {
			n++
		}
	}
	return n
}

// largeWorld has one webhook whose receiver listens if up is set.
func largeWorld(t *testing.T) (w *world, c *connector, r *sizeReceiver, address string) {
	t.Helper()
	w = newWorld(t, worldOptions{bare: true, delivery: map[string]any{"batch_size": 500}})
	address = freeAddress(t)
	w.sinks = []map[string]any{{"name": "partner", "type": "webhook", "url": "http://" + address, "allow_hosts": []string{address}, "body": "raw"}}
	c = w.connector()
	if out, code := c.command(nil, "init", "--config", c.config, "--backlog", "none"); code != 0 {
		t.Fatalf("init: exit code %d\n%s", code, out)
	}
	return w, c, &sizeReceiver{sizes: map[string]int64{}}, address
}

// peak is the most memory that the process has had so far, in MiB.
func (c *connector) peak() int {
	c.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.last().cmd.Process.Pid))
	if err != nil {
		c.t.Fatal(err)
	}
	_, rest, _ := bytes.Cut(status, []byte("VmHWM:"))
	var kib int
	if _, err := fmt.Sscan(string(rest), &kib); err != nil {
		c.t.Fatal(err)
	}
	return kib >> 10
}

func (c *connector) peakAtMost(limit int) {
	c.t.Helper()
	got := c.peak()
	c.t.Logf("peak of the connector's memory: %d MiB", got)
	if got > limit {
		c.t.Errorf("the connector has taken %d MiB, want %d at most", got, limit)
	}
}

const insertLarge = `insert into event_outbox (aggregate_type, aggregate_id, event_type, payload)
	select 'order', n, 'order.paid', ('"' || repeat('x', $2 - 2) || '"')::json from generate_series(1, $1) n`

// A row that is larger than max_event_bytes is read on without being kept: its key columns become a dead letter. What comes before
// and behind it arrives.
func TestMemoryOfOneHugeRow(t *testing.T) {
	w, c, r, address := largeWorld(t)
	r.listen(t, address)
	defer r.Close()
	size := 120
	if *large {
		size = 600
	}
	w.exec(insertLarge, 1, 1000)
	w.exec(insertLarge, 1, size<<20)
	w.exec(insertLarge, 10, 1000)
	c.start()
	eventually(t, 3*time.Minute, "small ones delivered", func() error {
		if n := r.got(1000); n != 11 {
			return fmt.Errorf("%d of 11 have arrived", n)
		}
		return nil
	})
	eventually(t, time.Minute, "the dead letter", func() error {
		if n := ask[int](w, "select count(*) from outbox_parked where processor_id = 0 and status = 'dead' and payload is null and event ->> 'aggregate_id' = '1'"); n != 1 {
			return errors.New("it is not there")
		}
		return nil
	})
	if why := ask[string](w, "select error_message from outbox_parked"); !strings.Contains(why, "max_event_bytes") {
		t.Errorf("it says %q", why)
	}
	c.peakAtMost(size / 2)
	c.term()
}

// Many large rows in one transaction take no more memory than a few.
func TestMemoryOfManyLargeRows(t *testing.T) {
	const size = 60 << 20
	rows := 12
	if *large {
		rows = 60
	}
	t.Run("with the sink up", func(t *testing.T) {
		w, c, r, address := largeWorld(t)
		r.listen(t, address)
		defer r.Close()
		w.exec(insertLarge, rows, size)
		w.exec(insertLarge, 10, 1000)
		c.start()
		eventually(t, 5*time.Minute, "all delivered", func() error {
			if n, m := r.got(size), r.got(1000); n != rows || m != rows+10 {
				return fmt.Errorf("%d large ones of %d have arrived, %d of %d in all", n, rows, m, rows+10)
			}
			return nil
		})
		c.peakAtMost(450)
		c.term()
	})
	t.Run("with the sink away, and back", func(t *testing.T) {
		w, c, r, address := largeWorld(t)
		w.exec(insertLarge, rows, size)
		w.exec(insertLarge, 10, 1000)
		c.start()
		eventually(t, 5*time.Minute, "all parked", func() error {
			if n := ask[int](w, "select count(*) from outbox_parked"); n != rows+10 {
				return fmt.Errorf("%d of %d are", n, rows+10)
			}
			return nil
		})
		c.peakAtMost(600)
		r.listen(t, address)
		defer r.Close()
		eventually(t, 5*time.Minute, "all delivered", func() error {
			if n, m := r.got(size), r.got(1000); n != rows || m != rows+10 {
				return fmt.Errorf("%d large ones of %d have arrived, %d of %d in all", n, rows, m, rows+10)
			}
			return nil
		})
		c.peakAtMost(600)
		c.term()
	})
}
