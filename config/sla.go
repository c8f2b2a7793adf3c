package config

import (
	"fmt"
	"slices"
	"time"
)

// SLA is the objective of a sink: how fast events should be accepted, and which share of them.
type SLA struct {
	// Within is the longest time from the commit of an event to its acceptance by the sink with which the event counts as in time.
	Within time.Duration `yaml:"within"`
	// Objective is the share of the events that has to be in time, in per cent.
	Objective float64 `yaml:"objective"`
}

// SinkSLA is what a sink has instead of Config.SLA. A field that is nil is that of Config.SLA.
type SinkSLA struct {
	Within    *time.Duration `yaml:"within,omitempty"`
	Objective *float64       `yaml:"objective,omitempty"`
}

// longestWithin bounds sla.within: who has longer objectives does not need minutes.
const longestWithin = time.Hour

// SLAOf returns the objective of a sink of c.
func (c *Config) SLAOf(s Sink) SLA {
	sla := c.SLA
	if s.SLA.Within != nil {
		sla.Within = *s.SLA.Within
	}
	if s.SLA.Objective != nil {
		sla.Objective = *s.SLA.Objective
	}
	return sla
}

func (v *validator) sla(path string, s SinkSLA) {
	if s.Within != nil {
		v.lasts(path+".within", *s.Within, time.Millisecond, longestWithin)
	}
	if s.Objective != nil && !(*s.Objective > 0 && *s.Objective < 100) { // this refuses NaN as well
		v.mistake(path+".objective", "%v is not more than 0 and less than 100; write a share in per cent, such as 99.9", *s.Objective)
	}
}

// slas checks the objectives of the sinks, and refuses that of a sink of the configuration which is no sink of the connector.
func (v *validator) slas(sinks []Sink) {
	for i := range sinks {
		s := &sinks[i]
		if s.SLA == (SinkSLA{}) || s.Abandoned {
			continue
		}
		path := fmt.Sprintf("sinks[%d].sla", i)
		v.sla(path, s.SLA)
		if s.Composite != nil && s.Composite.Strategy != StrategyAny {
			v.mistake(path, "has no effect: the members of this composite are the sinks; write it at each of them")
		}
		for _, of := range sinks {
			if of.Composite != nil && of.Composite.Strategy == StrategyAny && slices.Contains(of.Composite.Members, s.Name) {
				v.mistake(path, "has no effect: the composite %q is the sink; write it there", of.Name)
			}
		}
	}
}
