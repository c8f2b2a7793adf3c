//go:build linux

package process

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
)

// Loopback is the address of a port of this machine.
func Loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// StartKafkaFake starts an empty Kafka that keeps the records of Topic in memory, in a process of its own. It returns the
// address of its broker.
func StartKafkaFake(ctx context.Context, binary, logFile string) (*Child, string, error) {
	port, err := servers.FreePort()
	if err != nil {
		return nil, "", err
	}
	fake, err := Start(logFile, binary, "-port", strconv.Itoa(port), "-partitions", strconv.Itoa(Partitions), "-topics", Topic)
	if err != nil {
		return nil, "", err
	}
	return fake, Loopback(port), fake.AwaitListening(ctx, Loopback(port))
}

// CreateDatabase creates a database and connects to it.
func CreateDatabase(ctx context.Context, pg *servers.Postgres, name string) (*pgx.Conn, error) {
	admin, err := pgx.Connect(ctx, pg.DSN("postgres"))
	if err != nil {
		return nil, err
	}
	defer admin.Close(ctx)
	if _, err := admin.Exec(ctx, "create database "+pgx.Identifier{name}.Sanitize()); err != nil {
		return nil, err
	}
	return pgx.Connect(ctx, pg.DSN(name))
}

// DropDatabase drops a database and its slots, and with them the WAL that they keep. It goes on when ctx has ended.
func DropDatabase(ctx context.Context, pg *servers.Postgres, name string) error {
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), 30*time.Second, errors.New("a slot is still in use"))
	defer cancel()
	admin, err := pgx.Connect(ctx, pg.DSN("postgres"))
	if err != nil {
		return err
	}
	defer admin.Close(ctx)
	for slots := 1; slots > 0; {
		// The walsender of a client that has just ended needs a moment to notice.
		if _, err := admin.Exec(ctx, `select pg_drop_replication_slot(slot_name) from pg_replication_slots
			where database = $1 and not active`, name); err != nil {
			return fmt.Errorf("drop slots: %w", err)
		}
		if err := admin.QueryRow(ctx, "select count(*) from pg_replication_slots where database = $1", name).Scan(&slots); err != nil {
			return err
		}
		if slots > 0 {
			if err := Pause(ctx, 20*time.Millisecond); err != nil {
				return err
			}
		}
	}
	_, err = admin.Exec(ctx, "drop database "+pgx.Identifier{name}.Sanitize()+" with (force)")
	return err
}
