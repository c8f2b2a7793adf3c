package servers

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5"
)

// PostgresOptions say which PostgreSQL to start, and how. The zero value is good for tests.
type PostgresOptions struct {
	Version  string            // major, such as "15"; "" is $OUTBOX_TEST_PG_VERSION, else any
	Settings map[string]string // of postgresql.conf, over our defaults
	Dir      string            // where the data directory is made; "" is the system's directory for temporary files
	BinDir   string            // "" finds one
	Progress func(string)      // is told which PostgreSQL is used, and what may take long; may be nil
}

func (o PostgresOptions) tell(message string) {
	if o.Progress != nil {
		o.Progress(message)
	}
}

// NoSync are settings for servers that are never crashed on purpose: they do not wait for the disk.
func NoSync() map[string]string {
	return map[string]string{"fsync": "off", "full_page_writes": "off"}
}

const superuser = "postgres"

func (o PostgresOptions) settings() map[string]string {
	settings := map[string]string{
		"wal_level":             "logical",
		"max_replication_slots": "64",
		"max_wal_senders":       "64",
		"max_connections":       "200",
		"shared_buffers":        "64MB",
	}
	maps.Copy(settings, o.Settings)
	return settings
}

func formatSettings(settings map[string]string) string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(&b, "%s = '%s'\n", name, strings.ReplaceAll(settings[name], "'", "''"))
	}
	return b.String()
}

// Postgres is a PostgreSQL server with a data directory of its own. Its methods are not safe for concurrent use,
// except those that only tell something.
type Postgres struct {
	instance instance
	port     int
	password string
	binDir   string
	version  string
}

// StartPostgres makes a new cluster and starts it; it is ready for connections when this returns.
func StartPostgres(ctx context.Context, o PostgresOptions) (*Postgres, error) {
	if o.Version == "" && o.BinDir == "" {
		o.Version = os.Getenv("OUTBOX_TEST_PG_VERSION")
	}
	port, err := FreePort()
	if err != nil {
		return nil, err
	}
	// Anyone on this machine can reach the port, and a superuser can run programs: hence a password.
	password := rand.Text()
	instance, binDir, err := launchPostgres(ctx, o, port, password)
	if err != nil {
		return nil, err
	}
	p := &Postgres{instance: instance, port: port, password: password, binDir: binDir}
	if err := p.Start(ctx); err != nil {
		return nil, joinRemove(err, instance)
	}
	return p, nil
}

// Start starts it again, after Stop or a crash, at the same port and with the same data.
func (p *Postgres) Start(ctx context.Context) error {
	if err := p.instance.Start(ctx); err != nil {
		return fmt.Errorf("start PostgreSQL: %w", err)
	}
	return ready(ctx, "PostgreSQL", p.instance, func(ctx context.Context) error {
		conn, err := pgx.Connect(ctx, p.DSN(superuser))
		if err != nil {
			return err
		}
		defer conn.Close(ctx)
		var version string
		if err := conn.QueryRow(ctx, "show server_version").Scan(&version); err != nil {
			return err
		}
		p.version, _, _ = strings.Cut(version, " ") // without what Debian adds
		return nil
	})
}

// StopMode is how PostgreSQL is told to stop.
type StopMode syscall.Signal

// The modes of pg_ctl stop: smart waits for clients to leave, fast sends them away but waits for the receivers of
// replication, immediate is a crash.
const (
	Smart     = StopMode(syscall.SIGTERM)
	Fast      = StopMode(syscall.SIGINT)
	Immediate = StopMode(syscall.SIGQUIT)
)

// Stop returns when the server has ended, or when ctx has: then with an error that is context's, and the server is
// still stopping. The deadline of ctx is what -t is to pg_ctl.
func (p *Postgres) Stop(ctx context.Context, mode StopMode) error {
	if err := p.instance.Signal(syscall.Signal(mode)); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop PostgreSQL: %w", err)
	}
	select {
	case <-p.instance.Done():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("PostgreSQL at port %d is still running: %w", p.port, context.Cause(ctx))
	}
}

// Close stops it at once and removes its data.
func (p *Postgres) Close() error { return p.instance.Remove() }

// DSN is the address of a database for the superuser.
func (p *Postgres) DSN(database string) string {
	return (&url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword(superuser, p.password),
		Host:     p.Addr(),
		Path:     "/" + database,
		RawQuery: "sslmode=disable",
	}).String()
}

// Addr is its host and port.
func (p *Postgres) Addr() string { return local(p.port) }

// Port is its port.
func (p *Postgres) Port() int { return p.port }

// Version is the server's version, such as 15.18.
func (p *Postgres) Version() string { return p.version }

// BinDir holds its programs; "" when it runs in a container.
func (p *Postgres) BinDir() string { return p.binDir }

// Pid is the postmaster's; 0 when it runs in a container.
func (p *Postgres) Pid() int { return p.instance.Pid() }

// Log is the end of the server's log.
func (p *Postgres) Log() string { return p.instance.Log() }
