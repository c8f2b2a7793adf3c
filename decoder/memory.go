package decoder

import (
	"encoding/hex"
	"unsafe"

	"github.com/pyairtable-compose/outbox-cdc/outbox"
)

const (
	arenaSize = 256 << 10
	slabSize  = 256
	// OwnSize is the size above which an event gets memory of its own. An event in an arena or a slab keeps all its
	// neighbours in memory as long as it is in use itself. With events of at most this size that is not much.
	OwnSize = 8 << 10

	eventSize = int(unsafe.Sizeof(outbox.Event{}))
)

// memory hands out memory for events: structs from slabs, and bytes from arenas. So an event costs about a hundredth of
// an allocation. No memory is handed out twice. The garbage collector frees a slab or an arena when no event in it is
// used any more.
type memory struct {
	arena []byte
	slab  []outbox.Event
}

// event returns an empty event, and room for n bytes of its texts. n is at most OwnSize.
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

// text is the memory into which the texts of an event are copied, one after the other. Its capacity is what they need in all.
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

// string copies b. The string uses the bytes of the arena directly. That is allowed because nobody can write to them
// any more: they are handed out once, belong to no other event, and no slice of them leaves this function.
func (t *text) string(b []byte) string {
	c := t.bytes(b)
	return unsafe.String(unsafe.SliceData(c), len(c)) //nolint:gosec // see above
}

// hex appends the bytes that hexadecimal digits stand for, and returns them.
func (t *text) hex(digits []byte) ([]byte, error) {
	if digits == nil {
		return nil, nil
	}
	n := len(*t)
	err := t.appendHex(digits)
	return (*t)[n:len(*t):len(*t)], err
}

// appendHex appends the bytes that hexadecimal digits stand for. The caller has made sure that t has room for them.
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

// names shares the strings of aggregate types and event types: there are few different ones, and each comes again and again.
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
