package e2e

import (
	"errors"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
)

// kill -9 at each of the four steps between a sink's acceptance and the confirmation. A proxy to PostgreSQL stops the
// connector at the step, and what ledger, slot and topic say meanwhile proves which one it was.
func TestKillsAtEachMoment(t *testing.T) {
	t.Parallel()
	const hits = 6
	for _, m := range []moment{beforeCopy, beforeCommit, beforeStatus, afterStatus} {
		t.Run(string(m), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, worldOptions{})
			p := newTap(t, w.pg.Addr())
			w.source["dsn"] = through(t, w.dsn, p.proxy.Addr())
			c := w.connector()
			events, proven := 0, 0 // proven to have been accepted and not recorded
			for i := range hits {
				c.start()
				c.ready("leader")
				if events > 0 { // what comes again has come
					w.allPassed(10 * time.Second)
				}
				n := 1 + 7*i // more than a batch in the end
				hit := p.arm(m, ask[pglogrepl.LSN](w, "select pg_current_wal_insert_lsn()"))
				w.insert(n)
				at := await(t, m, hit)
				if m == beforeCommit { // at once: idle_in_transaction_session_timeout ends it
					w.openBehindCopy()
				}
				truth := w.truth()
				newest := truth[len(truth)-n:]
				for at != 0 && at < newest[0].commitEnd { // of an idle server's WAL before the commit
					hit = p.arm(m, at)
					p.proxy.Resume()
					at = await(t, m, hit)
				}
				proven += w.prove(m, newest, at)
				c.kill()
				p.disarm()
				w.snapshot()
				events += n
			}
			c.start()
			w.verify(expectation{faults: hits})
			c.term()
			if repeated := len(w.log.read()) - events; repeated < proven || proven == 0 && repeated > 0 {
				t.Errorf("%d events came again, %d were accepted and not recorded", repeated, proven)
			}
		})
	}
}

// openBehindCopy wants a transaction of the recorder to be open, behind its COPY: the rows are there, for nobody to see.
func (w *world) openBehindCopy() {
	w.t.Helper()
	if open := ask[int](w, `select count(*) from pg_stat_activity a join pg_locks l on l.pid = a.pid
		where a.datname = $1 and a.application_name like 'outbox-cdc%' and a.query like 'copy %.outbox_delivery_log (%'
		and l.relation = 'outbox_delivery_log'::regclass and l.mode = 'RowExclusiveLock'`, w.database); open != 1 {
		w.t.Errorf("%d transactions of the recorder are open behind a COPY, want 1", open)
	}
}

// prove checks that the connector, which has just been given these events in a transaction of their own, is held at m.
// at is the position of the status that was held or has passed. It returns how many of them were accepted and not
// recorded.
func (w *world) prove(m moment, newest []event, at pglogrepl.LSN) (unrecorded int) {
	w.t.Helper()
	n, commitEnd := len(newest), newest[0].commitEnd
	ids := make([]string, n)
	wanted := map[string]bool{}
	for i, ev := range newest {
		ids[i], wanted[ev.id] = ev.id, true
	}
	accepted := 0
	eventually(w.t, 5*time.Second, "accepted by Kafka", func() error {
		accepted = 0
		for _, d := range w.log.read() {
			if wanted[d.id] {
				accepted++
			}
		}
		if accepted == 0 {
			return errors.New("it has none")
		}
		return nil
	})
	recorded := ask[int](w, "select count(*) from outbox_delivery_log where event_id = any ($1::text[]::uuid[])", ids)
	switch m {
	case beforeCopy, beforeCommit:
		if recorded != 0 {
			w.t.Errorf("the ledger has %d of %d events %s", recorded, n, m)
		}
		if confirmed := w.confirmed(); confirmed >= commitEnd {
			w.t.Errorf("the slot is at %s, behind the commit at %s, %s", confirmed, commitEnd, m)
		}
		return accepted
	case beforeStatus:
		if recorded != n {
			w.t.Errorf("the ledger has %d of %d events %s", recorded, n, m)
		}
		if at < commitEnd {
			w.t.Errorf("the status that is held confirms %s, the commit ends at %s", at, commitEnd)
		}
		if confirmed := w.confirmed(); confirmed >= commitEnd {
			w.t.Errorf("the slot is at %s, behind the commit at %s, %s", confirmed, commitEnd, m)
		}
	case afterStatus:
		if recorded != n {
			w.t.Errorf("the ledger has %d of %d events %s", recorded, n, m)
		}
		eventually(w.t, 5*time.Second, "confirmed", func() error {
			if w.confirmed() < at || at < commitEnd {
				return errors.New("the slot has not moved")
			}
			return nil
		})
	}
	return 0
}
