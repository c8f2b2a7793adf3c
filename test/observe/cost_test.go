//go:build linux

package observe

import (
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
	"github.com/pyairtable-compose/outbox-cdc/test/process"
)

// An idle connector whose metrics are scraped every five seconds uses at most 1 % of a core, and the standby beside it as well.
func TestIdleCost(t *testing.T) {
	if !*full {
		t.Skip("it needs a machine that does nothing else: make test-observe")
	}
	const lasts, share = time.Minute, 0.01
	w := newWorld(t, nil)
	leader, standby := newConnector(t, w.config), newConnector(t, w.config)
	leader.start()
	leader.ready("leader")
	standby.start()
	standby.ready("standby")
	startPrometheus(t, servers.PrometheusOptions{
		Targets: map[string][]string{job: {leader.addr, standby.addr}}, Interval: 5 * time.Second,
	})
	passes(t, 10*time.Second) // what a start costs is over
	begin := map[*connector]time.Duration{leader: cpuTime(t, leader), standby: cpuTime(t, standby)}
	passes(t, lasts)
	for c, before := range begin {
		used := cpuTime(t, c) - before
		t.Logf("%s of CPU in %s: %.2f %% of a core", used.Round(time.Millisecond), lasts, 100*used.Seconds()/lasts.Seconds())
		if used > time.Duration(share*float64(lasts)) {
			t.Errorf("an idle connector has used %s of CPU in %s, more than %v %% of a core", used, lasts, 100*share)
		}
	}
}

func cpuTime(t testing.TB, c *connector) time.Duration {
	t.Helper()
	used, err := process.CPUTime(c.child.PID())
	if err != nil {
		t.Fatal(err)
	}
	return used
}

// With ten sinks of sixteen lanes under load, a scrape takes at most 10 ms, and there are at most 2,500 series.
func TestScrapeCost(t *testing.T) {
	if !*full {
		t.Skip("it needs a machine that does nothing else: make test-observe")
	}
	const scrapes, most, mostSeries = 100, 10 * time.Millisecond, 2500
	w := newWorld(t, nil)
	r := w.receivers["orders"]
	var sinks []map[string]any
	for name := range strings.FieldsSeq("a b c d e f g h i") {
		sinks = append(sinks, r.sink(name))
	}
	sinks = append(sinks, map[string]any{"name": "j", "type": "stdout", "topic": "events"})
	config := maps.Clone(w.config)
	config["sinks"], config["routes"] = sinks, nil
	config["delivery"] = map[string]any{"lanes": 16}
	c := newConnector(t, config)
	c.start()
	c.ready("leader")
	w.load(100)
	passes(t, 5*time.Second)

	keepAlive := &http.Client{Transport: &http.Transport{}}
	defer keepAlive.CloseIdleConnections()
	var took []time.Duration
	series := 0
	for range scrapes {
		begin := time.Now()
		resp, err := keepAlive.Get("http://" + c.addr + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		took = append(took, time.Since(begin))
		series = strings.Count(string(body), "\n"+prefix)
		passes(t, 20*time.Millisecond)
	}
	slices.Sort(took)
	median := took[len(took)/2]
	t.Logf("a scrape of %d series takes %s (median; the longest of %d %s)", series, median, scrapes, took[len(took)-1])
	if median > most {
		t.Errorf("a scrape takes %s, more than %s", median, most)
	}
	if series > mostSeries {
		t.Errorf("there are %d series, more than %d", series, mostSeries)
	}
}
