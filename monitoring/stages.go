package monitoring

import (
	"slices"
	"time"
)

// The stages through which an event goes.
const (
	StageDecode  = "decode"  // the reader decodes the stream, routes events and hands them to lanes
	StageQueue   = "queue"   // events wait for their lane's next batch
	StageDeliver = "deliver" // the sink delivers a batch
	StageRecord  = "record"  // the recorder commits what became of the events
	StageConfirm = "confirm" // PostgreSQL hears that it may forget them
)

// Stages says where a connector's time has gone since it was made.
type Stages struct {
	Busy []StageBusy
	// ReaderWaited is how long the reader has waited for others of the process.
	ReaderWaited ReaderWaited
	// Read counts rows of the outbox that came on the stream. What PostgreSQL sends again after a restart counts again.
	Read int64
	// RecorderRetries counts tries to record outcomes again after one has failed.
	RecorderRetries int64
}

// StageBusy is how long a stage was at work: the sum over its workers, divided by their number. So it grows by one second in a second
// if all of them are at work all the time.
type StageBusy struct {
	Stage string
	Sink  string // of StageQueue and StageDeliver, whose workers are those of the sink; else empty
	Busy  time.Duration
}

// ReaderWaited is how long the reader has waited for others: because a lane has too much to do already, because the window was full of
// events that are not settled, or because the recorder took no outcomes.
type ReaderWaited struct {
	Lanes, Window, Recorder time.Duration
}

// Plus returns the sum of two, where the stages of sinks that only t has come last.
func (s Stages) Plus(t Stages) Stages {
	sum := Stages{
		Busy: slices.Clone(s.Busy), Read: s.Read + t.Read, RecorderRetries: s.RecorderRetries + t.RecorderRetries,
		ReaderWaited: ReaderWaited{
			Lanes: s.ReaderWaited.Lanes + t.ReaderWaited.Lanes, Window: s.ReaderWaited.Window + t.ReaderWaited.Window,
			Recorder: s.ReaderWaited.Recorder + t.ReaderWaited.Recorder,
		},
	}
	for _, b := range t.Busy {
		i := slices.IndexFunc(sum.Busy, func(a StageBusy) bool { return a.Stage == b.Stage && a.Sink == b.Sink })
		if i < 0 {
			sum.Busy = append(sum.Busy, b)
		} else {
			sum.Busy[i].Busy += b.Busy
		}
	}
	return sum
}
