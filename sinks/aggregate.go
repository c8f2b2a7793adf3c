package sinks

import "hash/maphash"

// Aggregate is the unit of order: no message may overtake another one of the same aggregate.
type Aggregate struct{ Type, ID string }

// Aggregate returns the aggregate of the message's event.
func (m *Message) Aggregate() Aggregate {
	return Aggregate{m.Event.AggregateType, m.Event.AggregateID}
}

var hashSeed = maphash.MakeSeed()

// Hash returns a hash for use within this process. Another process computes other hashes.
func (a Aggregate) Hash() uint64 {
	return maphash.String(hashSeed, a.Type)*31 + maphash.String(hashSeed, a.ID)
}
