package demo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
)

// Breakable returns what the chaos can break.
func Breakable() []string { return []string{"redis", "webhooks", "kafka", "connector", "postgres"} }

// The rhythm of the chaos.
const (
	chaosLook       = 100 * time.Millisecond
	chaosTell       = 2 * time.Second  // how often a number that grows is told
	chaosCatchUp    = 60 * time.Second // how long the chaos waits for what came late
	chaosMendingFor = 60 * time.Second // how long mending may take
	chaosLonger     = 30 * time.Second // how much longer than Options.Outage an outage may last, until it has shown all of its effects
)

// chaosConfiguration has the times of a demo: a person does not watch for minutes.
const chaosConfiguration = `delivery:
  retry: {initial: 500ms, max: 2s}
breaker: {max_failures: 3, reset_timeout: 2s}
`

// act is one outage.
type act struct {
	sink string // of the configuration, if a destination breaks
	// begins and ends are the texts that a person reads when the outage begins and ends.
	begins, ends string
	away, mend   func(ctx context.Context) error
	kill         bool // it may repeat events
	stopsShop    bool // nobody can commit, so nothing waits
}

func (d *demo) act(name string) act {
	quietly := func(do func()) func(context.Context) error {
		return func(context.Context) error { do(); return nil }
	}
	switch name {
	case "redis":
		return act{
			sink: "stream", begins: "Redis goes away (the sink stream). The other two go on.", ends: "Redis is back",
			away: quietly(d.others.redis.Close), mend: func(context.Context) error { return d.others.redis.Restart() },
		}
	case "webhooks":
		return act{
			sink: "partner", begins: "The receiver of webhooks answers 503 (the sink partner). The others go on.",
			ends: "the receiver of webhooks is back",
			away: quietly(func() { d.others.away.Store(true) }), mend: quietly(func() { d.others.away.Store(false) }),
		}
	case "kafka":
		return act{
			sink: "events", begins: "Kafka is killed (the sink events). Nothing arrives here; the others go on.",
			ends: "Kafka is back", kill: true,
			away: quietly(d.broker.close), mend: func(context.Context) error { return d.broker.start() },
		}
	case "connector":
		return act{
			begins: "The connector is killed, by kill -9. The shop goes on.", ends: "the connector is started again", kill: true,
			away: d.connector.kill, mend: d.connector.restart,
		}
	default:
		return act{
			begins: "PostgreSQL is killed. Nobody can commit, so the shop waits.", ends: "PostgreSQL is back, after its recovery", kill: true, stopsShop: true,
			away: func(ctx context.Context) error { return d.postgres.Stop(ctx, servers.Immediate) },
			mend: d.postgres.Start,
		}
	}
}

// chaos breaks one thing after the other, and tells each outage as a story, until ctx ends. If something is broken at that time, chaos
// mends it before it returns, unless work has ended.
func (d *demo) chaos(ctx, work context.Context) error {
	for n := 0; ; n++ {
		if !pause(ctx, d.Outage/2) {
			return nil
		}
		s := &story{demo: d, act: d.act(d.Chaos[n%len(d.Chaos)])}
		err := s.tell(ctx, work)
		s.disconnect(work)
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("chaos: %w", err)
		}
		if s.unmended != nil {
			return fmt.Errorf("chaos: mend what was broken: %w", s.unmended)
		}
	}
}

// pause waits, and reports whether ctx still goes on after that.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// tell runs one outage: it breaks the thing, mends it after Options.Outage, and waits until all events have arrived.
func (s *story) tell(ctx, work context.Context) error {
	s.began, s.repeated = time.Now(), s.arrivals.again()
	s.counted = s.began
	s.title(s.begins)
	if s.kill {
		s.kills++
	}
	if err := s.away(ctx); err != nil {
		return err
	}
	watching, enough := context.WithTimeout(ctx, s.Outage)
	s.watch(watching)
	enough()
	longer, enough := context.WithTimeout(ctx, chaosLonger)
	s.complete(longer)
	enough()

	mending, cancel := context.WithTimeoutCause(work, chaosMendingFor, errors.New("it takes too long"))
	defer cancel()
	if s.unmended = s.mend(mending); s.unmended != nil {
		return s.unmended
	}
	s.line(yellow, "%s", s.ends)
	return s.catchUp(ctx)
}
