package replication

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pglogrepl"
)

// slowWire is a fakeWire whose writes take a while.
type slowWire struct {
	*fakeWire
	takes time.Duration
}

func (w slowWire) write(p []byte) error {
	time.Sleep(w.takes)
	return w.fakeWire.write(p)
}

// reportedProgress notes what was reported.
type reportedProgress struct {
	*fakeProgress
	lsn  pglogrepl.LSN
	took []time.Duration
}

func (p *reportedProgress) Reported(lsn pglogrepl.LSN, began, ended time.Time) {
	p.lsn, p.took = lsn, append(p.took, ended.Sub(began))
}

// What the owner does between two calls is its own work, and the rest of the time the stream has waited: for bytes, in the pauses, and until a
// status message has left.
func TestWaited(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const work, writes = 3 * time.Millisecond, 2 * time.Millisecond
		w := slowWire{newFakeWire(), writes}
		s := newStream(w, senderTimeout/3)
		s.canPause = true
		p := &reportedProgress{fakeProgress: &fakeProgress{confirmed: 77}}
		s.Track(p)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			for range 100 {
				time.Sleep(7 * time.Millisecond)
				w.in <- xlog("event")
			}
			time.Sleep(time.Minute)
			cancel()
		}()
		start, worked := time.Now(), time.Duration(0)
		for {
			if _, err := s.Next(ctx); err != nil {
				if !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
				break
			}
			time.Sleep(work)
			worked += work
		}
		if worked != 100*work {
			t.Errorf("%s of work, want that for 100 events", worked)
		}
		if got, want := s.Waited(), time.Since(start)-worked; got != want {
			t.Errorf("the stream has waited for %s, want %s", got, want)
		}
		if sent := len(w.statuses()); p.lsn != 77 || len(p.took) != sent || sent == 0 {
			t.Errorf("%d reports, the last of %d, of %d messages", len(p.took), p.lsn, sent)
		}
		for _, took := range p.took {
			if took != writes {
				t.Errorf("it took %s to send a status, want %s", took, writes)
			}
		}
	})
}
