package service

import (
	"context"
	"reflect"
	"time"

	"github.com/pyairtable-compose/outbox-cdc/config"
)

const (
	// secretsEvery is the least time between two looks at the files of secrets.
	secretsEvery = time.Second
	// secretsFor is how long after a refused login the files are looked at: whoever changes a password may change it first where it is
	// asked for, and then in the file.
	secretsFor = 2 * time.Minute
	// sourceAgain is how long after PostgreSQL has refused what is in the files of secrets it is asked again.
	sourceAgain = 5 * time.Second
)

// secretsWatch says when the files of secrets are looked at, and what was said of them.
type secretsWatch struct {
	timer   *time.Timer // stopped while no login is refused
	until   time.Time   // when the looking ends
	last    time.Time   // when they were looked at
	running bool

	said   string        // the last warning; empty if all was well since
	failed *loaded       // a configuration that no connector could work with
	source config.Source // what PostgreSQL did not take from the files, at asked, and why
	asked  time.Time
	why    error
}

// loginRefused begins to look at the files, or goes on with it.
func (w *secretsWatch) loginRefused(now time.Time) {
	w.until = now.Add(secretsFor)
	if !w.running {
		w.running = true
		w.timer.Reset(max(0, w.last.Add(secretsEvery).Sub(now)))
	}
}

// looks notes a look at the files, and decides when the next one is.
func (w *secretsWatch) looks(now time.Time) {
	w.last = now
	if w.running = now.Before(w.until); w.running {
		w.timer.Reset(secretsEvery)
	}
}

// forget ends the looking. No look is left either: what is written into a file from now on may be for a password that is changed later.
func (w *secretsWatch) forget() {
	w.until, w.running = time.Time{}, false
	w.timer.Stop()
}

// changedSecrets reads the files of secrets anew, and returns the configuration with them if one has changed. The file of the
// configuration is not read, because somebody may be editing it.
func (s *supervisor) changedSecrets(ctx context.Context, l *life) *loaded {
	s.secrets.looks(time.Now())
	next, err := s.readSecrets(l.loaded)
	if err != nil {
		s.warnOfSecrets("a login was refused, and the files of secrets cannot be used", err)
		return nil
	}
	if !next.sameSource(&l.loaded) {
		if err := s.checkSecretsOfSource(ctx, &next); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			s.warnOfSecrets("a file of a secret has changed, and PostgreSQL does not take what it holds", err)
			next.config.Source = l.config.Source // other secrets may have changed as well
		} else {
			if sameConnections(next.config, l.config) { // otherwise it is more than a password, and another connector follows
				s.logger.Info("a login was refused, and a password of PostgreSQL has changed; each connection that is made from now on uses the new one")
			}
			l.useLogins(next.config)
			s.forgetRefusals()
			s.secrets.said = ""
		}
	} else {
		s.secrets.said = ""
	}
	if next.same(&l.loaded) || s.secrets.failed != nil && next.same(s.secrets.failed) {
		return nil
	}
	s.logger.Info("a login was refused, and a file of a secret has changed; going on with the new one")
	return &next
}

// checkSecretsOfSource connects with other secrets. What PostgreSQL has refused, it is not asked again for a while.
func (s *supervisor) checkSecretsOfSource(ctx context.Context, next *loaded) error {
	w := &s.secrets
	if w.why != nil && time.Since(w.asked) < sourceAgain && reflect.DeepEqual(w.source, next.config.Source) {
		return w.why
	}
	err := s.checkSource(ctx, next.config)
	w.source, w.asked, w.why = next.config.Source, time.Now(), err
	return err
}

// warnOfSecrets logs a warning once, until something else is to be said.
func (s *supervisor) warnOfSecrets(why string, err error) {
	if now := why + err.Error(); now != s.secrets.said {
		s.secrets.said = now
		s.logger.Warn("going on with the secrets that were read before", "why", why, "err", err)
	}
}
