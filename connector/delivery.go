package connector

import (
	"time"
	"unsafe"

	"github.com/pyairtable-compose/outbox-cdc/checkpoint"
	"github.com/pyairtable-compose/outbox-cdc/sinks"
)

// delivery is one event for one sink. It belongs to the reader until it is handed to a lane, then to that lane.
type delivery struct {
	sinks.Message
	hash      int64
	entry     uint64 // its event in the tracker
	attempts  int    // tries that were refused
	tries     int    // all tries
	triedAt   time.Time
	repeats   bool // an earlier session, or an earlier try whose answer was a refusal, may have sent it: see unsent.go
	discarded bool // it was discarded while a Deliver had it: what the sink answers changes nothing
	due       bool // it was read as one that is due
	row       bool // it has a row in outbox_parked, or will have in the recorder's order; hence it is settled
}

// deliverySize is what a delivery takes until it is settled, its outcome included. With it max_in_flight_bytes is true.
const deliverySize = int(unsafe.Sizeof(delivery{}) + unsafe.Sizeof(checkpoint.Outcome{}))

func (d *delivery) position() checkpoint.Position {
	return checkpoint.Position{LSN: d.LSN, Index: d.Index}
}

// triedInPlace is the outcome of a try that failed and is followed by another one in the lane's hands. It settles nothing, and the
// delivery has no row in outbox_parked.
func (d *delivery) triedInPlace(processor int32, status checkpoint.Status) checkpoint.Outcome {
	return checkpoint.Outcome{
		Entry: d.entry, Processor: processor, Position: d.position(), EventID: d.Event.ID, Status: status, Attempt: d.tries,
	}
}

// outcome is what has become of the delivery, with the change that this makes to its row in outbox_parked. It settles the delivery,
// unless that has a row already, because a delivery is settled once it has one.
func (d *delivery) outcome(processor int32, status checkpoint.Status) checkpoint.Outcome {
	o := d.triedInPlace(processor, status)
	o.Settles = !d.row
	switch status {
	case checkpoint.Delivered, checkpoint.Discarded:
		if d.row {
			o.Row = checkpoint.RowDelete
		}
	default:
		o.Parked = &checkpoint.ParkedState{AggregateHash: d.hash, Attempts: d.attempts, Tries: d.tries, TriedAt: d.triedAt}
		if d.repeats && d.tries > 0 && !d.isUncertain() {
			o.Parked.Tries++ // a try of an earlier session, of which nobody knows
		}
		if o.Row = checkpoint.RowUpdate; !d.row {
			o.Row = checkpoint.RowInsert
			o.Parked.Event, o.Parked.Payload = storedEvent(d.Event, d.CommitTime).Encode(), d.Event.Payload
		}
		d.row = true
	}
	return o
}
