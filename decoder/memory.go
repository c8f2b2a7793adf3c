package decoder

import (
	"encoding/hex"
	"unsafe"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

const (
	arenaSize = 256 << 10
	slabSize  = 256
	// OwnSize is the size of an event above which it has memory of its own. In an arena or a slab, one event that is still wanted
	// keeps its neighbours in memory as well; events of up to this size leave that within bounds.
	OwnSize = 8 << 10

	eventSize = int(unsafe.Sizeof(outbox.Event{}))
)

// memory hands out room for events: structs from slabs and bytes from arenas, so that an event costs a hundredth of an
// allocation. Nothing is used twice; what is used up is left to the garbage collector.
type memory struct {
	arena []byte
	slab  []outbox.Event
}

// event gives an empty event and n bytes, OwnSize at most, to copy its texts into.
func (m *memory) event(n int) (*outbox.Event, text) {
	if len(m.slab) == 0 {
		m.slab = make([]outbox.Event, slabSize)
	}
	e := &m.slab[0]
	m.slab = m.slab[1:]
	if m.arena == nil || n > len(m.arena) {
		m.arena = make([]byte, arenaSize)
	}
	t := text(m.arena[:0:n])
	m.arena = m.arena[n:]
	return e, t
}

// text is where an event's texts are copied to, one behind the other. Its capacity is what they need together.
type text []byte

// bytes copies b. The copy is not nil, even if it is empty, unless b is nil.
func (t *text) bytes(b []byte) []byte {
	if b == nil {
		return nil
	}
	n := len(*t)
	*t = append(*t, b...)
	return (*t)[n:len(*t):len(*t)]
}

// string copies b. The string lies in the arena itself: a string may do so as long as nobody writes to its bytes, and
// nobody can. They belong to no other event, they are handed out once, and no slice of them leaves this function.
func (t *text) string(b []byte) string {
	c := t.bytes(b)
	return unsafe.String(unsafe.SliceData(c), len(c))
}

// hex copies the bytes that digits stand for.
func (t *text) hex(digits []byte) ([]byte, error) {
	if digits == nil {
		return nil, nil
	}
	n := len(*t)
	err := t.appendHex(digits)
	return (*t)[n:len(*t):len(*t)], err
}

// appendHex appends the bytes that digits stand for, for which there is room.
func (t *text) appendHex(digits []byte) error {
	n := len(*t)
	*t = (*t)[:n+hex.DecodedLen(len(digits))]
	_, err := hex.Decode((*t)[n:], digits)
	return err
}

const (
	maxNames    = 1024
	maxNameSize = 128
)

// names holds the types of aggregates and events: there are few, and each comes again and again.
type names map[string]string

func (n names) string(b []byte) string {
	if s, ok := n[string(b)]; ok {
		return s
	}
	s := string(b)
	if len(s) <= maxNameSize {
		if len(n) == maxNames {
			clear(n)
		}
		n[s] = s
	}
	return s
}
