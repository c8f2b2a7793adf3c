//go:build linux

package observe

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
)

// Each alert that pages fires in its situation: here they come one after the other, with short times.
func TestPages(t *testing.T) {
	if !*full {
		t.Skip("it takes minutes: make test-observe")
	}
	w := newWorld(t, map[string]string{"min_wal_size": "32MB", "max_wal_size": "64MB"})
	leader, standby := newConnector(t, w.config), newConnector(t, w.config)
	leader.start()
	leader.ready("leader")
	standby.start()
	standby.ready("standby")
	p := scraped(t, shortRules(t, times), leader, standby)
	began := time.Now()
	w.load(100)
	passes(t, 20*time.Second)

	w.insert(5, "order", "forgotten-")
	passes(t, 2*time.Second)
	w.exec("delete from outbox_delivery_log where event_id in (select id from event_outbox where aggregate_id like 'forgotten-%')")
	p.fires("OutboxUnaccountedEvents", 3*time.Minute)

	w.receivers["orders"].slow.Store(int64(3 * time.Second))
	p.fires("OutboxSLABurnFast", 2*time.Minute)
	w.receivers["orders"].slow.Store(0)
	w.settled(leader, 2*time.Minute)

	leader.kill()
	standby.kill()
	p.fires("OutboxNoLeader", time.Minute)
	leader.start()
	leader.ready("leader")
	standby.start()
	standby.ready("standby")

	release := w.hold()
	p.fires("OutboxRecorderFailing", time.Minute)
	// Nothing is confirmed, and others write.
	w.exec("create table filler (t text)")
	fill := func() {
		w.exec("insert into filler select repeat(md5(n::text), 40) from generate_series(1, 5000) n")
		passes(t, 300*time.Millisecond)
	}
	p.firesWhile(func() { fill(); w.exec("checkpoint") }, "OutboxDiskWillFill", 2*time.Minute)
	var kept int64
	if err := w.connect().QueryRow(t.Context(), `select (pg_current_wal_lsn() - restart_lsn)::bigint >> 20 from pg_replication_slots
		where slot_name = $1`, database).Scan(&kept); err != nil {
		t.Fatal(err)
	}
	// The slot is lost at the first checkpoint after it has kept too much. Until that comes, which is not by itself, it is unreserved.
	w.exec("alter system set max_wal_size = '8GB'")
	w.exec(fmt.Sprintf("alter system set max_slot_wal_keep_size = '%dMB'", kept+512))
	w.exec("select pg_reload_conf()")
	p.firesWhile(fill, "OutboxSlotLostSoon", 2*time.Minute)
	eventually(t, 5*time.Minute, "an unreserved slot", func() error {
		if len(p.series(prefix+`slot_wal_status{status="unreserved"} == 1`)) == 0 {
			fill()
			return errors.New("Prometheus has not seen it")
		}
		return nil
	})
	w.exec("checkpoint")
	p.fires("OutboxSlotLost", time.Minute)
	release()

	passes(t, 2*time.Second) // what fires now is in the last step of the next query
	fired := firedIn(p, began, time.Now())
	t.Logf("these have fired: %v", slices.Sorted(maps.Keys(fired)))
	for _, r := range p.rules() {
		if r.Labels["severity"] == "page" && fired[r.Name] == nil {
			t.Errorf("%s pages, and has not fired: give it a situation here", r.Name)
		}
	}
}

// fires waits until an alert fires.
func (p *prometheus) fires(alert string, patience time.Duration) {
	p.t.Helper()
	p.firesWhile(func() {}, alert, patience)
}

// firesWhile does something again and again until an alert fires. An alert that does not exist is left out: the test goes through those that do
// in the end.
func (p *prometheus) firesWhile(do func(), alert string, patience time.Duration) {
	p.t.Helper()
	if !slices.ContainsFunc(p.rules(), func(r servers.Rule) bool { return r.Name == alert }) {
		return
	}
	begin := time.Now()
	eventually(p.t, patience, alert, func() error {
		do()
		got, err := p.Query(p.t.Context(), fmt.Sprintf(`ALERTS{alertname=%q, alertstate="firing"}`, alert))
		if err != nil || len(got) == 0 {
			return errors.Join(errors.New("it does not fire"), err)
		}
		return nil
	})
	p.t.Logf("%s fires %s after its cause", alert, time.Since(begin).Round(time.Second))
}
