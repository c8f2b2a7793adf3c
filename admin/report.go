package admin

import (
	"time"

	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

// Report says how a connector has done over some days: its objectives, its worst hours, the outages of its sinks and its dead letters. All
// is read from the ledger, so that the report needs no running connector. Times are by PostgreSQL's clock. A number that nobody knows is
// absent, and Unknown says why. docs/objectives.md has the formulas.
type Report struct {
	At        time.Time `json:"at"`
	Connector string    `json:"connector"`
	// From is a full hour of UTC. The report is about the time from then on until At.
	From time.Time `json:"from"`
	// Sinks are the connector's sinks in the order in which it came to know them. Those that are no longer configured are among them if
	// they have events in this time, or dead letters.
	Sinks []ReportSink `json:"sinks"`
	// WorstHours are the hours of UTC with the most late events, the worst first.
	WorstHours []ReportHour `json:"worst_hours"`
	// Stages say where the time has gone, the slowest first: the instance that streams knows it, and only since its process began. It is
	// absent if none could be asked.
	Stages *ReportStages `json:"stages,omitempty"`
	// Failures are the runs of failed tries, in order of time. Those in which the sink has accepted nothing are outages.
	Failures []ReportFailures `json:"failures"`
	// NoSinkDead counts the rows of the outbox that were no valid events, in this time.
	NoSinkDead *int64 `json:"no_sink_dead,omitempty"`
	// Unknown is what cannot be known, and why.
	Unknown []string `json:"unknown"`
}

// ReportSink is a sink of the connector.
type ReportSink struct {
	Name       string `json:"name"`
	Configured bool   `json:"configured"`
	// Objective is absent if the sink is not configured.
	Objective *ReportObjective `json:"objective,omitempty"`
	// Period is the time of the report.
	Period ReportPeriod `json:"period"`
	// Met says whether the objective was met in that time; absent without events.
	Met *bool `json:"met,omitempty"`
	// Budget is that of the last 28 days; absent without objective.
	Budget *ReportBudget `json:"budget,omitempty"`
	Trend  ReportTrend   `json:"trend"`
	// Died counts the deliveries that have become dead letters in this time, and Dead those that wait for a person now. DeadAtLeast says
	// that there are more of the latter than were counted.
	Died        *int64 `json:"died,omitempty"`
	Dead        *int64 `json:"dead_letters,omitempty"`
	DeadAtLeast bool   `json:"dead_letters_at_least,omitempty"`
	// Condition is that of monitoring, as the connector that streams has last written it; absent if no connector has.
	Condition monitoring.Condition `json:"condition,omitempty"`
	Since     *time.Time           `json:"since,omitempty"`
}

// ReportObjective is what is configured.
type ReportObjective struct {
	WithinSeconds float64 `json:"within_seconds"`
	Percent       float64 `json:"percent"`
}

// ReportPeriod are the results of a sink in some time.
type ReportPeriod struct {
	Events int64 `json:"events"`
	InTime int64 `json:"in_time"`
	// Percent is InTime of Events. P50, P99 and Worst are times from commit to acceptance. All are absent without events.
	Percent *float64 `json:"in_time_percent,omitempty"`
	P50     *float64 `json:"p50_seconds,omitempty"`
	P99     *float64 `json:"p99_seconds,omitempty"`
	Worst   *float64 `json:"worst_seconds,omitempty"`
}

// ReportBudget is the error budget of the last 28 days.
type ReportBudget struct {
	Events int64 `json:"events"`
	Late   int64 `json:"late"`
	// Left is the share that is left: 1 if no event was late, negative if the objective is missed.
	Left float64 `json:"left"`
	// The burn rates say how fast the budget is used up: with 1 it lasts exactly as long as the 28 days.
	BurnHour     float64 `json:"burn_rate_1h"`
	BurnSixHours float64 `json:"burn_rate_6h"`
	BurnDay      float64 `json:"burn_rate_24h"`
}

// ReportTrend compares the last hour of UTC that is over with the one before, and with the same one of the day before.
type ReportTrend struct {
	Hour       ReportHour `json:"hour"`
	HourBefore ReportHour `json:"hour_before"`
	DayBefore  ReportHour `json:"day_before"`
}

// ReportHour is an hour of UTC of a sink.
type ReportHour struct {
	Sink  string    `json:"sink,omitempty"`
	Start time.Time `json:"start"`
	ReportPeriod
}

// ReportStages are the stages of the instance that streams.
type ReportStages struct {
	Host string `json:"host"`
	PID  int    `json:"pid"`
	// Since is when the process began.
	Since time.Time                `json:"since"`
	All   []monitoring.StageReport `json:"all"`
}

// ReportFailures is a run of failed tries of a sink. No two of them that follow each other are further apart than a sink is left alone.
type ReportFailures struct {
	Sink  string    `json:"sink"`
	From  time.Time `json:"from"`
	Until time.Time `json:"until"`
	Tries int64     `json:"tries"`
	// Outage says that the sink has accepted nothing in any whole minute of the run. It is absent if the run has no whole minute.
	Outage *bool `json:"outage,omitempty"`
	// Minutes counts the whole minutes of the run, and AcceptedMinutes those in which the sink has accepted something.
	Minutes         int64  `json:"minutes"`
	AcceptedMinutes int64  `json:"accepted_minutes"`
	LastError       string `json:"last_error,omitempty"`
}
