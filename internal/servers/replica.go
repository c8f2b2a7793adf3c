//go:build !containers

package servers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
)

// StartReplica starts a hot standby of primary, which streams from it. The binaries that are downloaded have no pg_basebackup, so
// this copies the data directory itself. The settings of primary have to keep the WAL of the time that this takes (wal_keep_size).
func StartReplica(ctx context.Context, primary *Postgres, settings map[string]string) (*Postgres, error) {
	from, ok := primary.instance.(*process)
	if !ok {
		return nil, errors.New("a replica needs a primary that runs in a local process")
	}
	port, err := FreePort()
	if err != nil {
		return nil, err
	}
	dir, err := newDirectory("", "pg", from.user)
	if err != nil {
		return nil, err
	}
	p := &process{
		path: from.path, args: []string{"-D", filepath.Join(dir.path, "data"), "-p", strconv.Itoa(port)},
		logFile: filepath.Join(dir.path, "postgres.log"), signal: from.signal, user: from.user, dir: dir,
	}
	if err := copyCluster(ctx, primary, from, p, settings); err != nil {
		return nil, fmt.Errorf("copy the primary: %w", joinRemove(err, p))
	}
	replica := &Postgres{instance: p, port: port, password: primary.password, binDir: primary.binDir}
	if err := replica.Start(ctx); err != nil {
		return nil, joinRemove(err, p)
	}
	return replica, nil
}

// copyCluster makes a base backup, as PostgreSQL's documentation describes it.
func copyCluster(ctx context.Context, primary *Postgres, from, to *process, settings map[string]string) error {
	conn, err := pgx.Connect(ctx, primary.DSN(superuser))
	if err != nil {
		return err
	}
	defer conn.Close(context.Background())
	start, stop := "select pg_backup_start('replica', true)", "select labelfile from pg_backup_stop(false)"
	if strings.HasPrefix(primary.version, "14.") {
		start, stop = "select pg_start_backup('replica', true, false)", "select labelfile from pg_stop_backup(false, false)"
	}
	if _, err := conn.Exec(ctx, start); err != nil {
		return err
	}
	source, target := filepath.Join(from.dir.path, "data"), filepath.Join(to.dir.path, "data")
	if err := copyData(source, target); err != nil {
		return err
	}
	var label string
	if err := conn.QueryRow(ctx, stop).Scan(&label); err != nil {
		return err
	}
	all := map[string]string{
		"hot_standby": "on", "unix_socket_directories": to.dir.path,
		"primary_conninfo": fmt.Sprintf("host=127.0.0.1 port=%d user=%s password=%s sslmode=disable", primary.port, superuser, primary.password),
	}
	maps.Copy(all, settings)
	conf, err := os.OpenFile(filepath.Join(target, "postgresql.conf"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = conf.WriteString(formatSettings(all))
	err = errors.Join(err, conf.Close(), os.WriteFile(filepath.Join(target, "standby.signal"), nil, 0o600),
		os.WriteFile(filepath.Join(target, "backup_label"), []byte(label), 0o600))
	if err != nil || to.user == nil {
		return err
	}
	return filepath.WalkDir(target, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, int(to.user.Uid), int(to.user.Gid)))
	})
}

// copyData copies a data directory of a server that runs, without what only that server needs.
func copyData(source, target string) error {
	return filepath.WalkDir(source, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // deleted meanwhile; the WAL knows
		}
		if err != nil {
			return err
		}
		name, err := filepath.Rel(source, path)
		if err != nil {
			return err
		}
		top, below, _ := strings.Cut(name, string(filepath.Separator))
		elsewhere := below != "" && (top == "pg_wal" || top == "pg_replslot") // these directories stay empty
		if elsewhere && entry.IsDir() {
			return fs.SkipDir
		}
		if entry.IsDir() {
			return os.MkdirAll(filepath.Join(target, name), 0o700)
		}
		if elsewhere || !entry.Type().IsRegular() || strings.HasPrefix(name, "postmaster.") {
			return nil
		}
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(target, name), data, 0o600)
	})
}
