package service

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"reflect"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/connector"
	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

const (
	// sourceCheckTimeout bounds the connecting to a source that has changed. The connector that runs goes on meanwhile.
	sourceCheckTimeout = 10 * time.Second
	// slowHandover is how long deliveries may run on after a reload before the log says that they are waited for.
	slowHandover = time.Second
)

var errReloaded = errors.New("the configuration was reloaded")

// loaded is a configuration that was read and has no mistakes.
type loaded struct {
	document config.Document
	config   config.Config
	files    string // what the files hold that the sinks read when they are made, such as certificates
}

// same reports whether two configurations lead to the same connector.
func (l *loaded) same(other *loaded) bool {
	a, b := l.config, other.config
	a.Source, b.Source = placeless(a.Source), placeless(b.Source)
	return l.files == other.files && reflect.DeepEqual(a, b)
}

// placeless returns a source without where it was written.
func placeless(s config.Source) config.Source {
	s.DSNPlace, s.ReplicationDSNPlace = "", ""
	return s
}

// sameSource reports whether two configurations read the same outbox in the same way.
func (l *loaded) sameSource(other *loaded) bool {
	return l.config.Name == other.config.Name && reflect.DeepEqual(placeless(l.config.Source), placeless(other.config.Source))
}

// runner is a connector, or a test's.
type runner interface {
	Run(ctx context.Context) error
	Status() monitoring.Status
	UseLogins(dsn, replicationDSN string)
	Outages() map[string]time.Time // after the end of Run
}

// steps are what a supervisor does with configurations: configurationSteps, or a test's.
type steps struct {
	// read reads file and secrets anew, and checks all of it.
	read func(loaded) (loaded, []string, error)
	// readSecrets reads only the files of secrets anew.
	readSecrets func(loaded) (loaded, error)
	// check connects to the source, and looks whether a connector could read it.
	check func(ctx context.Context, cfg config.Config) error
	// build makes a connector. It connects to nothing.
	build func(cfg config.Config, before connector.Predecessor) (runner, error)
}

// supervisor runs one connector after the other, always one at a time. Each time the configuration changes, it ends the connector,
// which drains, and goes on with another one. All of it but noteRefusal happens in the goroutine of run.
//
//  1. A configuration with mistakes changes nothing.
//  2. A source that has changed is connected to before the connector is ended. If that fails, it changes nothing either.
//  3. The next connector begins after the end of the one before, so that every event is settled by one of them, and none by both.
//  4. If the next one ends with an error before it has streamed, the configuration before it is in force again.
type supervisor struct {
	steps
	health *monitoring.Health
	logger *slog.Logger
	tally  *tally
	reload <-chan os.Signal // SIGHUP; nil if nobody sends any

	notices  notices
	refused  chan struct{} // holds a value after a login was refused
	secrets  secretsWatch
	fallback *fallback // of the connector that runs; nil once it has streamed
}

// fallback is the configuration that is in force again if its successor fails.
type fallback struct {
	loaded
	worked bool
}

func newSupervisor(health *monitoring.Health, logger *slog.Logger) *supervisor {
	timer := time.NewTimer(0)
	timer.Stop()
	return &supervisor{health: health, logger: logger, tally: &tally{}, refused: make(chan struct{}, 1), secrets: secretsWatch{timer: timer}}
}

// noteRefusal notes that a login was refused. It returns at once. Any goroutine may call it.
func (s *supervisor) noteRefusal() {
	select {
	case s.refused <- struct{}{}:
	default: // the supervisor has not looked since the last one
	}
}

// forgetRefusals forgets the logins that were refused with the secrets of before.
func (s *supervisor) forgetRefusals() {
	select {
	case <-s.refused:
	default:
	}
	s.secrets.forget()
}

// life is a connector that runs.
type life struct {
	runner
	loaded
	before connector.Predecessor
	stop   context.CancelCauseFunc
	ended  chan error
	asked  time.Time // when it was asked for; zero for the first one
	inUse  bool      // the log says that its configuration is in use
}

// hasWorked reports whether logins, database and rights were right: it streams or stands by, or has done so, or its predecessor.
func (l *life) hasWorked() bool {
	st := l.Status()
	return l.before.Worked || st.Sessions > 0 || st.Role == monitoring.RoleStandby
}

// following is the configuration of the next connector.
type following struct {
	loaded
	before connector.Predecessor
	asked  time.Time
}

// run runs connectors until ctx ends and the last one has drained. Its error is that of the last one.
func (s *supervisor) run(ctx context.Context, first loaded) error {
	next := &following{loaded: first}
	for {
		l, err := s.begin(ctx, next)
		if err == nil {
			next, err = s.attend(ctx, l)
		} else {
			next = s.goBack(&next.loaded, err)
		}
		if next == nil {
			return err
		}
	}
}

// begin starts the next connector.
func (s *supervisor) begin(ctx context.Context, next *following) (*life, error) {
	c, err := s.build(next.config, next.before)
	if err != nil {
		return nil, err
	}
	s.tally.follow(c)
	running, stop := context.WithCancelCause(ctx)
	l := &life{runner: c, loaded: next.loaded, before: next.before, stop: stop, ended: make(chan error, 1), asked: next.asked, inUse: next.asked.IsZero()}
	go func() { l.ended <- c.Run(running) }()
	return l, nil
}

// attend waits until the connector has ended, and returns what follows it, or nil and its error.
func (s *supervisor) attend(ctx context.Context, l *life) (*following, error) {
	defer l.stop(nil)
	for {
		changed := s.health.Changed()
		settled := s.isSettled(l)
		if s.noteReady(l) && settled {
			changed = nil
		}
		var next *loaded
		var asked time.Time
		select {
		case err := <-l.ended:
			if ctx.Err() != nil {
				return nil, err
			}
			next := s.goBack(&l.loaded, err)
			if next != nil {
				next.before.Outages = l.Outages()
			}
			return next, err
		case <-changed:
		case <-s.reload:
			asked = time.Now()
			s.notices.reload()
			if next = s.reloaded(ctx, l); next == nil {
				s.notices.ready()
			}
		case <-s.refused:
			s.secrets.loginRefused(time.Now())
		case <-s.secrets.timer.C:
			asked = time.Now()
			next = s.changedSecrets(ctx, l)
		case <-s.notices.ticks():
			s.tick(l)
		case <-s.notices.stopping(ctx):
			s.notices.stop()
		}
		if next != nil && ctx.Err() == nil {
			return s.handOver(ctx, l, &following{loaded: *next, asked: asked})
		}
	}
}

// isSettled notes that the connector does its work, once it does, and reports whether nothing more has to be noted of it.
func (s *supervisor) isSettled(l *life) bool {
	if l.inUse && s.fallback == nil {
		return true
	}
	st := l.Status()
	streams := st.Sessions > 0
	if !l.inUse && (streams || st.Role == monitoring.RoleStandby) {
		l.inUse = true
		s.logger.Info("the new configuration is in use", "role", string(st.Role), "took", time.Since(l.asked).Round(time.Millisecond).String())
	}
	if streams {
		s.fallback = nil
	}
	return l.inUse && s.fallback == nil
}

// goBack returns what is in force again after a connector of this configuration has failed with err, or nil if there is nothing to go
// back to.
func (s *supervisor) goBack(failed *loaded, err error) *following {
	f := s.fallback
	if f == nil || err == nil {
		return nil
	}
	s.fallback, s.secrets.failed = nil, failed
	s.logger.Error("the new configuration does not work; the one before is in force again", "err", err)
	return &following{loaded: f.loaded, before: connector.Predecessor{Worked: f.worked, HadSlot: true}}
}

// reloaded reads the configuration anew, and returns it if another connector has to be made for it.
func (s *supervisor) reloaded(ctx context.Context, l *life) *loaded {
	const stays = "the configuration was not reloaded; everything goes on as before"
	s.logger.Info("reloading the configuration", "file", l.document.Path)
	next, warnings, err := s.read(l.loaded)
	if err != nil {
		s.logger.Error(stays, "err", err)
		return nil
	}
	for _, w := range warnings {
		s.logger.Warn("configuration", "warning", w)
	}
	if kept := keepFixed(&next.config, l.config); kept != nil {
		s.logger.Warn("these keys have changed, and take effect only at the next start of the process", "keys", kept)
	}
	if next.same(&l.loaded) {
		s.logger.Info("nothing has changed in the configuration")
		l.document = next.document // comments may have
		return nil
	}
	if !next.sameSource(&l.loaded) {
		if err := s.checkSource(ctx, next.config); err != nil {
			if ctx.Err() == nil {
				s.logger.Error(stays, "err", err)
			}
			return nil
		}
		s.logger.Info("the source has changed", whereItLeads(string(next.config.Source.DSN), next.config.Source.DSNPlace)...)
		l.useLogins(next.config) // the connector may have to connect once more, to record its last outcomes
	}
	if next.same(&l.loaded) {
		s.logger.Info("only passwords of PostgreSQL have changed; each connection that is made from now on uses the new ones")
		l.document = next.document
		return nil
	}
	return &next
}

// useLogins has the connector make its later connections by the logins of cfg, if they differ from its own only in their passwords. They
// are then part of the configuration in force, so that a comparison with cfg shows what else has changed.
func (l *life) useLogins(cfg config.Config) {
	if !sameConnections(cfg, l.config) {
		return
	}
	l.UseLogins(string(cfg.Source.DSN), string(cfg.Source.ReplicationDSN))
	l.config.Source.DSN, l.config.Source.ReplicationDSN = cfg.Source.DSN, cfg.Source.ReplicationDSN
}

// checkSource connects to the source of a configuration, and returns an error if a connector could not read it.
func (s *supervisor) checkSource(ctx context.Context, cfg config.Config) error {
	ctx, cancel := context.WithTimeoutCause(ctx, sourceCheckTimeout, errors.New("PostgreSQL has not answered within "+sourceCheckTimeout.String()))
	defer cancel()
	err := s.check(ctx, cfg)
	if err != nil && errors.Is(err, context.DeadlineExceeded) {
		return context.Cause(ctx)
	}
	return err
}

// keepFixed sets those keys that only the start of the process can set to what they are now, and returns the names of those that have
// changed.
func keepFixed(next *config.Config, now config.Config) (kept []string) {
	if !reflect.DeepEqual(next.HTTP, now.HTTP) {
		kept = append(kept, "http")
	}
	if next.Metrics != now.Metrics {
		kept = append(kept, "metrics")
	}
	if !reflect.DeepEqual(next.Tracing, now.Tracing) {
		kept = append(kept, "tracing")
	}
	next.HTTP, next.Metrics, next.Tracing = now.HTTP, now.Metrics, now.Tracing
	return kept
}

// handOver ends the connector and waits until it has drained. It returns what follows, or nil if the process is to end.
func (s *supervisor) handOver(ctx context.Context, l *life, next *following) (*following, error) {
	worked := l.hasWorked()
	if s.fallback == nil || worked {
		s.fallback = &fallback{loaded: l.loaded, worked: worked}
	}
	next.before = connector.Predecessor{
		Worked:  worked && sameConnections(next.config, l.config),
		HadSlot: l.Status().Role == monitoring.RoleLeader,
	}
	s.health.Set("reload", monitoring.Degraded("reloading: running deliveries end first"))
	l.stop(errReloaded)
	slow := time.NewTimer(slowHandover)
	defer slow.Stop()
	for {
		select {
		case <-slow.C:
			s.logger.Info("the reload waits until running deliveries have ended and are recorded", "at_most", l.config.Delivery.DrainTimeout.String())
		case <-s.notices.ticks():
			s.tick(l)
		case <-s.notices.stopping(ctx):
			s.notices.stop()
		case err := <-l.ended:
			if ctx.Err() != nil {
				return nil, err // the process ends; this was its drain
			}
			s.forgetRefusals()
			next.before.Outages = l.Outages()
			return next, nil // the connector has logged how its drain went
		}
	}
}
