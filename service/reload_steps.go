package service

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/url"
	"os"
	"regexp"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pyairtable-compose/outbox-cdc/config"
	"github.com/pyairtable-compose/outbox-cdc/connector"
	"github.com/pyairtable-compose/outbox-cdc/provision"
	"github.com/pyairtable-compose/outbox-cdc/replication"
)

// configurationSteps returns the steps of the command run. initFirst says that what is missing in the database is made first.
func configurationSteps(o RunOptions, build BuildOptions) steps {
	return steps{
		read: readAnew, readSecrets: readSecretsAnew,
		check: func(ctx context.Context, cfg config.Config) error { return checkSource(ctx, cfg, o) },
		build: func(cfg config.Config, before connector.Predecessor) (runner, error) {
			b := build
			b.Predecessor = before
			if o.Init && !before.Worked {
				b.Prepare = func(ctx context.Context) error { return initialize(ctx, cfg, o.Logger) }
			}
			return Build(cfg, b)
		},
	}
}

// readAnew reads file and secrets anew.
func readAnew(now loaded) (loaded, []string, error) {
	d, err := config.ReadDocument(now.document.Path, now.document.Environ, now.document.Options)
	if err != nil {
		return loaded{}, nil, err
	}
	cfg, warnings, err := d.Load()
	return loaded{document: d, config: cfg, files: filesOf(cfg)}, warnings, err
}

// readSecretsAnew reads the files of secrets anew, and those that sinks read when they are made. The packages of the sinks check what
// has changed.
func readSecretsAnew(now loaded) (loaded, error) {
	quick := now.document
	quick.Options.CheckSink = nil
	for _, d := range []config.Document{quick, now.document} {
		cfg, _, err := d.Load()
		if err != nil {
			return loaded{}, err
		}
		keepFixed(&cfg, now.config)
		next := loaded{document: now.document, config: cfg, files: filesOf(cfg)}
		if d.Options.CheckSink != nil || next.same(&now) {
			return next, nil
		}
	}
	return now, nil
}

// filesOf returns a digest of the files that sinks read when they are made. What sinks and PostgreSQL's client read at each connect is
// not among them.
func filesOf(cfg config.Config) string {
	all := sha256.New()
	for i := range cfg.Sinks {
		s := &cfg.Sinks[i]
		var t config.TLS
		switch {
		case s.Kafka != nil:
			t = s.Kafka.TLS
		case s.Redis != nil:
			t = s.Redis.TLS
		case s.Webhook != nil:
			t = s.Webhook.TLS
		case s.EventBus != nil:
			t = s.EventBus.TLS
		}
		for _, path := range []string{t.CAFile, t.CertFile, t.KeyFile} {
			if path == "" {
				continue
			}
			content, err := os.ReadFile(path) //nolint:gosec // the configuration names it
			if err != nil {
				content = []byte(err.Error())
			}
			sum := sha256.Sum256(content)
			_, _ = io.WriteString(all, path+hex.EncodeToString(sum[:])) // a hash takes all
		}
	}
	return hex.EncodeToString(all.Sum(nil))
}

// checkSource looks whether a connector could read the source of cfg. With the option Init, it first makes what is missing there.
func checkSource(ctx context.Context, cfg config.Config, o RunOptions) error {
	if o.Init {
		if err := initialize(ctx, cfg, o.Logger); err != nil {
			return replication.ExplainUnreachable(err)
		}
	}
	err := provision.CheckLogins(ctx, string(cfg.Source.DSN), string(cfg.Source.ReplicationDSN), source(cfg))
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == "53300" {
		// The running connector has all the connections that this login may have. The login is right, as the server looks at that first.
		o.Logger.Warn("the new source could be connected to, and not looked at", "err", err)
		return nil
	}
	return replication.ExplainUnreachable(err)
}

// sameConnections reports whether two configurations read the same slot of the same database by the same logins, whose passwords
// may differ.
func sameConnections(a, b config.Config) bool {
	return a.Name == b.Name && a.Source.Slot == b.Source.Slot && a.Source.Publication == b.Source.Publication && a.Source.Table == b.Source.Table &&
		a.Source.LedgerSchema == b.Source.LedgerSchema &&
		sameLogin(a.Source.DSN, b.Source.DSN) && sameLogin(a.Source.ReplicationDSN, b.Source.ReplicationDSN)
}

// sameLogin reports whether two connection strings differ in nothing but the password.
func sameLogin(a, b config.DSN) bool {
	return a == b || withoutPassword(string(a)) == withoutPassword(string(b))
}

var passwordSetting = regexp.MustCompile(`\bpassword\s*=\s*('(\\.|[^'\\])*'|\S*)`)

func withoutPassword(dsn string) string {
	u, err := url.Parse(dsn)
	if err != nil || u.Scheme == "" {
		return passwordSetting.ReplaceAllString(dsn, "")
	}
	u.User = url.User(u.User.Username())
	query := u.Query()
	query.Del("password")
	u.RawQuery = query.Encode()
	return u.String()
}
