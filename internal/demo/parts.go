package demo

import (
	"context"
	"errors"
)

// part runs beside the shop.
type part struct {
	cancel context.CancelFunc
	ended  chan struct{}
	err    error // set before ended is closed
}

// startPart starts run. If run fails, the part ends the others by end.
func startPart(ctx context.Context, end context.CancelCauseFunc, run func(context.Context) error) *part {
	ctx, cancel := context.WithCancel(ctx)
	p := &part{cancel: cancel, ended: make(chan struct{})}
	go func() {
		defer close(p.ended)
		if p.err = run(ctx); p.err == nil && ctx.Err() == nil {
			p.err = errors.New("a part of the demo ended before its time")
		}
		if p.err != nil {
			end(p.err)
		}
	}()
	return p
}

// over reports whether the part has ended by itself, which means that it has failed.
func (p *part) over() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// stop tells the part to end, and waits until it has, or until work ends.
func (p *part) stop(work context.Context) error {
	p.cancel()
	select {
	case <-p.ended:
		return p.err
	case <-work.Done():
		return nil // whoever has ended work says so
	}
}
