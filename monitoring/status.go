package monitoring

import (
	"fmt"
	"time"

	"github.com/jackc/pglogrepl"
)

// Status is the state of a connector at one moment. Health, metrics and whatever else tells people of a connector are made from it.
// The numbers of the window (InFlight, Lag, Confirmed, Prefix) belong together, and so do those of each sink.
type Status struct {
	// At is when this snapshot was taken.
	At time.Time
	// Source says what the connector works on.
	Source SourceStatus
	// Role is empty before the connector knows whether it gets the slot, and after it has ended.
	Role Role
	// Streaming is true while a session reads the stream. Since is when that last changed; it is zero before Run.
	Streaming bool
	Since     time.Time
	// Sessions counts the sessions that have streamed. Epoch is the number that the last of them has in the checkpoint; 0 if there was none.
	Sessions int64
	Epoch    int32
	// LanesPerSink is how many lanes a session makes for each sink.
	LanesPerSink int
	// LastError is why the last session that has failed ended, and LastErrorAt is when. Both are empty if none has failed.
	LastError   string
	LastErrorAt time.Time

	// InFlight is the number of events that were read from the stream and are not settled.
	InFlight int
	// Lag is the time since the commit of the last settled transaction; 0 while nothing is known to wait. While nobody reads the
	// stream, it is the time since somebody last did, if that is longer.
	Lag time.Duration
	// LagBytes is the WAL between what the server is known to have written and Confirmed, in bytes. Keepalives and commits in the stream say
	// how far the server has written, and a query every 2 s. It is 0 in a process that stands by.
	LagBytes int64
	// OwnWAL is about how much of that WAL the connector has itself written since it was made, to record outcomes.
	OwnWAL int64
	// Confirmed is the LSN that may be confirmed to PostgreSQL. Prefix is the commit LSN of the last event of the prefix: that
	// event and all events before it are settled. Both are 0 before the first session.
	Confirmed, Prefix pglogrepl.LSN

	// Invalid counts rows of the outbox that are no events. They are dead letters of no sink. Unrouted counts events that no route
	// matches.
	Invalid, Unrouted int64
	// Mended counts what was broken while the process ran, and is right again.
	Mended MendedCounts
	// Stages says where the time has gone.
	Stages Stages
	// Sinks are in the order of the configuration.
	Sinks []SinkStatus
	// Cleanup is the last pass of the cleanup. It is nil if this connector has made none.
	Cleanup *CleanupStatus
	// Accounts is what the comparison of the outbox with the ledger has found. It is nil before the first step, and where rows cannot be
	// found by their time.
	Accounts *AccountsStatus
	// Database is what is asked of PostgreSQL for the metrics. It is nil without a session, and so in a process that stands by.
	Database *DatabaseStatus
	// Forecast is nil without a session, and where no Recent has watched the connector.
	Forecast *ForecastStatus
}

// MendedCounts count what was broken, and is right again.
type MendedCounts struct {
	// Publications counts how often the publication was found changed, and right again.
	Publications int64
	// Slots counts how often this process has made a lost slot anew.
	Slots int64
}

// AccountsStatus is what the comparison of the outbox with the ledger has found so far.
type AccountsStatus struct {
	// Missing counts the events that the stream is past, and of which the ledger does not know what has become of them at a sink to which they
	// are owed. It is nil until all rows were compared once.
	Missing *int64
	// Example is the id of one of them.
	Example string
	// UpTo says that all rows of earlier times were compared. While nothing is left to compare, it is at most half a minute ago.
	UpTo time.Time
	// WorkedAt is when the comparison has last done what was due, or has found that nothing was.
	WorkedAt time.Time
}

// CleanupStatus is what a pass of the cleanup has done.
type CleanupStatus struct {
	EndedAt time.Time
	Took    time.Duration
	// Rows counts the rows of the outbox that were deleted, and Partitions the partitions of outbox and log that were dropped.
	Rows       int64
	Partitions int
	// Complete is true if nothing has ended the pass early.
	Complete bool
	// Detail says what is wrong, or why rows stay. It is empty if nothing is to be said.
	Detail string
}

// SourceStatus says what a connector works on. It holds no secrets.
type SourceStatus struct {
	Name     string // of the connector
	Slot     string
	Database DatabaseTarget
}

// SinkStatus is the state of a sink at one moment, for all of its lanes together.
type SinkStatus struct {
	Name, Type string
	// InSession is true while a session uses the sink.
	InSession bool
	// Breaker is closed, half-open or open. BreakerSince is when it opened; zero while it is closed.
	Breaker      string
	BreakerSince time.Time
	// AsksAt is when the destination is asked next while the breaker is open. It is zero while the breaker is closed or half-open:
	// a half-open one asks now.
	AsksAt time.Time
	// Failing is true while lanes wait because the sink has not accepted their last batch. Cause is the last failure of a message,
	// or empty if there was none.
	// FailingSince is when that began; zero while Failing is false.
	Failing      bool
	FailingSince time.Time
	Cause        string
	// SuspectSince is since when messages that would become dead letters are parked instead, because several have died since the sink
	// last accepted one. It is zero while the sink is not suspect.
	SuspectSince time.Time
	// Topics tells of the topics of the sink that are away while the destination itself answers.
	Topics TopicsAway
	// Paused is true while a person has paused the sink.
	Paused bool
	Since  SinceTimes
	// Unreadable says why the parked rows cannot be read. It is empty if they can.
	Unreadable string
	// Check is what was found wrong by asking the destination without a message.
	Check CheckStatus
	// Parked and DeadLetters count the rows of the sink in outbox_parked that wait for a further try, and for a person.
	// OldestParked is the time since the oldest row that waits for a further try was parked. CountedAt is when a query has last counted the
	// rows; since then the numbers follow the recorder's own changes, and persons' commands. If it is zero, nobody knows the numbers:
	// before the first count, and while this process stands by.
	Parked, DeadLetters int64
	OldestParked        time.Duration
	CountedAt           time.Time
	// Lanes are the lanes that run, by their numbers. There are none without a session.
	Lanes []LaneStatus
	// Counts are the outcomes since the connector was made.
	Counts Counts
	// Events are times of events.
	Events EventTimes
	// Objective says how fast events are accepted, against what is configured.
	Objective ObjectiveStatus
	// Backlog is the sink's unfinished backlog job. It is nil if there is none, and without a session.
	Backlog *BacklogStatus
	// Members are the members of a composite, in the order in which they are asked. There are none for other sinks.
	Members []MemberStatus
}

// SinceTimes say since when a sink is so.
type SinceTimes struct {
	// Refusing is since when the sink has refused each of several messages and accepted none, while some are parked. It is zero if that is
	// not so.
	Refusing time.Time
	// Paused is when the connector heard that a person has paused the sink. It is zero if nobody has.
	Paused time.Time
}

// EventTimes are times of events of a sink.
type EventTimes struct {
	// DeliveredAt is when the sink has last accepted a message; zero if it has accepted none since the connector was made.
	DeliveredAt time.Time
	// OldestCommittedAt is the commit time of the oldest event that was read from the stream, and that the sink has neither accepted nor
	// given up. It may be parked. It is zero if there is none, or if nobody knows: see SinkStatus.KnowsWhatWaits.
	OldestCommittedAt time.Time
}

// LaneStatus is the state of a lane.
type LaneStatus struct {
	// CatchingUp is true while the lane delivers from outbox_parked; else it is live.
	CatchingUp bool
	// Held counts the aggregates that wait behind a delivery that was not accepted, as the lane knows them: a lane that catches up knows
	// those that its last read of outbox_parked has found.
	Held int
	// Failing is true while the lane waits because the sink has not accepted its last batch.
	Failing bool
	// RefusedAll is true if the sink has accepted nothing of the last batch of the lane that it has answered, or should have.
	RefusedAll bool
	// InFlight counts the deliveries that the lane was given from the stream and that are not settled.
	InFlight int
	// DeliveredAt is when the sink has last accepted a message of the lane; zero if it has accepted none in this session.
	DeliveredAt time.Time
}

// Works reports whether a lane of the sink does what it has to do. It does unless the sink has not accepted its last batch and something
// waits in it, the destination is left alone, or its parked rows cannot be read. The lanes of a paused sink have nothing to do.
func (s *SinkStatus) Works(lane *LaneStatus) bool {
	switch {
	case s.Paused:
		return true
	case !s.BreakerSince.IsZero(), s.Unreadable != "" && lane.CatchingUp:
		return false
	}
	return !(lane.Failing || lane.RefusedAll) || lane.InFlight == 0 && lane.Held == 0
}

// Working counts the lanes that work.
func (s *SinkStatus) Working() (n int) {
	for i := range s.Lanes {
		if s.Works(&s.Lanes[i]) {
			n++
		}
	}
	return n
}

// InFlight counts the deliveries that the lanes were given from the stream and that are not settled.
func (s *SinkStatus) InFlight() (n int) {
	for i := range s.Lanes {
		n += s.Lanes[i].InFlight
	}
	return n
}

// KnowsWhatWaits reports whether it is known what waits for the sink: a session uses it, and its parked rows were counted.
func (s *SinkStatus) KnowsWhatWaits() bool { return s.InSession && !s.CountedAt.IsZero() }

// CatchingUp counts the lanes that deliver from outbox_parked.
func (s SinkStatus) CatchingUp() (n int) {
	for _, l := range s.Lanes {
		if l.CatchingUp {
			n++
		}
	}
	return n
}

// Held counts the aggregates that the lanes hold.
func (s SinkStatus) Held() (n int) {
	for _, l := range s.Lanes {
		n += l.Held
	}
	return n
}

// MemberStatus is the state of a member of a composite that gives each message to one of its members.
type MemberStatus struct {
	Name string
	// Delivered counts the messages that the member has accepted since the connector was made.
	Delivered int64
	// Away is true if the member has answered nothing in the last Deliver that asked it.
	Away bool
}

// TopicsAway tells of topics that are away while their destination answers. It is zero while there are none.
type TopicsAway struct {
	Count int
	Since time.Time // when the first of them was found away
	Cause string    // the last failure of one
}

// Component returns the state of the sink as /readyz shows it. A sink never fails the process, because what it does not accept is
// parked, or waits in the WAL. A paused sink, and parked or dead rows alone, are ok: nothing but a person's decision is outstanding.
func (s SinkStatus) Component() Component {
	c := OK("")
	switch {
	case s.Unreadable != "":
		c = Degraded(s.Unreadable)
	case s.Paused:
		c.Detail = "paused by a person; outbox-cdc resume " + s.Name + " goes on"
		if s.Failing || s.BreakerSince != (time.Time{}) {
			c.Detail += "; before that it did not accept: " + s.Cause
		}
	case s.BreakerSince != (time.Time{}):
		c = Degraded(fmt.Sprintf("left alone since %s (breaker %s; outbox-cdc retry %s asks at once): %s",
			stamp(s.BreakerSince), s.Breaker, s.Name, s.Cause))
	case s.Failing:
		c = Degraded(s.Cause)
	}
	add := func(text string) {
		if c.Detail != "" {
			c.Detail += "; "
		}
		c.Detail += text
	}
	for _, m := range s.Members {
		if m.Away {
			add("member " + m.Name + " is away")
		}
	}
	if text := s.Check.text(); text != "" && !(s.Failing || s.BreakerSince != (time.Time{})) {
		c.Status = LevelDegraded
		add(text)
	}
	switch {
	case !s.SuspectSince.IsZero():
		c.Status = LevelDegraded // a receiver that refuses everything works as little as one that is away
		add(fmt.Sprintf("suspect since %s: what would become a dead letter is parked until it accepts a message (last failure: %s)",
			stamp(s.SuspectSince), s.Cause))
	case !s.Since.Refusing.IsZero():
		c.Status = LevelDegraded
		add(fmt.Sprintf("has refused every message since %s (last failure: %s)", stamp(s.Since.Refusing), s.Cause))
	}
	if s.Topics.Count > 0 && len(s.Check.Missing) == 0 {
		add(fmt.Sprintf("a topic is away since %s, and its events wait: %s", stamp(s.Topics.Since), s.Topics.Cause))
	}
	if s.Parked > 0 {
		add(fmt.Sprintf("%d parked, the oldest %s ago", s.Parked, s.OldestParked.Round(time.Second)))
	}
	if s.DeadLetters > 0 {
		add(fmt.Sprintf("%d dead", s.DeadLetters))
	}
	if s.Paused && s.Unreadable == "" {
		c.Status = LevelOK // whatever else is wrong, nothing waits for the sink before a person resumes it
	}
	return c
}

// stamp returns a time as people see it.
func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
