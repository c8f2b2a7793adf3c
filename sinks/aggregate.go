package sinks

import "hash/maphash"

// Aggregate is the unit of order: within one no message may overtake another.
type Aggregate struct{ Type, ID string }

// Aggregate of the message's event.
func (m *Message) Aggregate() Aggregate {
	return Aggregate{m.Event.AggregateType, m.Event.AggregateID}
}

var seed = maphash.MakeSeed()

// Hash is for maps within this process: it is another one in the next.
func (a Aggregate) Hash() uint64 {
	return maphash.String(seed, a.Type)*31 + maphash.String(seed, a.ID)
}
