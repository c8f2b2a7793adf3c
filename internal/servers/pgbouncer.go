package servers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5"
)

// PgBouncerOptions say how to start a pooler.
type PgBouncerOptions struct {
	// Settings are those of pgbouncer.ini, such as pool_mode, over ours.
	Settings map[string]string
}

// PgBouncer is a connection pooler in front of a PostgreSQL.
type PgBouncer struct {
	instance instance
	port     int
	password string
}

var errNoPgBouncer = errors.New("pgbouncer is missing; install it (Debian: apt-get install pgbouncer; macOS: brew install pgbouncer)")

// StartPgBouncer starts the pgbouncer that is installed. It takes connections to every database of p when this returns.
func StartPgBouncer(ctx context.Context, p *Postgres, o PgBouncerOptions) (*PgBouncer, error) {
	binary, err := exec.LookPath("pgbouncer")
	if err != nil {
		if binary, err = exec.LookPath("/usr/sbin/pgbouncer"); err != nil { // which is on the PATH of root only
			return nil, errNoPgBouncer
		}
	}
	owner, err := serverUser()
	if err != nil {
		return nil, err
	}
	port, err := FreePort()
	if err != nil {
		return nil, err
	}
	dir, err := newDirectory("", "pgbouncer", owner)
	if err != nil {
		return nil, err
	}
	b := &PgBouncer{port: port, password: p.password, instance: &process{
		path:    binary,
		args:    []string{filepath.Join(dir.path, "pgbouncer.ini")},
		logFile: filepath.Join(dir.path, "pgbouncer.log"),
		signal:  syscall.SIGKILL,
		user:    owner,
		dir:     dir,
	}}
	if err := b.writeFiles(dir.path, p, o.Settings, owner); err != nil {
		return nil, joinRemove(err, b.instance)
	}
	if err := b.instance.Start(ctx); err != nil {
		return nil, joinRemove(fmt.Errorf("start PgBouncer: %w", err), b.instance)
	}
	err = ready(ctx, "PgBouncer", b.instance, func(ctx context.Context) error {
		conn, err := pgx.Connect(ctx, b.DSN("pgbouncer")+"&default_query_exec_mode=simple_protocol") // its console
		if err != nil {
			return err
		}
		return conn.Close(ctx)
	})
	if err != nil {
		return nil, joinRemove(err, b.instance)
	}
	return b, nil
}

func (b *PgBouncer) writeFiles(dir string, p *Postgres, settings map[string]string, owner *syscall.Credential) error {
	users := filepath.Join(dir, "users.txt")
	all := map[string]string{
		"listen_addr": "127.0.0.1", "listen_port": strconv.Itoa(b.port), "unix_socket_dir": "", "auth_type": "plain", "auth_file": users, "admin_users": superuser,
	}
	maps.Copy(all, settings)
	var ini strings.Builder
	fmt.Fprintf(&ini, "[databases]\n* = host=127.0.0.1 port=%d\n[pgbouncer]\n", p.port)
	for name, value := range all {
		fmt.Fprintf(&ini, "%s = %s\n", name, value)
	}
	for path, text := range map[string]string{
		users: fmt.Sprintf("%q %q\n", superuser, p.password), filepath.Join(dir, "pgbouncer.ini"): ini.String(),
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return err
		}
		if owner == nil {
			continue
		}
		if err := os.Chown(path, int(owner.Uid), int(owner.Gid)); err != nil {
			return err
		}
	}
	return nil
}

// DSN is the address of a database for the superuser, through the pooler.
func (b *PgBouncer) DSN(database string) string {
	return (&url.URL{
		Scheme: "postgres", User: url.UserPassword(superuser, b.password), Host: local(b.port), Path: "/" + database, RawQuery: "sslmode=disable",
	}).String()
}

// Close ends it at once and removes its files.
func (b *PgBouncer) Close() error { return b.instance.Remove() }
