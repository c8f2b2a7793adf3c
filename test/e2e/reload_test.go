package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
)

// hup asks for a reload.
func (c *connector) hup() {
	c.t.Helper()
	if err := c.last().cmd.Process.Signal(syscall.SIGHUP); err != nil {
		c.t.Fatal(err)
	}
}

// saysTimes waits until the log of the last run has this text so many times.
func (c *connector) saysTimes(n int, text string) {
	c.t.Helper()
	eventually(c.t, 20*time.Second, text, func() error {
		if got := strings.Count(tail(c.last().stderr, 100_000), text); got < n {
			return fmt.Errorf("the log says it %d times, want %d:\n%s", got, n, tail(c.last().stderr, 5))
		}
		return nil
	})
}

const inUse = "the new configuration is in use"

// neverRed looks at /readyz until the function that it returns is called, and fails the test if it was red.
func (c *connector) neverRed() (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			if h, err := c.health(); err != nil || !h.Ready {
				c.t.Errorf("/readyz: %v %v", h, err)
				return
			}
			select {
			case <-tick.C:
			case <-quit:
				return
			}
		}
	}()
	return func() { close(quit); <-done }
}

// Under load, a reload takes effect within a second, loses and repeats nothing, and /readyz stays green. Mistakes change nothing.
func TestReload(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{sinks: []string{"webhook"}})
	c := w.connector()
	c.start()
	c.ready("leader")
	l := w.load(load{writers: 3, aggregates: 20, rate: 100})
	w.deliveredAtLeast(20*time.Second, 50)
	green := c.neverRed()
	url := w.sinks[0]["url"].(string)
	var took []time.Duration
	for i := range 5 {
		path := fmt.Sprintf("/events/%d", i)
		w.sinks[0]["url"] = url + path[len("/events"):]
		w.writeConfig(c)
		began := time.Now()
		c.hup()
		var at time.Time
		eventually(t, 10*time.Second, "a delivery to "+path, func() (err error) {
			if at = w.hook.firstAt(path); at.IsZero() {
				return fmt.Errorf("none; the log says %s", tail(c.last().stderr, 3))
			}
			return nil
		})
		took = append(took, at.Sub(began))
		c.saysTimes(i+1, inUse)
	}
	slices.Sort(took)
	t.Logf("from SIGHUP to the first delivery: %s", took)
	if took[0] > time.Second { // other tests may slow down the others
		t.Errorf("from SIGHUP to the first delivery of the new configuration: %s", took)
	}
	counted := c.metric("events_processed_total", `sink="webhook"`, `status="delivered"`)
	if known := float64(w.delivered()); counted < known-200 {
		t.Errorf("deliveries_total is %v, the ledger knows of %v: the counter went back", counted, known)
	}

	// One signal without a change, and two in a row with one.
	c.hup()
	c.saysTimes(1, "nothing has changed in the configuration")
	w.sinks[0]["url"] = url
	w.writeConfig(c)
	c.hup()
	c.hup()
	c.saysTimes(6, inUse)
	passes(t, time.Second/2) // the second one is read at once, unless both have become one: before the file is written again

	// Mistakes: all of them are said, in one line.
	good, slot := w.delivery["lanes"], w.source["slot"]
	w.delivery["lanes"], w.sinks[0]["type"] = -1, "pigeon"
	w.writeConfig(c)
	c.hup()
	c.saysTimes(1, "the configuration was not reloaded; everything goes on as before")
	c.says("delivery.lanes", "pigeon")
	w.delivery["lanes"], w.sinks[0]["type"] = good, "webhook"
	// A source that cannot be used.
	w.source["slot"] = "no_such_slot"
	w.writeConfig(c)
	c.hup()
	c.saysTimes(2, "the configuration was not reloaded; everything goes on as before")
	c.says("no_such_slot")
	w.source["slot"] = slot
	// A file that is gone.
	if err := os.Remove(c.config); err != nil {
		t.Fatal(err)
	}
	c.hup()
	c.saysTimes(3, "the configuration was not reloaded; everything goes on as before")
	w.deliveredAtLeast(20*time.Second, w.delivered()+50)
	green()
	l.stop()
	w.verify(expectation{})
	c.term()
}

// A sink that is taken away while events of it are parked would leave them to nobody: the old configuration is in force again.
func TestReloadGoesBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldOptions{sinks: []string{"webhook"}})
	c := w.connector()
	c.start()
	c.ready("leader")
	w.hook.status.Store(http.StatusServiceUnavailable)
	w.insert(20)
	eventually(t, 20*time.Second, "parked", func() error {
		if w.parked() == 0 {
			return fmt.Errorf("nothing is")
		}
		return nil
	})
	w.sinks[0]["name"] = "other"
	w.writeConfig(c)
	c.hup()
	c.saysTimes(1, "the new configuration does not work; the one before is in force again")
	c.says(`sink \"webhook\" is no longer configured and has`, "renamed_from: webhook")
	w.hook.status.Store(0)
	w.live(c, 30*time.Second)
	c.ready("leader")
	w.sinks[0]["name"] = "webhook"
	w.verify(expectation{})
	c.term()
}

// A reload during an outage of the sink and of PostgreSQL, during a drain, and of a process that stands by.
func TestReloadInTrouble(t *testing.T) {
	t.Parallel()
	pg := ownPostgres(t, nil)
	w := newWorld(t, worldOptions{pg: pg, sinks: []string{"webhook"}})
	url := w.sinks[0]["url"].(string)
	change := func(c *connector, path string) {
		t.Helper()
		w.sinks[0]["url"] = url + path
		w.writeConfig(c)
		c.hup()
	}
	arrives := func(path string) {
		t.Helper()
		eventually(t, 30*time.Second, "a delivery to "+path, func() error {
			if w.hook.firstAt("/events" + path).IsZero() {
				return fmt.Errorf("none")
			}
			return nil
		})
	}
	c := w.connector()
	c.start()
	c.ready("leader")

	// The sink is away.
	w.hook.status.Store(http.StatusServiceUnavailable)
	w.insert(20)
	eventually(t, 20*time.Second, "asked", func() error {
		if w.hook.asked.Load() == 0 {
			return fmt.Errorf("it is not")
		}
		return nil
	})
	change(c, "/sink")
	c.saysTimes(1, inUse)
	w.hook.status.Store(0)
	arrives("/sink")

	// PostgreSQL is away. The connector ends its session, and another one takes its place and waits as well. What the sink has refused was
	// parked, and the slot has passed it: nothing of it may be on its way when PostgreSQL ends.
	w.settled(w.truth())
	w.snapshot()
	w.must(pg.Stop(context.Background(), servers.Fast))
	c.failed("session")
	change(c, "/postgres")
	c.saysTimes(2, "reloading the configuration")
	w.must(pg.Start(context.Background()))
	c.readyWithin(30*time.Second, "leader")
	w.insert(20)
	arrives("/postgres")

	// One that stands by.
	standby := w.connector()
	standby.start()
	standby.ready("standby")
	change(standby, "/standby")
	standby.saysTimes(1, inUse)
	standby.ready("standby")
	w.allPassed(20 * time.Second)
	c.term()
	standby.readyWithin(10*time.Second, "leader")
	w.insert(20)
	arrives("/standby")
	w.allPassed(20 * time.Second)

	// A delivery hangs, and the process is asked to end while the reload waits for it.
	var hangs atomic.Bool
	hangs.Store(true)
	w.hook.meet(func(string, string) answer {
		for hangs.Load() {
			passes(t, 10*time.Millisecond)
		}
		return answer{}
	})
	asked := w.hook.asked.Load()
	w.insert(4)
	eventually(t, 20*time.Second, "a request", func() error {
		if w.hook.asked.Load() == asked {
			return fmt.Errorf("none")
		}
		return nil
	})
	change(standby, "/never")
	standby.saysTimes(1, "the reload waits until running deliveries have ended")
	if err := standby.last().cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	hangs.Store(false)
	standby.exits(20*time.Second, 0)
	if !w.hook.firstAt("/events/never").IsZero() {
		t.Error("the new configuration was used after SIGTERM")
	}
	w.hook.meet(nil)
	c.start()
	w.verify(expectation{})
	c.term()
}

// secretFile is the file of a secret, and the reference to it.
type secretFile struct {
	t    testing.TB
	path string
}

func newSecretFile(t testing.TB, secret string) secretFile {
	t.Helper()
	f := secretFile{t, filepath.Join(t.TempDir(), "secret")}
	f.write(secret)
	return f
}

func (f secretFile) write(secret string) {
	f.t.Helper()
	if err := os.WriteFile(f.path, []byte(secret+"\n"), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

func (f secretFile) reference() string { return "${file:" + f.path + "}" }
