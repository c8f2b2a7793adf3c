package monitoring

// objectiveFamilies say whether the objectives are kept.
var objectiveFamilies = []Family{
	{
		Name: "sla_events_total", Type: Counter, Labels: []string{"sink", "within"}, Unit: "events",
		Help: `Events by whether the sink has accepted them in time: within="true" is within sla.within of their commit; within="false" was ` +
			"accepted later, has become a dead letter, or was discarded because the sink did not accept it. What is parked counts when it is accepted or dies.",
		Investigate: `The share of within="false" is more than 1 - sla_objective_ratio: the error budget is being used up faster than it comes.`,
		collect: func(s *Status, emit emit) {
			for i := range s.Sinks {
				emit(float64(s.Sinks[i].Objective.InTime), s.Sinks[i].Name, "true")
				emit(float64(s.Sinks[i].Objective.Late), s.Sinks[i].Name, "false")
			}
		},
	},
	{
		Name: "sla_objective_ratio", Type: Gauge, Labels: []string{"sink"}, Unit: "ratio",
		Help:        "The configured share of the events that has to be in time, from 0 to 1: sla.objective divided by 100.",
		Investigate: "It is not what was agreed on: see sla in the configuration.",
		collect:     ofSinks(func(s *SinkStatus) float64 { return s.Objective.Ratio }),
	},
	{
		Name: "sla_within_seconds", Type: Gauge, Labels: []string{"sink"}, Unit: "seconds",
		Help:        "The configured longest time from commit to acceptance with which an event is in time: sla.within.",
		Investigate: "It is not what was agreed on: see sla in the configuration.",
		collect:     ofSinks(func(s *SinkStatus) float64 { return s.Objective.Within.Seconds() }),
	},
	{
		Name: "sla_compliance", Type: Gauge, Labels: []string{"sink"}, Unit: "per cent",
		Help: "Events of the last 28 days that were in time, in per cent of all events of that time, from 0 to 100. There is none for a sink " +
			"without events in that time, and in an instance that stands by.",
		Investigate: "It is below 100 x sla_objective_ratio: the objective is missed. outbox-cdc report shows the worst hours.",
		collect: ofObjectives(func(o *ObjectiveStatus) (float64, bool) {
			return 100 * (1 - o.Month.LateShare()), o.Month.Events > 0
		}),
	},
	{
		Name: "sla_budget_left_ratio", Type: Gauge, Labels: []string{"sink"}, Unit: "ratio",
		Help: "The error budget of 28 days that is left: 1 if no event was late, 0 if as many were late as the objective allows, negative if more " +
			"were. There is none in an instance that stands by.",
		Investigate: "It falls by a tenth in a day: at this rate the objective will be missed.",
		collect: ofObjectives(func(o *ObjectiveStatus) (float64, bool) {
			return o.Month.BudgetLeft(o.Ratio), true
		}),
	},
}

// ofObjectives collects one value of each sink whose past is known and that has one.
func ofObjectives(value func(*ObjectiveStatus) (float64, bool)) func(*Status, emit) {
	return func(s *Status, emit emit) {
		for i := range s.Sinks {
			o := &s.Sinks[i].Objective
			if v, has := value(o); has && o.Known {
				emit(v, s.Sinks[i].Name)
			}
		}
	}
}
