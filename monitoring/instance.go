package monitoring

import (
	"os"
	"time"

	"github.com/jackc/pglogrepl"

	"github.com/pyairtable-compose/outbox-cdc/internal/buildinfo"
)

// Instance is what a process says of itself: the answer of GET /status, which status.schema.json describes. All of it is made from one
// Status, from Health, and from what Recent remembers of the last minute. Times are in UTC.
type Instance struct {
	// At is when this was made.
	At      time.Time `json:"at"`
	Process Process   `json:"instance"`
	Role    Role      `json:"role,omitempty"`
	// Streaming is true while a session reads the stream. Since is when that last changed.
	Streaming bool      `json:"streaming"`
	Since     time.Time `json:"since,omitzero"`
	// Sessions counts the sessions that have streamed since the process began.
	Sessions int64 `json:"sessions"`
	// Epoch is the number that the running session has in the checkpoint. It is absent without a session.
	Epoch int32 `json:"epoch,omitempty"`
	// LastError is why the last session that has failed ended. It is nil if none has.
	LastError *LastError `json:"last_error,omitempty"`
	// Stream is nil in a process that stands by.
	Stream *StreamReport `json:"stream,omitempty"`
	// Sinks are in the order of the configuration.
	Sinks []SinkReport `json:"sinks"`
	// Forecast is about all that waits, in the WAL and parked for any sink. It is nil without a session.
	Forecast *Forecast `json:"forecast,omitempty"`
	// Stages say where the time goes, in the order of Status. There are none in a process that stands by.
	Stages []StageReport `json:"stages,omitempty"`
	// Cleanup is the last pass of the cleanup. It is nil if this process has made none.
	Cleanup *PassReport `json:"cleanup,omitempty"`
	// Verify is what the comparison of the outbox with the ledger has found. It is nil where nothing can be compared, and in a process that
	// stands by.
	Verify *VerifyReport `json:"verify,omitempty"`
	// Health is the body of /readyz.
	Health Report `json:"health"`
}

// Process says which process this is, and what it works on. It holds no secrets.
type Process struct {
	Host    string    `json:"host"`
	PID     int       `json:"pid"`
	Version string    `json:"version"`
	Started time.Time `json:"started"`
	// Name is the connector's name.
	Name     string         `json:"name"`
	Slot     string         `json:"slot"`
	Database DatabaseTarget `json:"database"`
}

// DatabaseTarget says which database a connector works on.
type DatabaseTarget struct {
	// Address is host:port, or the path of a socket. If several are tried in their order, there are commas between them.
	Address string `json:"address"`
	Name    string `json:"name"`
}

// LastError is an error of the past.
type LastError struct {
	Text string    `json:"text"`
	At   time.Time `json:"at"`
}

// StreamReport says how far the stream is behind.
type StreamReport struct {
	// LagSeconds and LagBytes are Status.Lag and Status.LagBytes.
	LagSeconds float64 `json:"lag_seconds"`
	LagBytes   int64   `json:"lag_bytes"`
	// Confirmed, Prefix and Written are LSNs as PostgreSQL writes them: what may be confirmed, the last event of the prefix, and how far the
	// server is known to have written.
	Confirmed string `json:"confirmed"`
	Prefix    string `json:"prefix"`
	Written   string `json:"written"`
	InFlight  int    `json:"in_flight"`
	// WALRate is how much WAL the server has written over the last minute, in bytes per second. It is nil before it is known.
	WALRate *float64 `json:"wal_bytes_per_second,omitempty"`
	// Forecast is about the WAL that is not confirmed.
	Forecast Forecast `json:"forecast"`
	// Kept is how much WAL the server keeps for the slot. It is nil without a session.
	Kept *KeptReport `json:"wal_kept,omitempty"`
	// Invalid counts rows of the outbox that are no events, and Unrouted events that no route matches.
	Invalid  int64 `json:"invalid"`
	Unrouted int64 `json:"unrouted"`
}

// KeptReport says how much WAL the server keeps for the slot.
type KeptReport struct {
	// Bytes is SlotStatus.RestartLag, Status is its WALStatus, and SafeBytes its SafeWAL.
	Bytes     *int64 `json:"bytes,omitempty"`
	Status    string `json:"status,omitempty"`
	SafeBytes *int64 `json:"safe_bytes,omitempty"`
	// LostAt is when the slot has used up SafeBytes, at the rate at which Bytes has grown over the last minute. It is absent if that does not
	// come.
	LostAt  time.Time `json:"lost_at,omitzero"`
	AskedAt time.Time `json:"asked_at"`
}

// SinkReport says how a sink does.
type SinkReport struct {
	Name string `json:"name"`
	Type string `json:"type"`
	// InSession is true while a session uses the sink. Otherwise nobody knows its condition: Condition, Status and Detail are empty.
	InSession bool `json:"in_session"`
	// Status and Detail are those of the sink's component in /readyz.
	Status Level  `json:"status,omitempty"`
	Detail string `json:"detail,omitempty"`
	// Condition says in one word what the sink is, and Since is since when it is so. Since is absent if it is ok.
	Condition Condition `json:"condition,omitempty"`
	Since     time.Time `json:"since,omitzero"`
	// State is what the metric sink_state shows: the condition in one of six words.
	State State `json:"state,omitempty"`
	// Cause is why the condition is not ok, as far as there is a failure behind it.
	Cause string `json:"cause,omitempty"`
	// AsksAt is when a destination that is away is asked next.
	AsksAt time.Time `json:"asks_at,omitzero"`
	// Rows is nil while nobody knows the numbers: before the first count, and in a process that stands by.
	Rows *RowReport `json:"rows,omitempty"`
	// Lanes counts the lanes that run. Working, InFlight, CatchingUp and Held are those of SinkStatus.
	Lanes      int `json:"lanes"`
	Working    int `json:"lanes_working"`
	InFlight   int `json:"in_flight"`
	CatchingUp int `json:"catching_up"`
	Held       int `json:"held_aggregates"`
	// DeliveredAt is when the sink has last accepted a message. OldestUndeliveredAt is the commit time of the oldest event that was read and
	// waits for the sink; it is absent if there is none, or if nobody knows.
	DeliveredAt         time.Time `json:"last_delivered_at,omitzero"`
	OldestUndeliveredAt time.Time `json:"oldest_undelivered_at,omitzero"`
	// Counts are the outcomes since the process began.
	Counts CountReport `json:"counts"`
	// Rate is nil before the second sample.
	Rate *DeliveryRate `json:"rate,omitempty"`
	// Backlog is the sink's unfinished backlog job, nil if there is none.
	Backlog *BacklogReport `json:"backlog,omitempty"`
	// Objective is nil while nobody knows it: before the ledger was read, and in a process that stands by.
	Objective *ObjectiveReport `json:"objective,omitempty"`
	// Forecast is about the parked rows of the sink and the stream together.
	Forecast Forecast       `json:"forecast"`
	Members  []MemberReport `json:"members,omitempty"`
}

// RowReport counts the rows of a sink in outbox_parked.
type RowReport struct {
	// Parked counts those that wait for a further try, and DeadLetters those that wait for a person.
	Parked      int64 `json:"parked"`
	DeadLetters int64 `json:"dead_letters"`
	// OldestSeconds is how long the oldest row that waits for a further try has been parked.
	OldestSeconds float64 `json:"oldest_parked_seconds"`
	// CountedAt is when a query has last counted the rows. Since then the numbers follow what is told.
	CountedAt time.Time `json:"counted_at"`
}

// CountReport is Counts.
type CountReport struct {
	Delivered int64 `json:"delivered"`
	Unparked  int64 `json:"unparked"` // those of Delivered that had been parked
	Failed    int64 `json:"failed"`
	Dead      int64 `json:"dead"`
	Discarded int64 `json:"discarded"`
}

// DeliveryRate says how many messages a sink accepts, in messages per second. Delivered counts all of them, and Unparked those that had
// been parked.
type DeliveryRate struct {
	DeliveredNow    float64 `json:"delivered_now"` // over the last five seconds
	DeliveredMinute float64 `json:"delivered_minute"`
	UnparkedNow     float64 `json:"unparked_now"`
	UnparkedMinute  float64 `json:"unparked_minute"`
}

// ObjectiveReport is ObjectiveStatus, with the figures that follow from it.
type ObjectiveReport struct {
	// WithinSeconds and Percent are what is configured.
	WithinSeconds float64 `json:"within_seconds"`
	Percent       float64 `json:"percent"`
	// InTimePercent is how many of the events of 28 days were in time. It is nil without events.
	InTimePercent *float64 `json:"in_time_percent,omitempty"`
	// BudgetLeft is the share of the error budget of 28 days that is left: negative if the objective is missed.
	BudgetLeft float64 `json:"budget_left"`
	// The burn rates say how fast the budget is used up: with 1 it lasts exactly as long as the 28 days.
	BurnHour     float64     `json:"burn_rate_1h"`
	BurnSixHours float64     `json:"burn_rate_6h"`
	Trend        TrendReport `json:"trend"`
}

// TrendReport is HourTrend.
type TrendReport struct {
	Start      time.Time   `json:"start"`
	Hour       CountInTime `json:"hour"`
	HourBefore CountInTime `json:"hour_before"`
	DayBefore  CountInTime `json:"day_before"`
}

// CountInTime is EventCounts.
type CountInTime struct {
	Events int64 `json:"events"`
	InTime int64 `json:"in_time"`
}

// StageReport is StageBusy.
type StageReport struct {
	Stage string `json:"stage"`
	Sink  string `json:"sink,omitempty"`
	// BusySeconds is for how long the stage was at work since the process began, and BusyMinute for which share of the last minute. The
	// latter is nil before the second sample.
	BusySeconds float64  `json:"busy_seconds"`
	BusyMinute  *float64 `json:"busy_share_minute,omitempty"`
}

// MemberReport is MemberStatus.
type MemberReport struct {
	Name      string `json:"name"`
	Delivered int64  `json:"delivered"`
	Away      bool   `json:"away"`
}

// VerifyReport is AccountsStatus.
type VerifyReport struct {
	// Unaccounted is nil until all rows were compared once.
	Unaccounted *int64    `json:"unaccounted_events,omitempty"`
	Example     string    `json:"example,omitempty"`
	UpTo        time.Time `json:"compared_up_to,omitzero"`
	WorkedAt    time.Time `json:"last_success_at,omitzero"`
}

// PassReport is CleanupStatus.
type PassReport struct {
	EndedAt    time.Time `json:"ended_at"`
	Seconds    float64   `json:"duration_seconds"`
	Rows       int64     `json:"outbox_rows_deleted"`
	Partitions int       `json:"partitions_dropped"`
	Complete   bool      `json:"complete"`
	Detail     string    `json:"detail,omitempty"`
}

// processStarted is about when the process began.
var processStarted = time.Now()

// newInstance makes the report of a process.
func newInstance(st Status, health Report, trends trends) Instance {
	host, _ := os.Hostname() // without a host name the process still has its pid
	i := Instance{
		At: st.At.UTC(),
		Process: Process{
			Host: host, PID: os.Getpid(), Version: buildinfo.Read().Version, Started: processStarted.UTC(),
			Name: st.Source.Name, Slot: st.Source.Slot, Database: st.Source.Database,
		},
		Role: st.Role, Streaming: st.Streaming, Since: utc(st.Since), Sessions: st.Sessions,
		Sinks: make([]SinkReport, 0, len(st.Sinks)), Health: health,
	}
	if st.Streaming {
		i.Epoch = st.Epoch
	}
	if st.LastError != "" {
		i.LastError = &LastError{Text: st.LastError, At: utc(st.LastErrorAt)}
	}
	if st.Role != RoleStandby {
		i.Stream = &StreamReport{
			LagSeconds: st.Lag.Seconds(), LagBytes: st.LagBytes, InFlight: st.InFlight,
			Confirmed: st.Confirmed.String(), Prefix: st.Prefix.String(), Written: (st.Confirmed + pglogrepl.LSN(st.LagBytes)).String(),
			WALRate: trends.walRate, Forecast: trends.stream, Invalid: st.Invalid, Unrouted: st.Unrouted,
		}
		if st.Database != nil && st.Database.Slot != nil {
			slot := st.Database.Slot
			i.Stream.Kept = &KeptReport{
				Bytes: slot.RestartLag, Status: slot.WALStatus, SafeBytes: slot.SafeWAL, LostAt: trends.forecast.SlotLostAt, AskedAt: utc(slot.AskedAt),
			}
		}
	}
	if st.Role != RoleStandby {
		i.Stages = trends.stages
	}
	if st.Streaming {
		i.Forecast = &trends.forecast.CaughtUp
	}
	if c := st.Cleanup; c != nil {
		i.Cleanup = &PassReport{
			EndedAt: utc(c.EndedAt), Seconds: c.Took.Seconds(), Rows: c.Rows, Partitions: c.Partitions, Complete: c.Complete, Detail: c.Detail,
		}
	}
	if a := st.Accounts; a != nil && st.Role == RoleLeader {
		i.Verify = &VerifyReport{Unaccounted: a.Missing, Example: a.Example, UpTo: utc(a.UpTo), WorkedAt: utc(a.WorkedAt)}
	}
	for n := range st.Sinks {
		i.Sinks = append(i.Sinks, newSinkReport(&st.Sinks[n], trends.sinks[n]))
	}
	return i
}

func newSinkReport(s *SinkStatus, trend sinkTrend) SinkReport {
	r := SinkReport{
		Name: s.Name, Type: s.Type, InSession: s.InSession, Lanes: len(s.Lanes), CatchingUp: s.CatchingUp(), Held: s.Held(),
		State: s.State(), Working: s.Working(), InFlight: s.InFlight(), DeliveredAt: utc(s.Events.DeliveredAt), OldestUndeliveredAt: utc(s.Events.OldestCommittedAt),
		Counts: newCountReport(s.Counts), Backlog: NewBacklogReport(s.Backlog),
		Rate: trend.rate, Objective: newObjectiveReport(&s.Objective), Forecast: trend.forecast,
	}
	if s.InSession {
		c := s.Component()
		r.Status, r.Detail = c.Status, c.Detail
		r.Condition, r.Since = s.Condition()
		r.Since, r.Cause = utc(r.Since), s.whyNotOK(r.Condition)
		if r.Condition == ConditionAway { // nobody asks for a sink that is paused
			r.AsksAt = utc(s.AsksAt)
		}
	}
	if !s.CountedAt.IsZero() {
		r.Rows = &RowReport{Parked: s.Parked, DeadLetters: s.DeadLetters, OldestSeconds: s.OldestParked.Seconds(), CountedAt: utc(s.CountedAt)}
	}
	for _, m := range s.Members {
		r.Members = append(r.Members, MemberReport(m))
	}
	return r
}

func newObjectiveReport(o *ObjectiveStatus) *ObjectiveReport {
	if !o.Known {
		return nil
	}
	r := &ObjectiveReport{
		WithinSeconds: o.Within.Seconds(), Percent: Percent(o.Ratio), BudgetLeft: o.Month.BudgetLeft(o.Ratio),
		BurnHour: o.Hour.BurnRate(o.Ratio), BurnSixHours: o.SixHours.BurnRate(o.Ratio),
		Trend: TrendReport{
			Start: o.Trend.Start.UTC(), Hour: CountInTime(o.Trend.Hour), HourBefore: CountInTime(o.Trend.HourBefore), DayBefore: CountInTime(o.Trend.DayBefore),
		},
	}
	if o.Month.Events > 0 {
		r.InTimePercent = new(Percent(1 - o.Month.LateShare()))
	}
	return r
}

func newCountReport(c Counts) CountReport {
	return CountReport{Delivered: c.Delivered, Unparked: c.Unparked, Failed: c.Failed, Dead: c.Dead, Discarded: c.Discarded}
}

// whyNotOK returns the failure behind a condition, or nothing if there is none.
func (s *SinkStatus) whyNotOK(c Condition) string {
	switch c {
	case ConditionOK:
		return ""
	case ConditionUnreachable:
		return s.Check.Unreachable
	case ConditionPaused:
		if outage, _ := s.Outage(); outage == ConditionOK {
			return ""
		}
	case ConditionAway, ConditionFailing, ConditionSuspect, ConditionRefusing:
	}
	return s.Cause
}

// utc returns a time in UTC, and the zero time as it is.
func utc(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return t.UTC()
}
