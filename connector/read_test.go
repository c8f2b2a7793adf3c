package connector

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
)

// TestIdleCheckpoints: which keepalives of an idle stream make the recorder write a checkpoint.
func TestIdleCheckpoints(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start := pglogrepl.LSN(1 << 30)
		tracker := checkpoint.NewTracker(16, 1<<20, checkpoint.Position{LSN: start, Index: -1}, start)
		r := &reader{tracker: tracker}
		lsn := start
		for i, step := range []struct {
			after   time.Duration
			bytes   pglogrepl.LSN
			written bool
		}{
			{0, 100, false},                   // next to nothing
			{29 * time.Second, 0, false},      // not yet
			{time.Second, 0, true},            // once, for restart_lsn, of which nobody knows where it stands
			{0, 1 << 20, true},                // much
			{0, 128 << 10, false},             // less, and too soon
			{10 * time.Second, 0, true},       // later the same
			{0, 100, false},                   // behind it, next to nothing
			{30 * time.Second, 0, true},       // once, for restart_lsn
			{0, 100, false},                   // behind that is what our own commit made the server write:
			{time.Hour, 0, false},             // it stays
			{0, idleSmallStep, true},          // until there is more
			{0, 0, false},                     // seen that it was written
			{time.Hour, 0, false},             // nothing is behind it
			{time.Hour, idleSmallStep, false}, // too little since
			{0, 1, true},                      // enough
		} {
			time.Sleep(step.after)
			lsn += step.bytes
			r.keepalive(lsn)
			written := false
			select {
			case <-tracker.Progress():
				written = true
				tracker.Publish(tracker.Settled())
			default:
			}
			if written != step.written {
				t.Errorf("step %d: written %t, want %t", i, written, step.written)
			}
		}
	})
}
