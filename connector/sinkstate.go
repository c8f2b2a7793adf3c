package connector

import (
	"log/slog"
	"sync"

	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

// sinkState tells people whether a sink takes what it is given: once for all of its lanes.
type sinkState struct {
	name   string
	health *monitoring.Health
	logger *slog.Logger

	mu      sync.Mutex
	failing map[int]struct{} // lanes whose last batch was not accepted
}

func newSinkState(name string, health *monitoring.Health, logger *slog.Logger) *sinkState {
	health.Set("sink:"+name, true, "")
	return &sinkState{name: name, health: health, logger: logger, failing: map[int]struct{}{}}
}

// report tells how the last batch of a lane went.
func (s *sinkState) report(lane int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := len(s.failing) > 0
	if err == nil {
		if !was {
			return
		}
		delete(s.failing, lane)
		if len(s.failing) == 0 {
			s.health.Set("sink:"+s.name, true, "")
			s.logger.Info("sink accepts again", "sink", s.name)
		}
		return
	}
	s.failing[lane] = struct{}{}
	s.health.Set("sink:"+s.name, false, err.Error())
	if !was {
		s.logger.Warn("sink does not accept; trying again, in order", "sink", s.name, "lane", lane, "err", err)
	}
}
