package connector

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/jackc/pglogrepl"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
)

// backlogState is what the unfinished job of a sink and the sink's lanes tell each other. While there is such a job, the lanes park all
// arrivals, and read only rows that stand before everything that the stream has brought since the gap: what the job parks comes before
// that. The zero value is that of a sink without a job. Safe for all goroutines.
type backlogState struct {
	unfinished atomic.Bool

	mu     sync.Mutex
	start  pglogrepl.LSN       // where the stream begins after the gap
	chunks uint64              // how many the job has parked in this session
	first  checkpoint.Position // of the last one
	found  []uint64            // by lane, one more than the last chunk of which it has found all rows; 0: none yet
	news   chan struct{}       // filled when found has changed
}

// begin notes an unfinished job of a sink with so many lanes. It is called before the lanes begin.
func (b *backlogState) begin(start pglogrepl.LSN, lanes int) {
	b.start, b.found, b.news = start, make([]uint64, lanes), make(chan struct{}, 1)
	b.unfinished.Store(true)
}

// end notes that the job is done.
func (b *backlogState) end() { b.unfinished.Store(false) }

// active reports whether there is an unfinished job.
func (b *backlogState) active() bool { return b.unfinished.Load() }

// before returns the position before which lanes read; zero if they read everything.
func (b *backlogState) before() checkpoint.Position {
	if !b.active() {
		return checkpoint.Position{}
	}
	return checkpoint.Position{LSN: b.start}
}

// parked notes a chunk whose rows are committed.
func (b *backlogState) parked(first checkpoint.Position) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.chunks++
	b.first = first
}

// chunk returns how many chunks were parked, and the first position of the last one.
func (b *backlogState) chunk() (n uint64, first checkpoint.Position) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.chunks, b.first
}

// dry notes that a lane has found all of its rows of this chunk and those before: no untried row is left that it has not read.
func (b *backlogState) dry(lane int, chunk uint64) {
	if !b.active() {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.found[lane] = max(b.found[lane], chunk+1)
	select {
	case b.news <- struct{}{}:
	default:
	}
}

// awaitDry waits until all lanes have found all rows of the last chunk. Only the job calls it.
func (b *backlogState) awaitDry(ctx context.Context) error {
	for !b.isDry() {
		select {
		case <-b.news:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

func (b *backlogState) isDry() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, n := range b.found {
		if n <= b.chunks {
			return false
		}
	}
	return true
}
