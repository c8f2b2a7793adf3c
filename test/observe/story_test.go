//go:build linux

package observe

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
)

// times is by how much the times of alerts and ranges are shorter than those that are delivered.
const times = 60

// A connector delivers under load, with a standby beside it, while everything that it delivers to breaks and comes back. What it shows is
// true, no alert fires as long as all is well, and every panel of the dashboard shows something.
func TestObserve(t *testing.T) {
	t.Parallel()
	w := newWorld(t, map[string]string{
		"max_slot_wal_keep_size": "1GB",                                    // so that it is known how much is left
		"autovacuum_naptime":     "1s", "autovacuum_vacuum_threshold": "1", // so that outbox_parked is vacuumed
	})
	leader, standby := newConnector(t, w.config), newConnector(t, w.config)
	first := leader.firstScrape()
	leader.ready("leader")
	standby.start()
	standby.ready("standby")
	began := time.Now()
	p := scraped(t, shortRules(t, times), leader, standby)
	long := p
	if *full {
		long = scraped(t, ruleFiles(t), leader, standby)
	}
	figures := watchFigures(w, leader)
	phase := func(format string, args ...any) {
		t.Logf("%s: %s", time.Since(began).Round(100*time.Millisecond), fmt.Sprintf(format, args...))
	}

	phase("all is well")
	load := w.load(100)
	w.insert(5, "note", "n-") // of no route
	p.seesLeader(leader)
	wellSince := time.Now()
	passes(t, fullOr(10*time.Minute, 10*time.Second))
	for name, a := range firedIn(p, wellSince, time.Now()) {
		t.Errorf("%s fires with short times, and all is well: %v", name, a)
	}
	for name, a := range firedIn(long, wellSince, time.Now()) {
		t.Errorf("%s fires, and all is well: %v", name, a)
	}
	checkOneLeads(t, p, wellSince, time.Now())

	phase("a webhook and Redis are away, a member of a composite too, and three messages are refused")
	w.receivers["partner"].away.Store(true)
	w.receivers["first"].away.Store(true)
	w.proxy.Refuse()
	w.proxy.Cut()
	w.insert(3, "order", poison)
	passes(t, fullOr(time.Minute, 8*time.Second))

	phase("they are back")
	w.receivers["partner"].away.Store(false)
	w.receivers["first"].away.Store(false)
	w.proxy.Accept()
	passes(t, fullOr(20*time.Second, 2*time.Second))
	w.settled(leader, time.Minute)

	phase("the ledger hangs")
	checkLag(t, w, leader, fullOr(time.Minute, 6*time.Second))
	leader.ready("leader")

	phase("the session ends, a backlog job runs, and the configuration is read again")
	standby.stop() // it would take over
	release := w.fileJob("partner")
	w.exec("select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = $1", database)
	passes(t, time.Second)
	leader.ready("leader")
	p.seesJob("partner")
	release()
	w.config["delivery"].(map[string]any)["batch_size"] = 200
	leader.configure(w.config)
	leader.reload()
	passes(t, 2*time.Second)
	leader.ready("leader")
	standby.start()
	standby.ready("standby")

	phase("the load ends")
	written := load.stop(t)
	t.Logf("%d events were written", written)
	checkCounts(t, w, leader, p, written)
	w.settled(leader, 30*time.Second)
	figures.check(t)
	last, err := leader.scrape()
	if err != nil {
		t.Fatal(err)
	}
	checkNothingIsLate(t, first, last)
	checkEverythingShows(t, p, time.Since(began))
	checkNothingGoesBack(t, p, leader, time.Since(began))
	if name := prefix + `cleanup_deleted_total{table="event_outbox"}`; last[name] == 0 {
		t.Errorf("%s is 0", name)
	}

	phase("the dashboard")
	now := time.Now()
	checkDashboard(t, p, servers.Span{From: began, To: now, Step: time.Second})
	for _, r := range p.rules() {
		if r.Health != "ok" {
			t.Errorf("rule %s is %s: %s", r.Name, r.Health, r.LastError)
		}
	}
	fired := firedIn(p, began, now)
	t.Logf("these have fired: %v", slices.Sorted(maps.Keys(fired)))

	phase("the standby takes over")
	leader.stop()
	standby.ready("leader")
	p.seesLeader(standby)
	took := time.Now()
	passes(t, 2*time.Second)
	checkOneLeads(t, p, took, time.Now())
	standby.stop()
}

// firedIn returns the alerts that have fired within a time, by name.
func firedIn(p *prometheus, from, to time.Time) map[string]map[string]string {
	p.t.Helper()
	fired := map[string]map[string]string{}
	for _, s := range p.seriesOver(`ALERTS{alertstate="firing"}`, servers.Span{From: from, To: to, Step: time.Second}) {
		fired[s.Labels["alertname"]] = s.Labels
	}
	return fired
}

// seesLeader waits until scrapes have found that this instance leads, and no other.
func (p *prometheus) seesLeader(c *connector) {
	p.t.Helper()
	eventually(p.t, 10*time.Second, "a leader", func() error {
		got := p.series(prefix + "leader == 1")
		if len(got) != 1 || got[0].Labels["instance"] != c.addr {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
}

// seesJob waits until scrapes have found how far the backlog job of a sink is.
func (p *prometheus) seesJob(sink string) {
	p.t.Helper()
	eventually(p.t, 20*time.Second, "a backlog job", func() error {
		for _, metric := range []string{"backlog_rows_left", "backlog_rate"} {
			if series := fmt.Sprintf("last_over_time(%s%s{sink=%q}[1m])", prefix, metric, sink); len(p.series(series)) == 0 {
				return fmt.Errorf("%s has no series", series)
			}
		}
		return nil
	})
}

// checkOneLeads wants exactly one instance to lead at any moment of a time.
func checkOneLeads(t *testing.T, p *prometheus, from, to time.Time) {
	t.Helper()
	for _, s := range p.seriesOver("sum("+prefix+"leader)", servers.Span{From: from, To: to, Step: time.Second}) {
		for _, point := range s.Points {
			if point.Value != 1 {
				t.Errorf("%v instances lead at %s", point.Value, point.At.Format(time.TimeOnly))
			}
		}
	}
}
