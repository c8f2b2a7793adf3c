//go:build !containers

package servers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// StartReplica starts a hot standby of primary, which streams from it. The binaries that are downloaded have no pg_basebackup, so
// this copies the data directory itself. The settings of primary have to keep the WAL of the time that this takes (wal_keep_size).
func StartReplica(ctx context.Context, primary *Postgres, settings map[string]string) (*Postgres, error) {
	return startCopy(ctx, primary, func(from, to *process) error {
		return errors.Join(backUp(ctx, primary, from, to), to.follow(primary, settings))
	})
}

// standbySlot is the physical slot of the only standby that a primary has.
const standbySlot = "standby"

// StandbySettings are those of a standby that is meant for a failover, as PostgreSQL's documentation advises: it streams through a physical
// slot, with hot_standby_feedback, and from PostgreSQL 17 on with sync_replication_slots.
func StandbySettings(primary *Postgres) map[string]string {
	settings := map[string]string{"hot_standby_feedback": "on", "primary_slot_name": standbySlot, "wal_receiver_status_interval": "1s"}
	if major, _, _ := strings.Cut(primary.version, "."); major >= "17" {
		settings["sync_replication_slots"] = "on"
	}
	return settings
}

// MakeStandbySlot makes the physical slot that StandbySettings name, unless p has it from a time before.
func (p *Postgres) MakeStandbySlot(ctx context.Context) error {
	return p.exec(ctx, "select pg_create_physical_replication_slot('"+standbySlot+"', true) "+
		"where not exists (select from pg_replication_slots where slot_name = '"+standbySlot+"')")
}

// RestoreBackup makes a base backup of original, and starts it as a server of its own on a new timeline, as somebody does who restores a
// backup. It has everything that was committed before the call, and no replication slot.
func RestoreBackup(ctx context.Context, original *Postgres, settings map[string]string) (*Postgres, error) {
	p, err := startCopy(ctx, original, func(from, to *process) error {
		if err := backUp(ctx, original, from, to); err != nil {
			return err
		}
		// The WAL of the time of the backup, which an archive would hand out.
		if err := copyData(filepath.Join(from.dir.path, "data", "pg_wal"), filepath.Join(to.dir.path, "data", "pg_wal")); err != nil {
			return err
		}
		all := map[string]string{"restore_command": "false"}
		maps.Copy(all, settings)
		return to.finish(all, "recovery.signal")
	})
	if err != nil {
		return nil, err
	}
	return p, p.waitPromoted(ctx)
}

// CopyFiles copies the files of a server that was stopped, all of them, and starts the copy at another port. It differs in nothing from its
// original: the same timeline, the same slots.
func CopyFiles(ctx context.Context, stopped *Postgres) (*Postgres, error) {
	return startCopy(ctx, stopped, func(from, to *process) error {
		source, target := filepath.Join(from.dir.path, "data"), filepath.Join(to.dir.path, "data")
		err := copyData(source, target)
		for _, dir := range []string{"pg_wal", "pg_replslot"} {
			err = errors.Join(err, copyData(filepath.Join(source, dir), filepath.Join(target, dir)))
		}
		return errors.Join(err, to.finish(nil, ""))
	})
}

// Promote makes a primary of a standby. It returns when the server takes writes.
func (p *Postgres) Promote(ctx context.Context) error {
	if err := p.exec(ctx, "select pg_promote(false)"); err != nil {
		return err
	}
	return p.waitPromoted(ctx)
}

// Unfollow makes a standby receive nothing more of its primary, as if the network between them were cut. What it has received stays.
func (p *Postgres) Unfollow(ctx context.Context) error {
	if err := p.exec(ctx, "alter system set primary_conninfo = ''", "select pg_reload_conf()"); err != nil {
		return err
	}
	return p.wait(ctx, "select not exists (select from pg_stat_wal_receiver)", "it still receives WAL")
}

// Rejoin starts a server that was stopped as a standby of primary.
func (p *Postgres) Rejoin(ctx context.Context, primary *Postgres, settings map[string]string) error {
	if err := p.instance.(*process).follow(primary, settings); err != nil {
		return err
	}
	return p.Start(ctx)
}

// ErrNoRewind means that the programs of this server have no pg_rewind among them, as those that are downloaded.
var ErrNoRewind = errors.New("no pg_rewind")

// Rewind takes back what a server that was stopped has written since primary, once its standby, was promoted. It can then Rejoin.
func (p *Postgres) Rewind(ctx context.Context, primary *Postgres) error {
	own := p.instance.(*process)
	program := filepath.Join(p.binDir, "pg_rewind")
	if _, err := os.Stat(program); err != nil {
		return ErrNoRewind
	}
	// Up to PostgreSQL 15 pg_rewind reads the primary's timeline from its last checkpoint, and would find nothing to do.
	if err := primary.exec(ctx, "checkpoint"); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, program, "-D", filepath.Join(own.dir.path, "data"), "--source-server", conninfo(primary), "--no-sync")
	cmd.Dir = own.dir.path
	cmd.SysProcAttr = childAttributes(own.user, syscall.SIGKILL)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("pg_rewind: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// startCopy starts what fill has made of the files of original.
func startCopy(ctx context.Context, original *Postgres, fill func(from, to *process) error) (*Postgres, error) {
	from, ok := original.instance.(*process)
	if !ok {
		return nil, errors.New("only a server that runs in a local process can be copied")
	}
	port, err := FreePort()
	if err != nil {
		return nil, err
	}
	dir, err := newDirectory("", "pg", from.user)
	if err != nil {
		return nil, err
	}
	to := &process{
		path: from.path, args: []string{"-D", filepath.Join(dir.path, "data"), "-p", strconv.Itoa(port)},
		logFile: filepath.Join(dir.path, "postgres.log"), signal: from.signal, user: from.user, dir: dir,
	}
	if err := fill(from, to); err != nil {
		return nil, fmt.Errorf("copy the server: %w", joinRemove(err, to))
	}
	p := &Postgres{instance: to, port: port, password: original.password, binDir: original.binDir}
	if err := p.Start(ctx); err != nil {
		return nil, joinRemove(err, to)
	}
	return p, nil
}

// conninfo is how a standby connects to primary. The database is for the slots that PostgreSQL 17 and later copy to it.
func conninfo(primary *Postgres) string {
	return fmt.Sprintf("host=127.0.0.1 port=%d user=%s password=%s dbname=%s sslmode=disable", primary.port, superuser, primary.password, superuser)
}

// follow makes the data directory one of a standby of primary.
func (p *process) follow(primary *Postgres, settings map[string]string) error {
	auto := filepath.Join(p.dir.path, "data", "postgresql.auto.conf") // overrules the other file, and may have a line of Unfollow
	set, err := os.ReadFile(auto)
	if err != nil {
		return err
	}
	lines := slices.DeleteFunc(strings.Split(string(set), "\n"), func(line string) bool { return strings.HasPrefix(line, "primary_conninfo") })
	if err := os.WriteFile(auto, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		return err
	}
	all := map[string]string{"hot_standby": "on", "primary_conninfo": conninfo(primary)}
	maps.Copy(all, settings)
	return p.finish(all, "standby.signal")
}

// finish writes settings and the signal file, and gives all files to the user of the server.
func (p *process) finish(settings map[string]string, signal string) error {
	data := filepath.Join(p.dir.path, "data")
	all := map[string]string{"unix_socket_directories": p.dir.path}
	maps.Copy(all, settings)
	conf, err := os.OpenFile(filepath.Join(data, "postgresql.conf"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = conf.WriteString(formatSettings(all))
	if err = errors.Join(err, conf.Close()); err == nil && signal != "" {
		err = os.WriteFile(filepath.Join(data, signal), nil, 0o600)
	}
	if err != nil || p.user == nil {
		return err
	}
	return filepath.WalkDir(data, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, int(p.user.Uid), int(p.user.Gid)))
	})
}

func (p *Postgres) exec(ctx context.Context, statements ...string) error {
	conn, err := pgx.Connect(ctx, p.DSN(superuser))
	if err != nil {
		return err
	}
	defer conn.Close(context.Background())
	for _, sql := range statements {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
	}
	return nil
}

// stateTimeout bounds how long a server may take to become what it was told to become.
const stateTimeout = time.Minute

func (p *Postgres) waitPromoted(ctx context.Context) error {
	return p.wait(ctx, "select not pg_is_in_recovery()", "it is still in recovery")
}

// wait asks until the answer to sql is yes. why says in an error that it never was.
func (p *Postgres) wait(ctx context.Context, sql, why string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, stateTimeout, fmt.Errorf("PostgreSQL at port %d: %s", p.port, why))
	defer cancel()
	conn, err := pgx.Connect(ctx, p.DSN(superuser))
	if err != nil {
		return err
	}
	defer conn.Close(context.Background())
	for tick := time.Tick(50 * time.Millisecond); ; {
		var yes bool
		if err := conn.QueryRow(ctx, sql).Scan(&yes); err != nil || yes {
			return err
		}
		select {
		case <-tick:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// backUp makes a base backup, as PostgreSQL's documentation describes it.
func backUp(ctx context.Context, primary *Postgres, from, to *process) error {
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
	return os.WriteFile(filepath.Join(target, "backup_label"), []byte(label), 0o600)
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
