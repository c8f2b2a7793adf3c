package webhook

import (
	"cmp"
	"slices"
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

// first sorts chains, given by their first messages, so that those of known aggregates come first. It returns the others.
func (k *known) first(heads []int32, batch []sinks.Message) (rest []int32) {
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
	return heads[n:]
}

// takeTurns sorts chains so that the names of their first messages take turns. If they are those of URLs, many messages of one URL that never
// answers leave connections to the others, from whose answers the sink learns that only this URL is away.
func takeTurns(heads []int32, name func(head int32) string) {
	turns := make(map[int32]int, len(heads))
	had := map[string]int{}
	for _, head := range heads {
		url := name(head)
		turns[head] = had[url]
		had[url]++
	}
	slices.SortStableFunc(heads, func(a, b int32) int { return cmp.Compare(turns[a], turns[b]) })
}
