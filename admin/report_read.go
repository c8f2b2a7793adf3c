package admin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/advisory"
	"github.com/pyairtable-compose/outbox-cdc/ledger"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

// ReportConfig says what ReadReport reports on.
type ReportConfig struct {
	Config
	// Objectives are those of the configured sinks, by name.
	Objectives map[string]monitoring.ObjectiveStatus
	// Listen is http.listen, or empty if that is off.
	Listen string
	// LeftAlone is the longest time that passes between two tries of a sink that is away.
	LeftAlone time.Duration
}

const (
	// ReportKept is how far back a report can go: outbox_metrics has nothing that is older.
	ReportKept = 30 * 24 * time.Hour
	// mostWorstHours is how many hours Report.WorstHours has at most.
	mostWorstHours = 5
	// reportWindow is what ledger.OverviewQuery.Window is; a report shows nothing that depends on it.
	reportWindow = 1
)

// reporter collects a report.
type reporter struct {
	*ledgerConn
	cfg      ReportConfig
	report   Report
	overview ledger.Overview
	history  ledger.ResultHistory
	hours    []ledger.HourResults // those that the report needs, with Took
	failures *ledger.Failures     // nil if they could not be read
}

// ReadReport reports on the time since that long ago, at least an hour and at most ReportKept.
func ReadReport(ctx context.Context, c ReportConfig, since time.Duration) (Report, error) {
	r := reporter{cfg: c, report: Report{
		Connector: c.Name, Sinks: []ReportSink{}, WorstHours: []ReportHour{}, Failures: []ReportFailures{}, Unknown: []string{},
	}}
	err := withLedger(ctx, c.Config, func(l *ledgerConn) error {
		r.ledgerConn = l
		return r.read(ctx, since)
	})
	return r.report, err
}

func (r *reporter) read(ctx context.Context, since time.Duration) (err error) {
	ids := make([]int32, 0, len(r.Sinks))
	for _, s := range r.Sinks {
		ids = append(ids, s.Processor)
	}
	if r.history, err = r.schema().ReadResults(ctx, r.conn, ids); err != nil {
		return err
	}
	now := r.history.Now
	r.report.At, r.report.From = now.UTC(), now.Add(-since).UTC().Truncate(time.Hour)
	from := r.report.From
	if yesterday := now.Truncate(time.Hour).Add(-25 * time.Hour); yesterday.Before(from) {
		from = yesterday
	}
	if r.hours, err = r.schema().ReadHours(ctx, r.conn, ledger.HoursQuery{Processors: ids, From: from, Took: true}); err != nil {
		return err
	}
	r.readFailures(ctx, ids)
	if err := r.readOverview(ctx); err != nil {
		return err
	}
	for _, s := range r.overview.Sinks {
		r.addSink(&s)
	}
	r.addWorstHours()
	r.addStages(ctx)
	return nil
}

// addStages asks the instance that streams where the time goes.
func (r *reporter) addStages(ctx context.Context) {
	in, err := r.askLeader(ctx)
	if err != nil {
		r.unknown("the slowest stage: %v", err)
		return
	}
	s := &ReportStages{
		Host: in.Process.Host, PID: in.Process.PID, Since: in.Process.Started.Add(r.history.Now.Sub(in.At)).UTC(), All: slices.Clone(in.Stages),
	}
	slices.SortStableFunc(s.All, func(a, b monitoring.StageReport) int { return cmp.Compare(b.BusySeconds, a.BusySeconds) })
	r.report.Stages = s
}

// askLeader asks the instances that have been found in the database, and that of http.listen, for the one that streams.
func (r *reporter) askLeader(ctx context.Context) (*monitoring.Instance, error) {
	found, err := r.schema().Instances(ctx, r.conn, r.cfg.Source.Slot)
	if err != nil {
		return nil, err
	}
	ask := StatusConfig{Config: r.cfg.Config, Listen: r.cfg.Listen}
	answers := ask.askAll(ctx, ask.addresses(found))
	for i := range answers {
		a := &answers[i]
		if a.err == nil && a.instance.Process.Database.Name == r.conn.Config().Database && a.instance.Role == monitoring.RoleLeader && a.instance.Streaming {
			return a.instance, nil
		}
	}
	if !slices.ContainsFunc(found, func(i ledger.Instance) bool { return i.Leader }) {
		return nil, errors.New("no instance streams")
	}
	return nil, errors.New("the instance that streams could not be asked (outbox-cdc status says why)")
}

// readFailures reads the failed tries. A log that cannot be read leaves them out.
func (r *reporter) readFailures(ctx context.Context, ids []int32) {
	f, err := r.schema().ReadFailures(ctx, r.conn, ledger.FailuresQuery{Processors: ids, From: r.report.From, Gap: r.cfg.LeftAlone + time.Minute})
	switch {
	case err != nil:
		r.unknown("outages, and what has died: %v", err)
		return
	case f.More:
		r.unknown("outages before the oldest one: the log has more failed tries than were looked at")
	}
	r.failures = &f
	for i := range f.Runs {
		run := &f.Runs[i]
		shown := ReportFailures{
			Sink: r.sinkName(run.Processor), From: run.From.UTC(), Until: run.Until.UTC(), Tries: run.Tries, LastError: run.LastError,
			Minutes: run.Minutes, AcceptedMinutes: run.Accepted,
		}
		if run.Minutes > 0 {
			shown.Outage = new(run.Accepted == 0)
		}
		r.report.Failures = append(r.report.Failures, shown)
	}
	r.report.NoSinkDead = new(f.Died[0])
}

func (r *reporter) readOverview(ctx context.Context) error {
	readable := map[string]bool{}
	for _, table := range []string{"outbox_checkpoints", "outbox_processors", "outbox_parked", "outbox_delivery_log", "outbox_retention"} {
		readable[table] = true
	}
	var err error
	r.overview, err = r.schema().ReadOverview(ctx, r.conn, ledger.OverviewQuery{
		Slot: r.cfg.Source.Slot, Connector: r.cfg.Name, Window: reportWindow, Readable: readable, HasState: true,
	})
	if err != nil {
		return err
	}
	if err := r.overview.Unread; err != nil {
		if advisory.LockTimeout(err) {
			err = errors.New("another session holds a lock on them")
		}
		r.unknown("dead letters that wait: %v", err)
	}
	if kept := r.overview.Retention; kept != nil && kept.LogDroppedUntil != nil && kept.LogDroppedUntil.After(r.report.From) {
		r.unknown("outages, and what has died, before %s: those days of the log were deleted (retention.ledger)", kept.LogDroppedUntil.UTC().Format("2006-01-02 15:04"))
	}
	return nil
}

func (r *reporter) unknown(format string, args ...any) {
	r.report.Unknown = append(r.report.Unknown, fmt.Sprintf(format, args...))
}

func (r *reporter) addSink(known *ledger.SinkOverview) {
	id := known.Processor
	s := ReportSink{Name: known.Name, Configured: r.isConfigured(id), Period: period(r.sum(id, r.report.From, r.report.At))}
	if r.failures != nil {
		s.Died = new(r.failures.Died[id])
	}
	if r.overview.Unread == nil {
		s.Dead, s.DeadAtLeast = new(known.Parked.Dead), known.Parked.More
	}
	if !s.Configured && s.Period.Events == 0 && known.Parked.Dead == 0 {
		return
	}
	if st := known.State; st != nil {
		s.Condition, s.Since = monitoring.Condition(st.Condition), utcOrNil(st.Since)
	}
	if goal, has := r.cfg.Objectives[known.Name]; has {
		s.Objective = &ReportObjective{WithinSeconds: goal.Within.Seconds(), Percent: monitoring.Percent(goal.Ratio)}
		s.Budget = r.budget(id, goal.Ratio)
		if s.Period.Events > 0 {
			s.Met = new(float64(s.Period.InTime) >= goal.Ratio*float64(s.Period.Events))
		}
	}
	over := r.history.Now.UTC().Truncate(time.Hour).Add(-time.Hour)
	s.Trend = ReportTrend{Hour: r.hour(id, over), HourBefore: r.hour(id, over.Add(-time.Hour)), DayBefore: r.hour(id, over.Add(-24*time.Hour))}
	r.report.Sinks = append(r.report.Sinks, s)
}

// sum returns the results of the hours of a sink that begin in this time.
func (r *reporter) sum(id int32, from, until time.Time) (sum ledger.Results) {
	for i := range r.hours {
		if h := &r.hours[i]; h.Processor == id && !h.Start.Before(from) && h.Start.Before(until) {
			sum.Add(&h.Results)
		}
	}
	return sum
}

func (r *reporter) hour(id int32, start time.Time) ReportHour {
	return ReportHour{Start: start, ReportPeriod: period(r.sum(id, start, start.Add(time.Hour)))}
}

// period returns results as they are shown.
func period(sum ledger.Results) ReportPeriod {
	p := ReportPeriod{Events: sum.Events, InTime: sum.InTime}
	if sum.Events > 0 {
		p.Percent = new(monitoring.Percent(float64(sum.InTime) / float64(sum.Events)))
	}
	if len(sum.Took) > 0 {
		p.P50, p.P99, p.Worst = new(sum.Percentile(.5).Seconds()), new(sum.Percentile(.99).Seconds()), new(sum.Worst.Seconds())
	}
	return p
}

func (r *reporter) budget(id int32, ratio float64) *ReportBudget {
	now := r.history.Now
	var month, day, sixHours, hour monitoring.EventCounts
	for i := range r.history.Hours {
		h := &r.history.Hours[i]
		if n := (monitoring.EventCounts{Events: h.Events, InTime: h.InTime}); h.Processor == id {
			month = month.Plus(n)
			if !h.Start.Before(now.Add(-24 * time.Hour).Truncate(time.Hour)) {
				day = day.Plus(n)
			}
		}
	}
	for i := range r.history.Minutes {
		m := &r.history.Minutes[i]
		if n := (monitoring.EventCounts{Events: m.Events, InTime: m.InTime}); m.Processor == id {
			sixHours = sixHours.Plus(n)
			if !m.Start.Before(now.Add(-time.Hour).Truncate(time.Minute)) {
				hour = hour.Plus(n)
			}
		}
	}
	return &ReportBudget{
		Events: month.Events, Late: month.Events - month.InTime, Left: month.BudgetLeft(ratio),
		BurnHour: hour.BurnRate(ratio), BurnSixHours: sixHours.BurnRate(ratio), BurnDay: day.BurnRate(ratio),
	}
}

func (r *reporter) addWorstHours() {
	for i := range r.hours {
		h := &r.hours[i]
		if !h.Start.Before(r.report.From) && h.Events > h.InTime {
			r.report.WorstHours = append(r.report.WorstHours, ReportHour{Sink: r.sinkName(h.Processor), Start: h.Start.UTC(), ReportPeriod: period(h.Results)})
		}
	}
	late := func(h ReportHour) int64 { return h.Events - h.InTime }
	slices.SortStableFunc(r.report.WorstHours, func(a, b ReportHour) int { return cmp.Compare(late(b), late(a)) })
	if len(r.report.WorstHours) > mostWorstHours {
		r.report.WorstHours = r.report.WorstHours[:mostWorstHours]
	}
}
