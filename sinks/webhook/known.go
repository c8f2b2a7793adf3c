package webhook

import (
	"sync"

	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// maxKnown is how many aggregates each of the two maps of known holds.
const maxKnown = 10_000

// known remembers the aggregates of which a message was accepted lately. Their messages go first. Otherwise, if many
// other messages are never answered, they would have to wait for a connection as long as those.
type known struct {
	mu       sync.Mutex
	now, was map[uint64]struct{} // by Aggregate.Hash; when now is full, it becomes was
}

func (k *known) add(a sinks.Aggregate) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.now) >= maxKnown || k.now == nil {
		k.now, k.was = make(map[uint64]struct{}), k.now
	}
	k.now[a.Hash()] = struct{}{}
}

// first sorts chains, given by their first messages, so that those of known aggregates come first.
func (k *known) first(heads []int32, batch []sinks.Message) {
	k.mu.Lock()
	defer k.mu.Unlock()
	others := make([]int32, 0, len(heads))
	n := 0
	for _, head := range heads {
		hash := batch[head].Aggregate().Hash()
		_, now := k.now[hash]
		_, was := k.was[hash]
		if !now && !was {
			others = append(others, head)
			continue
		}
		heads[n] = head
		n++
	}
	copy(heads[n:], others)
}
