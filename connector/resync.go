package connector

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
	"github.com/pyairtable-compose/outbox-cdc/provision"
)

// A slot that is lost again within resyncCalm is made anew after a pause, which begins with resyncPause and doubles up to maxResyncPause. So
// a slot that is lost again and again stays visible, and does not make the jobs compare the whole outbox all the time.
const (
	resyncCalm     = 2 * time.Hour
	resyncPause    = time.Minute
	maxResyncPause = time.Hour
)

// resyncs is what is known of the times when this connector has made its slot anew.
type resyncs struct {
	last  time.Time     // zero if it never has
	pause time.Duration // before the last one
	made  atomic.Int64  // how often
	sound bool          // the last session has ended as if the slot were lost, and the slot was sound
}

// next returns how long to wait before the slot is made anew.
func (r *resyncs) next(now time.Time) time.Duration {
	switch {
	case r.last.IsZero() || now.Sub(r.last) > resyncCalm:
		return 0
	case r.pause == 0:
		return resyncPause
	}
	return min(2*r.pause, maxResyncPause)
}

// resync makes the slot anew if that is configured and if why, by which the last session has ended, says that the slot is lost. again says
// that Run goes on with another session. The error is then that of ctx.
func (c *Connector) resync(ctx context.Context, why error) (again bool, err error) {
	r := &c.progress.resyncs
	if c.progress.streamedNow {
		r.sound = false
	}
	if c.cfg.Resync == nil || exitcode.Of(why) != exitcode.SlotLost {
		return false, nil
	}
	log, slot := c.cfg.Logger, c.cfg.Source.Slot
	pause := r.next(time.Now())
	log.Warn("the slot may be lost; it is made anew if it is (source.on_slot_loss)", "slot", slot, "err", why, "wait", pause.String())
	c.cfg.Health.SetOnly("session", monitoring.Failed(fmt.Sprintf("the slot is made anew in %s (source.on_slot_loss): %s", pause, why)))
	if err := c.waitSeen(ctx, pause); err != nil {
		return true, err
	}
	err = c.cfg.Resync(ctx)
	switch {
	case ctx.Err() != nil:
		return true, context.Cause(ctx)
	case err == nil:
		r.last, r.pause, r.sound = time.Now(), pause, false
		r.made.Add(1)
		return true, nil
	case errors.Is(err, provision.ErrSound):
		// Another process has made it anew. If the next session ends the same way, something else is wrong, which no new slot mends.
		again, r.sound = !r.sound, true
		return again, nil
	}
	log.Error("the slot was not made anew", "slot", slot, "err", err)
	if exitcode.Of(err).Final() {
		return false, nil
	}
	return true, c.waitSeen(ctx, maxSessionWait)
}
