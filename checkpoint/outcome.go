package checkpoint

import "time"

// Status is what became of a delivery, as it stands in outbox_delivery_log.
type Status uint8

const (
	// Delivered: the destination accepted it.
	Delivered Status = iota
	// Failed: a try that was not accepted; the delivery is still owed.
	Failed
	// Dead: given up and kept, with its event, in outbox_parked for a person.
	Dead
	// Discarded: nobody wanted it.
	Discarded
)

var statusNames = [...]string{"delivered", "failed", "dead", "discarded"}

func (s Status) String() string { return statusNames[s] }

// Outcome is what became of one try of one delivery: a row of the log.
type Outcome struct {
	// Entry is the number that Tracker.Add gave to the event. An outcome that is not Failed settles one delivery of it.
	Entry     uint64
	Processor int32
	Position  Position
	EventID   string
	Attempt   int
	Status    Status
	// StartedAt and CompletedAt are by this process's clock; the recorder writes them by PostgreSQL's.
	StartedAt   time.Time
	CompletedAt time.Time
	Error       string
	// Dead is set where Status is Dead.
	Dead *DeadLetter
}

// DeadLetter is what a dead delivery keeps of its event, by value: a row of outbox_parked.
type DeadLetter struct {
	AggregateHash int64
	Attempts      int
	Tries         int
	TriedAt       time.Time
	// Event is the event without its payload, as JSON.
	Event   []byte
	Payload []byte
}

// Outcomes are given to the recorder together and recorded in one transaction, in the order in which they are given.
type Outcomes struct {
	Rows []Outcome
	// Seq is sent on Recorded once these are committed. Recorded holds one value; a newer one replaces it, so that
	// the recorder never waits for its reader. The recorder is the only sender.
	Seq      uint64
	Recorded chan uint64
}
