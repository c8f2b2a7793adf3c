package replication

import (
	"context"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pyairtable-compose/outbox-cdc/internal/servers"
)

// vanishing returns a proxy that can vanish, and the DSN that leads through it.
func vanishing(t *testing.T, dsn string) (*servers.Proxy, string) {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	proxy, err := servers.NewProxy(net.JoinHostPort(u.Hostname(), u.Port()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := proxy.Close(); err != nil {
			t.Error(err)
		}
	})
	u.Host = proxy.Addr()
	return proxy, u.String()
}

// After a host has vanished, neither a statement nor the stream waits for it for ever.
func TestVanishedServer(t *testing.T) {
	t.Parallel()
	src := newSource(t)
	proxy, dsn := vanishing(t, src.db.DSN)
	stream, _, err := Open(t.Context(), StreamConfig{DSN: dsn, Slot: src.slot, Publication: `the "p"`})
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan error, 1)
	config, err := SQLConfig("the dsn", dsn)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		_, err := conn.Exec(context.Background(), "select pg_sleep(3600)")
		asked <- err
	}()
	const sleeping = "select count(*) from pg_stat_activity where datname = current_database() and query = 'select pg_sleep(3600)'"
	for n := 0; n == 0; time.Sleep(10 * time.Millisecond) { // until the statement runs
		if err := src.conn.QueryRow(t.Context(), sleeping).Scan(&n); err != nil {
			t.Fatal(err)
		}
	}
	streamed := make(chan error, 1)
	go func() {
		defer stream.Close()
		for {
			if _, err := stream.Next(context.Background()); err != nil {
				streamed <- err
				return
			}
		}
	}()
	if err := proxy.Vanish(); err != nil {
		t.Fatal(err)
	}
	limit := time.After(3 * senderTimeout)
	for what, ended := range map[string]chan error{"the statement": asked, "the stream": streamed} {
		select {
		case err := <-ended:
			if err == nil {
				t.Errorf("%s has ended as if all were well", what)
			}
			t.Log(err)
		case <-limit:
			t.Errorf("%s waits for a host that has vanished", what)
		}
	}
}
